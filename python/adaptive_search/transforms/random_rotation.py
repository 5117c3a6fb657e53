"""Random rotations by fast Walsh-Hadamard transforms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np

from ..types import F32, I64, Array
from ..validation import as_int
from .base import Transform

ROUNDS = 3
"""Rounds of sign flips, blocks and shuffles: after three, no direction can be told from another."""


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

    orthogonal: ClassVar[bool] = True

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = as_int(seed, "seed", 0)
        self._signs: F32 = np.empty((0, 0), np.float32)
        self._orders: I64 = np.empty((0, 0), np.int64)

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
        random = np.random.Generator(np.random.PCG64(self.seed))
        self._signs = random.integers(0, 2, (ROUNDS, dim)).astype(np.float32) * 2 - 1
        self._orders = np.stack([random.permutation(dim) for _ in range(ROUNDS)])
        self.dim = dim

    def _transformed(self, vectors: F32) -> F32:
        size = 1 << (self.dim.bit_length() - 1)
        out = vectors
        for signs, order in zip(self._signs, self._orders, strict=True):
            out = out * signs
            _hadamard(out[:, :size])
            if size < self.dim:
                _hadamard(out[:, self.dim - size :])
            out = out[:, order]
        return np.ascontiguousarray(out)


def _hadamard(block: F32) -> None:
    """The normalised transform of every row, in place; sums of two at a time, so that their order is fixed."""
    size = block.shape[1]
    half = 1
    while half < size:
        view = np.lib.stride_tricks.as_strided(
            block,
            (len(block), size // (2 * half), 2, half),
            (block.strides[0], 2 * half * block.strides[1], half * block.strides[1], block.strides[1]),
        )
        total = view[:, :, 0] + view[:, :, 1]
        view[:, :, 1] = view[:, :, 0] - view[:, :, 1]
        view[:, :, 0] = total
        half *= 2
    block *= np.float32(1.0 / np.sqrt(size))
