"""Few bits per dim of randomly rotated rows, with two numbers per row that make estimates unbiased and what all rows share exact."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple, Self

import numpy as np

from ..arrays import block_rows, ranges
from ..backends import current
from ..backends.protocol import Scaling
from ..functional import best_rows
from ..hadamard import HadamardRotation
from ..rotations import rotated
from ..types import F32, F64, I8, MAX_DIM, U8, Array, Metric, Neighbors
from ..validation import as_codes, as_int
from .base import Quantizer, taken
from .int8 import FLOAT32_MAX
from .packed import PackedCodes, PackedFamily, check_factors

HALF_STEPS = {1: 0.8, 2: 0.498, 4: 0.168}
"""Half the distance of two levels that loses least on normally distributed numbers, in standard deviations (J. Max, 1960)."""

TRIED = (0.6, 0.75, 0.9, 1.0, 1.1, 1.25, 1.4, 1.6)
"""Multiples of it that are tried for every row."""

CACHED_BYTES = 1 << 19

LARGEST_COORDINATE = 5e35
"""Of a rotated query: table entries of 4-bit codes, 15 times as large, can still be told apart in float32."""

LEAST_MEAN, LARGEST_MEAN, LARGEST_WEIGHT = 1e-30, 1e30, 1e30
"""Squared lengths between which the mean counts: below it is none, above kernels could not take products with it. Queries that hold it
more often than this are left whole."""


class RaBitQuantizer(Quantizer):
    """One, two or four bits per dim of the rotated difference to the mean, and two float32 numbers per row.

    A random rotation makes all dims alike. A code holds levels u, odd whole numbers, that stand for x' = x - mean, rotated. <q', x'> is
    estimated as f <q', u> with f = |x'|^2 / <u, x'>, which makes the error of the part of q' along x' vanish, and that of the rest zero on
    average. For l2, q' = q - mean, and |x'|^2 is the other number. For inner products and cosine, q' is what is left of q without its part
    along the mean, q = a mean + q', and the other number is <mean, x'>, so that this part of the product has no error:
    <q, x> = <q, mean> + a <mean, x'> + <q', x'>.
    (J. Gao and C. Long, "RaBitQ: quantizing high-dimensional vectors with a theoretical error bound", SIGMOD 2024; J. Gao et al.,
    "Practical and asymptotically optimal quantization of high-dimensional vectors in Euclidean space", SIGMOD 2025.)

    Four bits of a code, which are the levels of 4, 2 or 1 dims, choose an entry of a table of the query: what they add to <q', u>. So a
    search is that of 4-bit product quantization. With 1 and 2 bits entries are rounded to whole numbers 0..63 times a step, which changes
    estimates much less than the codes do. Scores estimate the metric; an l2 estimate can be slightly negative.

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
    ((1000, 16), dtype('uint8'))
    >>> quantizer.top_k(rows[:3], quantizer.pack(codes), k=1).ids.ravel().tolist()
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
        self._levels: F32
        self._square = 0.0  # of the mean's length, where the mean counts, or 0
        # At first, codes for inner products and cosine did without <mean, x'>; indexes saved then still hold them.
        self._terms = True

    def __repr__(self) -> str:
        return f"RaBitQuantizer(bits={self.bits}, metric={self.metric!r})"

    @property
    def code_bytes(self) -> int:
        return self._level_bytes + 4 * (1 + self.terms) if self.dim else 0

    @property
    def terms(self) -> bool:
        """Whether rows have a number beside their factor: all do, but in the first indexes that were saved only those of l2."""
        return self._terms

    @property
    def _level_bytes(self) -> int:
        return -(-self.dim * self.bits // 8)

    @property
    def subspaces(self) -> int:
        """Groups of 4 bits."""
        return -(-self.dim * self.bits // 4)

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
        norm = np.empty(1, np.float32)
        current().dense_norms("float32", [mean[np.newaxis]], norm)
        square = float(norm[0]) ** 2
        self._square = square if LEAST_MEAN < square < LARGEST_MEAN else 0.0
        self._rotation = HadamardRotation(self.dim, self.seed)
        # What every 4 bits of a code stand for, as codewords of subspaces that are all alike.
        words = _unpacking(self.bits)[:16, : 4 // self.bits].astype(np.float32)
        self._levels = np.ascontiguousarray(np.broadcast_to(words, (self.subspaces, *words.shape)))

    def encode(self, X: Any, *, threads: int | None = None, progress: bool = False) -> U8:
        """Codes (N, code_bytes) uint8: levels, the lowest bits first, then the bytes of the factor and of <mean, x - mean>, or for l2 of
        |x - mean|^2, both little-endian float32."""

        def encode(vectors: F32, codes: Array) -> None:
            # So many at a time that they stay in the cache.
            for first, last in ranges(len(vectors), max(16, CACHED_BYTES // (8 * self.dim))):
                centred = self._centred(vectors[first:last])
                turned = self._rotation.forth(current(), centred)
                squares = np.square(turned, dtype=np.float64).sum(axis=1)
                numbers, products = self._nearest(turned, squares)
                factors = np.divide(squares, products, out=np.zeros_like(squares), where=products > 0)
                numbers_of = [factors]
                if self._terms:
                    numbers_of.append(squares if self.metric == "l2" else self._products(centred))
                tail = np.stack(numbers_of, axis=1)
                codes[first:last, : self._level_bytes] = _packed(numbers, self.bits)
                with np.errstate(over="ignore"):
                    codes[first:last, self._level_bytes :] = tail.astype("<f4").view(np.uint8)

        return self._encoded(X, np.uint8, encode, threads, progress)

    def _centred(self, vectors: F32, weights: F32 | None = None) -> F32:
        """The difference to the mean, or to the mean times weights (n,)."""
        with np.errstate(over="ignore", invalid="ignore"):
            centred = vectors - (self.mean if weights is None else weights[:, np.newaxis] * self.mean)
        return np.clip(centred, -FLOAT32_MAX, FLOAT32_MAX, out=centred)

    def _products(self, centred: F32) -> F32:
        """With the mean (n,), if it counts."""
        return rotated(current(), centred, self.mean[np.newaxis])[:, 0] if self._square else np.zeros(len(centred), np.float32)

    def _nearest(self, turned: F32, squares: F64) -> tuple[U8, F64]:
        """The levels that point most nearly along each row, as numbers (n, D) from 0 up, and their products with it (n,)."""
        if self.bits == 1:
            return (turned >= 0).view(np.uint8), np.abs(turned, dtype=np.float64).sum(axis=1)
        most = _most(self.bits)
        spread = np.sqrt(squares / self.dim) * HALF_STEPS[self.bits]
        best, levels, products = np.full(len(turned), -1.0), np.empty(turned.shape, np.int8), np.zeros(len(turned))
        for part in TRIED:
            half = np.where(spread > 0, part * spread, 1.0)[:, np.newaxis]
            tried = np.clip(2.0 * np.floor(turned / (2.0 * half)) + 1.0, -most, most)
            product, length = (tried * turned).sum(axis=1), np.square(tried).sum(axis=1)
            better = product * np.abs(product) > best * length
            levels[better], products[better] = tried[better], product[better]
            best[better] = (product * np.abs(product) / length)[better]
        return ((levels + most) >> 1).view(np.uint8), products

    def decode(self, codes: Any) -> F32:
        """Rows (N, D): the mean plus factor times levels, rotated back, and, but for l2, put right along the mean. Inner products with them
        are the estimates; they are longer than what they stand for."""
        packed = self._codes(codes)
        parts = self.split(packed.unpack() if isinstance(packed, PackedCodes) else packed)
        out = np.empty((len(parts.factors), self.dim), np.float32)
        for first, last in ranges(len(out), block_rows(4 * self.dim)):
            scaled = np.multiply(self._unpacked(parts.levels[first:last]), parts.factors[first:last, np.newaxis], dtype=np.float32)
            found = self._rotation.back(current(), scaled)
            if self.metric != "l2" and parts.terms is not None and self._square:
                wrong = parts.terms[first:last] - self._products(found)
                found += (wrong / self._square).astype(np.float32)[:, np.newaxis] * self.mean
            out[first:last] = found + self.mean
        return out

    def top_k(self, queries: Any, codes: Any, k: int, *, mask: Any = None, threads: int | None = None) -> Neighbors:
        """The k rows with the best estimated score for every query, ties by row number.

        Parameters
        ----------
        queries : array_like, shape (Q, D) or (D,)
            Floats.
        codes : array_like of uint8, shape (N, code_bytes), or PackedCodes
            What `encode` or `pack` gave. Row-major codes are packed block by block at every call.
        k, mask, threads
            As for `adaptive_search.top_k`.
        """
        batch, single = self._queries(queries)
        family = PackedFamily(current(), batch, self._codes(codes), self.metric != "l2", 64 * self.subspaces, self.pack, self.ask)
        return best_rows(family, k, mask, threads, single)

    def pack(self, codes: Any) -> PackedCodes:
        """Row-major codes in the layout that scans fastest."""
        packed = self._codes(codes)
        if isinstance(packed, PackedCodes):
            return packed
        parts = self.split(packed)
        norms2, products = (parts.terms, None) if self.metric == "l2" else (None, parts.terms)
        return PackedCodes.of(parts.levels, self.subspaces, 4, parts.factors, norms2, products)

    def split(self, codes: U8) -> Parts:
        """Row-major codes (N, code_bytes) by what they hold."""
        tail = np.ascontiguousarray(codes[:, self._level_bytes :]).view("<f4").astype(np.float32)
        terms = np.ascontiguousarray(tail[:, 1]) if self._terms else None
        return Parts(codes[:, : self._level_bytes], np.ascontiguousarray(tail[:, 0]), terms)

    def ask(self, queries: F32) -> tuple[F32, Scaling]:
        """What checked float32 queries (Q, D), of unit length for cosine, ask of packed codes: tables, and what their sums say."""
        backend, distances = current(), self.metric == "l2"
        queries = np.ascontiguousarray(queries)
        offset, weights = np.empty((len(queries), 1), np.float32), np.ones(len(queries), np.float32)
        if not distances:
            backend.dense_map(queries, self.mean[np.newaxis], offset)
            weights = self._weights(offset[:, 0])
        turned = self._rotation.forth(backend, self._centred(queries, weights))
        if distances:
            backend.dense_norms("float32", [turned], offset[:, 0])
        finite = (np.abs(turned) <= LARGEST_COORDINATE).all(axis=1) & np.isfinite(offset[:, 0])
        added = offset[:, 0].astype(np.float64)
        if distances:
            added *= added
            finite &= added <= FLOAT32_MAX
        if not finite.all():
            raise ValueError(f"queries: scores of row {int((~finite).argmax())} are too large for float32")
        tables = np.empty((len(queries), *self._levels.shape[:2]), np.float32)
        backend.pq_tables(turned, self._levels, False, tables)
        base, step = np.zeros(len(queries)), np.ones(len(queries))
        if self.bits < 4:
            backend.pq_whole(tables, base, step)
        # |q - x|^2 = |q'|^2 + |x'|^2 - 2 <q', x'>
        times = 2.0 if distances else 1.0
        return tables, Scaling(added, times * base, times * step, weights.astype(np.float64))

    def _weights(self, products: F32) -> F32:
        """How many times the mean is in queries, from their products with it (Q,)."""
        if not self._terms or not self._square:
            return np.zeros_like(products)
        weights = products.astype(np.float64) / self._square
        return np.where(np.abs(weights) < LARGEST_WEIGHT, weights, 0.0).astype(np.float32)

    def state(self) -> dict[str, Array]:
        if not self.fitted:
            return {}
        terms = {"terms": np.array([1], np.int64)} if self._terms else {}
        return {"mean": self.mean, "seed": np.array([self.seed], np.int64), **terms}

    @classmethod
    def from_state(cls, state: Mapping[str, Array], metric: Metric, bits: int = 1) -> Self:
        mean, seed = taken(state, "mean", np.float32, 1), taken(state, "seed", np.int64, 1)
        if not 1 <= len(mean) <= MAX_DIM or not np.isfinite(mean).all():
            raise ValueError("state: expected 'mean' to be finite, one number per dim")
        if len(seed) != 1 or seed[0] < 0:
            raise ValueError("state: expected 'seed' to be one number from 0 up")
        quantizer = cls(bits, metric, seed=int(seed[0]))
        quantizer._terms = metric == "l2" or "terms" in state
        quantizer._install(mean.copy())
        return quantizer

    def _unpacked(self, packed: U8) -> I8:
        """Levels (n, D) of packed ones."""
        levels: I8 = _unpacking(self.bits)[packed].reshape(len(packed), -1)[:, : self.dim]
        return np.ascontiguousarray(levels)

    def _codes(self, codes: Any) -> U8 | PackedCodes:
        self._check_fitted()
        if not isinstance(codes, PackedCodes):
            array = as_codes(codes, "codes", self.code_bytes)
            _, factors, terms = self.split(array)
            check_factors(factors, terms, "codes")
            return array
        held = [values is not None for values in (codes.factors, codes.norms2, codes.products)]
        own = held == [True, self.metric == "l2", self._terms and self.metric != "l2"]
        if (codes.subspaces, codes.bits) != (self.subspaces, 4) or not own:
            raise ValueError(f"codes: expected those of {self!r} for {self.dim} dims, got {codes!r}")
        return codes


class Parts(NamedTuple):
    """Packed levels (N, bytes), factors (N,), and <mean, x - mean> (N,), or for l2 |x - mean|^2."""

    levels: U8
    factors: F32
    terms: F32 | None


def _most(bits: int) -> int:
    return (1 << bits) - 1


def _packed(numbers: Array, bits: int) -> U8:
    """Numbers (n, D) below 2**bits as (n, bytes), the lowest bits first."""
    if bits == 1:
        return np.packbits(numbers, axis=1, bitorder="little")
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
