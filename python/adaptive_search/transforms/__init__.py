"""Maps of embeddings that put more of the truth into fewer dims: fitted once, applied to rows and queries alike."""

from __future__ import annotations

from .base import Transform
from .chain import TRANSFORMS, Chain, transform_of
from .learned import LearnedRotation
from .principal import PCA, Whitening
from .random_rotation import RandomRotation
from .relative import RelativeProjection

__all__ = [
    "PCA",
    "TRANSFORMS",
    "Chain",
    "LearnedRotation",
    "RandomRotation",
    "RelativeProjection",
    "Transform",
    "Whitening",
    "transform_of",
]
