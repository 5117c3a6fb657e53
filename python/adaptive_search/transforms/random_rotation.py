"""Random rotations by fast Walsh-Hadamard transforms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np

from ..backends import current
from ..hadamard import HadamardRotation
from ..types import F32, Array
from ..validation import as_int
from .base import Transform


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

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = as_int(seed, "seed", 0)
        self._rotation: HadamardRotation

    @property
    def orthogonal(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"RandomRotation(seed={self.seed})"

    @property
    def dims_out(self) -> int:
        return self.dim

    def state(self) -> dict[str, Array]:
        return {"seed": np.array([self.seed]), "dim": np.array([self.dim])} if self.fitted else {}

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> Self:
        try:
            seed, dim = (int(np.asarray(state[name]).reshape(1)[0]) for name in ("seed", "dim"))
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError("state: expected 'seed' and 'dim', one number each") from error
        if dim < 1:
            raise ValueError(f"state: expected dims from 1 up, got {dim}")
        made = cls(seed)
        made._install(dim)
        return made

    def _fit(self, sample: F32) -> None:
        self._install(sample.shape[1])

    def _install(self, dim: int) -> None:
        self._rotation, self.dim = HadamardRotation(dim, self.seed), dim

    def _transformed(self, vectors: F32) -> F32:
        return self._rotation.forth(current(), vectors)
