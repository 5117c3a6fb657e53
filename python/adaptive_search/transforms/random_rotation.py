"""Random rotations by fast Walsh-Hadamard transforms."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..backends import current
from ..hadamard import HadamardRotation
from ..types import F32, MAX_DIM, Array
from ..validation import as_int
from .base import Transform, only


class RandomRotation(Transform):
    """An orthogonal map that spreads what any dim says over all of them, in D log D steps per vector.

    Rounds of random sign flips, normalised Walsh-Hadamard transforms of the first and of the last block of the largest power of two that
    fits, and a random order of dims. (N. Ailon and B. Chazelle, "The fast Johnson-Lindenstrauss transform", 2009.)

    Parameters
    ----------
    seed : int
        Another one gives another rotation.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> rotation = asx.RandomRotation().fit(np.zeros((1, 100), np.float32))
    >>> a, b = rotation.transform(np.eye(100, dtype=np.float32)[:2])
    >>> round(float(a @ a), 5), abs(round(float(a @ b), 5))
    (1.0, 0.0)
    """

    parameters = ("seed",)

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = as_int(seed, "seed", 0)
        self._rotation: HadamardRotation

    @property
    def orthogonal(self) -> bool:
        return True

    def state(self) -> dict[str, Array]:
        return {"dim": np.array([self.dim])} if self.fitted else {}

    def restore(self, state: Mapping[str, Array]) -> None:
        only(state, "dim")
        dim = state["dim"]
        if dim.shape != (1,) or dim.dtype != np.int64 or not 1 <= dim[0] <= MAX_DIM:
            raise ValueError(f"state: expected 'dim' to be one int64 from 1 to {MAX_DIM:,}, got {dim.dtype} {dim.shape}")
        self._install(int(dim[0]))

    def learn(self, sample: F32, name: str) -> None:
        self._install(sample.shape[1])

    def _install(self, dim: int) -> None:
        self._rotation, self.dim = HadamardRotation(dim, self.seed), dim

    def apply(self, vectors: F32) -> F32:
        return self._rotation.turned(current(), vectors)
