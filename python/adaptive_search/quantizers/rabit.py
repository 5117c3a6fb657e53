"""Few bits per dim of randomly rotated rows, with a factor per row that makes estimates unbiased."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Self

import numpy as np

from .. import flat
from ..arrays import Matrix, block_rows, ranges
from ..backends import current
from ..backends.protocol import DenseChunk, IntegerMetric, Rows
from ..flat import IntegerFamily
from ..functional import squeezed
from ..hadamard import HadamardRotation
from ..types import F32, I8, MAX_DIM, U8, Array, Metric, Neighbors
from ..validation import as_int, as_k, as_mask, as_ndarray, as_threads
from .base import Quantizer, taken
from .int8 import FLOAT32_MAX, integer_queries

HALF_STEPS = {1: 0.8, 2: 0.498, 4: 0.168}
"""Half the distance of two levels that loses least on normally distributed numbers, in standard deviations (J. Max, 1960)."""

TRIED = (0.6, 0.75, 0.9, 1.0, 1.1, 1.25, 1.4, 1.6)
"""Multiples of it that are tried for every row."""


class RaBitQuantizer(Quantizer):
    """One, two or four bits per dim of the rotated difference to the mean, and a float32 factor per row.

    A random rotation makes all dims alike. A code holds levels u, odd whole numbers; <q, x> is estimated as <q, mean> + f <q', u> with the
    rotated query q' and f = |x'|^2 / <u, x'>, which makes the error of q's part along x vanish, and that of the rest zero on average.
    (J. Gao and C. Long, "RaBitQ: quantizing high-dimensional vectors with a theoretical error bound", SIGMOD 2024; J. Gao et al.,
    "Practical and asymptotically optimal quantization of high-dimensional vectors in Euclidean space", SIGMOD 2025.)

    The query is rounded to 7 bits. Codes are unpacked block by block when they are searched, so that a search reads few bytes but takes the
    time of a search over signed bytes at least. Scores estimate the metric; an l2 estimate can be slightly negative.

    Parameters
    ----------
    bits : {1, 2, 4}
        Per dim.
    metric : {"ip", "cosine", "l2"}
        What scores estimate.
    seed : int
        Of the rotation.

    Attributes
    ----------
    mean : ndarray of float32, shape (D,)
        Of the rows that it was fitted to.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> rows = np.random.default_rng(0).standard_normal((1000, 64)).astype(np.float32)
    >>> quantizer = asx.RaBitQuantizer(bits=1).fit(rows)
    >>> codes = quantizer.encode(rows)
    >>> codes.shape, codes.dtype
    ((1000, 12), dtype('uint8'))
    >>> quantizer.top_k(rows[:3], codes, k=1).ids.ravel().tolist()
    [0, 1, 2]
    """

    def __init__(self, bits: int = 1, metric: Metric = "ip", *, seed: int = 0) -> None:
        super().__init__(metric)
        self.bits = as_int(bits, "bits", 1)
        if self.bits not in HALF_STEPS:
            raise ValueError(f"bits: expected 1, 2 or 4, got {self.bits}")
        self.seed = as_int(seed, "seed", 0)
        self.mean: F32 = np.empty(0, np.float32)
        self._rotation: HadamardRotation

    def __repr__(self) -> str:
        return f"RaBitQuantizer(bits={self.bits}, metric={self.metric!r})"

    @property
    def code_bytes(self) -> int:
        return self._level_bytes + 4 * (1 + (self.metric == "l2")) if self.dim else 0

    @property
    def _level_bytes(self) -> int:
        return -(-self.dim * self.bits // 8)

    def fit(self, X: Any, *, progress: bool = False) -> Self:
        """Learn the mean of rows (n, D)."""
        matrix = self._sample(X)
        total = np.zeros(matrix.dim)
        for _, _, vectors in self._blocks(matrix, progress, "Fitting"):
            total += vectors.sum(axis=0, dtype=np.float64)
        self._install((total / len(matrix)).astype(np.float32))
        return self

    def _install(self, mean: F32) -> None:
        self.mean, self.dim = mean, len(mean)
        self._rotation = HadamardRotation(self.dim, self.seed)

    def encode(self, X: Any, *, threads: int | None = None, progress: bool = False) -> U8:
        """Codes (N, code_bytes) uint8: levels, the lowest bits first, then the bytes of the factor and, for l2, of |x - mean|^2, both
        little-endian float32."""

        def encode(vectors: F32, codes: Array) -> None:
            turned = self._turned(vectors)
            levels, factors = self._levels(turned)
            codes[:, : self._level_bytes] = _packed((levels + _most(self.bits)) >> 1, self.bits)
            tail = [factors]
            if self.metric == "l2":
                with np.errstate(over="ignore"):
                    tail.append(np.square(turned, dtype=np.float64).sum(axis=1).astype(np.float32))
            codes[:, self._level_bytes :] = np.stack(tail, axis=1).astype("<f4").view(np.uint8)

        return self._encoded(X, np.uint8, encode, threads, progress)

    def _turned(self, vectors: F32) -> F32:
        """The rotated difference to the mean."""
        with np.errstate(over="ignore"):
            centred = vectors - self.mean
        return self._rotation.forth(np.clip(centred, -FLOAT32_MAX, FLOAT32_MAX, out=centred))

    def _levels(self, turned: F32) -> tuple[I8, F32]:
        """Levels (n, D), odd numbers, of the scale that points most nearly along each row; and the factors (n,)."""
        most = _most(self.bits)
        squares = np.square(turned, dtype=np.float64).sum(axis=1)
        spread = np.sqrt(squares / self.dim) * HALF_STEPS[self.bits]
        best, levels, products = np.full(len(turned), -1.0), np.empty(turned.shape, np.int8), np.zeros(len(turned))
        for part in TRIED if self.bits > 1 else (1.0,):
            half = np.where(spread > 0, part * spread, 1.0)[:, np.newaxis]
            tried = np.clip(2.0 * np.floor(turned / (2.0 * half)) + 1.0, -most, most)
            product, length = (tried * turned).sum(axis=1), np.square(tried).sum(axis=1)
            better = product * np.abs(product) > best * length
            levels[better], products[better] = tried[better], product[better]
            best[better] = (product * np.abs(product) / length)[better]
        factors = np.divide(squares, products, out=np.zeros_like(squares), where=products > 0)
        return levels, factors.astype(np.float32)

    def decode(self, codes: Any) -> F32:
        """Rows (N, D): the mean plus factor times levels, rotated back. Inner products with them are the estimates; they are longer than
        what they stand for."""
        parts = self._parts(codes)
        out = np.empty((len(parts.factors), self.dim), np.float32)
        for first, last in ranges(len(out), block_rows(4 * self.dim)):
            scaled = np.multiply(self._unpacked(parts.levels[first:last]), parts.factors[first:last, np.newaxis], dtype=np.float32)
            out[first:last] = self._rotation.back(scaled) + self.mean
        return out

    def top_k(self, queries: Any, codes: Any, k: int, *, mask: Any = None, threads: int | None = None) -> Neighbors:
        """The k rows with the best estimated score for every query, ties by row number.

        Parameters
        ----------
        queries : array_like, shape (Q, D) or (D,)
            Floats.
        codes : array_like of uint8, shape (N, code_bytes)
            What `encode` gave.
        k, mask, threads
            As for `adaptive_search.top_k`.
        """
        batch, single = self._queries(queries)
        parts = self._parts(codes)
        allowed = as_mask(mask, len(batch), len(parts.factors))
        k, threads = as_k(k), as_threads(threads)
        ones = np.ones(self.dim, np.float32)
        metric: IntegerMetric = "ip_scaled"
        if self.metric == "l2":
            metric = "l2_scaled"
            prepared = integer_queries(self._turned(batch), ones, "l2", np.zeros(len(batch), np.float32))
        else:
            added = np.empty((len(batch), 1), np.float32)
            current().dense_map(np.ascontiguousarray(batch), self.mean[np.newaxis], added)
            prepared = integer_queries(self._rotation.forth(batch), ones, self.metric, np.ascontiguousarray(added[:, 0]))
        matrix = Matrix.of(parts.levels.view(np.int8), "codes")
        family = _PackedLevels(current(), matrix, *prepared, metric, parts.norms2, parts.factors, self)
        return squeezed(flat.top_k(family, k, allowed, threads), single)

    def state(self) -> dict[str, Array]:
        return {"mean": self.mean, "seed": np.array([self.seed], np.int64)} if self.fitted else {}

    @classmethod
    def from_state(cls, state: Mapping[str, Array], metric: Metric, bits: int = 1) -> Self:
        mean, seed = taken(state, "mean", np.float32, 1), taken(state, "seed", np.int64, 1)
        if not 1 <= len(mean) <= MAX_DIM or not np.isfinite(mean).all():
            raise ValueError("state: expected 'mean' to be finite, one number per dim")
        if len(seed) != 1 or seed[0] < 0:
            raise ValueError("state: expected 'seed' to be one number from 0 up")
        quantizer = cls(bits, metric, seed=int(seed[0]))
        quantizer._install(mean.copy())
        return quantizer

    def _unpacked(self, packed: U8) -> I8:
        """Levels (n, D) of packed ones."""
        levels: I8 = _unpacking(self.bits)[packed].reshape(len(packed), -1)[:, : self.dim]
        return np.ascontiguousarray(levels)

    def _parts(self, codes: Any) -> _Parts:
        self._check_fitted()
        array = as_ndarray(codes, "codes")
        if array.dtype != np.uint8:
            raise TypeError(f"codes: expected uint8, got {array.dtype}")
        if array.ndim != 2 or array.shape[1] != self.code_bytes:
            raise ValueError(f"codes: expected shape (n, {self.code_bytes}), got {array.shape}")
        tail = np.ascontiguousarray(array[:, self._level_bytes :]).view("<f4").astype(np.float32)
        bad = ~(np.isfinite(tail) & (tail >= 0) & (tail < 1e30)).all(axis=1)
        if bad.any():
            raise ValueError(f"codes: row {int(bad.argmax())} is too long, or has no factor that `encode` could have given")
        norms2 = np.ascontiguousarray(tail[:, 1]) if self.metric == "l2" else None
        return _Parts(array[:, : self._level_bytes], np.ascontiguousarray(tail[:, 0]), norms2)


class _Parts(NamedTuple):
    """Packed levels (N, bytes), factors (N,), and |x - mean|^2 (N,) for l2."""

    levels: U8
    factors: F32
    norms2: F32 | None


@dataclass(frozen=True)
class _PackedLevels(IntegerFamily):
    """Levels that are unpacked block by block."""

    quantizer: RaBitQuantizer | None = None

    @property
    def width(self) -> int:
        return int(self.batch.shape[1])

    @property
    def query_bytes(self) -> int:
        return self.width

    def blocks(self) -> Iterator[tuple[int, int]]:
        return ranges(len(self.matrix), max(4096, block_rows(self.width)))

    def open(self, first: int, last: int) -> Rows:
        if self.quantizer is None or self.scales is None:
            raise RuntimeError("levels without a quantizer and factors")
        levels = self.quantizer._unpacked(self.matrix.array[first:last].view(np.uint8))
        norms2 = None if self.norms2 is None else self.norms2[first:last]
        return self.backend.dense_rows("int8", [DenseChunk((levels,), norms2, self.scales[first:last])])


def _most(bits: int) -> int:
    return (1 << bits) - 1


def _packed(numbers: Array, bits: int) -> U8:
    """Numbers (n, D) below 2**bits as (n, bytes), the lowest bits first."""
    each = 8 // bits
    padded = np.pad(numbers.astype(np.uint8), ((0, 0), (0, -numbers.shape[1] % each))).reshape(len(numbers), -1, each)
    out: U8 = np.bitwise_or.reduce(padded << (bits * np.arange(each, dtype=np.uint8)), axis=2)
    return out


@cache
def _unpacking(bits: int) -> I8:
    """Levels of every byte: (256, 8 / bits)."""
    shifts = bits * np.arange(8 // bits)
    numbers = np.arange(256)[:, np.newaxis] >> shifts & _most(bits)
    return (2 * numbers - _most(bits)).astype(np.int8)
