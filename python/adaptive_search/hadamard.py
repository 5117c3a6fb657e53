"""Random rotations of any number of dims by fast Walsh-Hadamard transforms."""

from __future__ import annotations

import numpy as np

from .backends.protocol import Backend
from .types import F32

ROUNDS = 3
"""Rounds of sign flips, blocks and shuffles: after three, no direction can be told from another."""


LARGE, SHRINK = 1e33, 2.0**-40
"""Numbers that large are made smaller while they are added up: sums of 32,768 of them would leave float32."""


class HadamardRotation:
    """An orthogonal map of D dims in D log D steps, given by a seed; the same bits everywhere.

    Rounds of random sign flips, normalised Walsh-Hadamard transforms of the first and of the last block of the largest power of two that
    fits, and a random order of dims.
    """

    def __init__(self, dim: int, seed: int) -> None:
        random = np.random.Generator(np.random.PCG64(seed))
        self._dim = dim
        self._size = 1 << (dim.bit_length() - 1)
        self._signs = random.integers(0, 2, (ROUNDS, dim)).astype(np.float32) * np.float32(2) - np.float32(1)
        self._orders = np.stack([random.permutation(dim) for _ in range(ROUNDS)])

    def forth(self, backend: Backend, vectors: F32) -> F32:
        """Vectors (n, D) rotated; what is beyond float32 becomes its largest number."""
        out = self.turned(backend, vectors)
        return out if np.isfinite(out).all() else np.nan_to_num(out, copy=False)

    def turned(self, backend: Backend, vectors: F32) -> F32:
        """The same; what is beyond float32 is infinite."""
        large = np.abs(vectors).max(axis=1, initial=0.0) > LARGE
        if large.any():
            out = np.empty_like(vectors)
            out[~large] = self._forth(backend, vectors[~large])
            with np.errstate(over="ignore"):
                out[large] = self._forth(backend, vectors[large] * np.float32(SHRINK)) / np.float32(SHRINK)
            return out
        return self._forth(backend, vectors)

    def _forth(self, backend: Backend, vectors: F32) -> F32:
        out = vectors
        for signs, order in zip(self._signs, self._orders, strict=True):
            out = np.multiply(out, signs, order="C")
            backend.hadamard(out[:, : self._size])
            if self._size < self._dim:
                backend.hadamard(out[:, self._dim - self._size :])
            out = out.take(order, axis=1)
        return out

    def back(self, backend: Backend, vectors: F32) -> F32:
        """The inverse of `forth`, up to rounding."""
        out = vectors
        for signs, order in zip(self._signs[::-1], self._orders[::-1], strict=True):
            ordered = np.empty(out.shape, np.float32)
            ordered[:, order] = out
            if self._size < self._dim:
                backend.hadamard(ordered[:, self._dim - self._size :])
            backend.hadamard(ordered[:, : self._size])
            out = ordered * signs
        return out
