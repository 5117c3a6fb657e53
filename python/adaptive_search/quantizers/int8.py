"""Scalar quantization to signed bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from .. import flat
from ..arrays import Matrix, block_rows, ranges
from ..backends import current
from ..backends.protocol import IntegerMetric
from ..flat import IntegerFamily
from ..functional import squeezed
from ..types import F32, F64, I8, MAX_DIM, Array, Metric, Neighbors
from ..validation import as_k, as_mask, as_threads
from .base import Quantizer, taken

QUERY_LIMIT = 63
"""Largest query code: 7 bits, so that sums of pairs of products fit into 16 bits on every machine."""

FLOAT32_MAX = float(np.finfo(np.float32).max)


class IntegerQueries(NamedTuple):
    """Queries as `Backend.integer_scan` takes them: codes (Q, D), factors (Q,), offsets (Q,)."""

    codes: I8
    factors: F32
    offsets: F32


def integer_queries(queries: F32, scales: F32, metric: Metric, added: F32) -> IntegerQueries:
    """Queries (Q, D) for rows that are codes times ``scales`` (D,), rounded to 7 bits; ``added`` (Q,) joins inner products."""
    queries = np.ascontiguousarray(queries)
    codes, steps = np.empty(queries.shape, np.int8), np.empty(len(queries))
    current().integer_queries(queries, scales, codes, steps)
    factors, offsets = steps, added
    if metric == "l2":
        factors, offsets = -2.0 * steps, np.empty(len(queries), np.float32)
        current().dense_norms("float32", [queries], offsets)
        with np.errstate(over="ignore"):
            offsets *= offsets
    finite = (np.abs(factors) <= FLOAT32_MAX) & np.isfinite(offsets)
    if not finite.all():
        raise ValueError(f"queries: scores of row {int((~finite).argmax())} are too large for float32")
    return IntegerQueries(codes, factors.astype(np.float32), offsets)


class Int8Quantizer(Quantizer):
    """One signed byte per dim, scaled so that the values seen by `fit` fill -127 to 127: around 0, or around their middle if ``affine``.

    The scales are folded into the query, which is then rounded to 7 bits, so that a score is an integer product and two float operations.
    What offsets add to an inner product is the same for all rows; distances do not change if they are taken from query and rows alike. So
    affine codes are searched like symmetric ones. (Jacob et al., "Quantization and training of neural networks for efficient
    integer-arithmetic-only inference", 2018, describe both.)
    Scores estimate the metric with the error of both roundings; an l2 estimate can be slightly negative.

    Parameters
    ----------
    metric : {"ip", "cosine", "l2"}
        What scores estimate.
    affine : bool
        Whether dims have offsets. Finer steps where the values of a dim lie to one side of 0; constant dims are kept as they are.

    Attributes
    ----------
    offsets : ndarray of float32, shape (D,)
        What code 0 stands for: 0, or the middle between the smallest and the largest value of every dim.
    limits : ndarray of float32, shape (D,)
        Largest distance of a value from its offset.
    scales : ndarray of float32, shape (D,)
        What a code is multiplied with: ``limits / 127``.
    clipped : int
        How many values beyond the limits `encode` has clipped since `fit`.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> rows = np.float32([[1, 0.5], [-1, 2], [0.25, -2]])
    >>> quantizer = asx.Int8Quantizer().fit(rows)
    >>> quantizer.encode(rows)
    array([[ 127,   32],
           [-127,  127],
           [  32, -127]], dtype=int8)
    >>> quantizer.top_k([1.0, 0.0], quantizer.encode(rows), k=2).ids
    array([0, 2])
    >>> quantizer = asx.Int8Quantizer(affine=True).fit(rows)
    >>> quantizer.offsets, quantizer.limits
    (array([0., 0.], dtype=float32), array([1., 2.], dtype=float32))
    """

    def __init__(self, metric: Metric = "ip", *, affine: bool = False) -> None:
        super().__init__(metric)
        if not isinstance(affine, bool | np.bool_):
            raise TypeError(f"affine: expected True or False, got {affine!r}")
        self.affine = bool(affine)
        self.clipped = 0
        self.offsets: F32 = np.empty(0, np.float32)
        self.limits: F32 = np.empty(0, np.float32)
        self.scales: F32 = np.empty(0, np.float32)

    def __repr__(self) -> str:
        return f"Int8Quantizer(metric={self.metric!r}{', affine=True' if self.affine else ''})"

    @property
    def code_bytes(self) -> int:
        return self.dim

    def fit(self, X: Any, *, progress: bool = False) -> Self:
        """Learn the limits from rows (n, D)."""
        matrix = self._sample(X)
        low, high = np.full(matrix.dim, np.inf, np.float32), np.full(matrix.dim, -np.inf, np.float32)
        for _, _, vectors in self._blocks(matrix, progress, "Fitting"):
            np.minimum(low, vectors.min(axis=0), out=low)
            np.maximum(high, vectors.max(axis=0), out=high)
        middle = (low.astype(np.float64) + high) / 2 if self.affine else np.zeros(matrix.dim)
        # Limits belong to offsets as they are rounded, so that no value that was seen is beyond them.
        offsets = middle.astype(np.float32)
        self._install(offsets, np.maximum(np.abs(low - offsets), np.abs(high - offsets)))
        return self

    def _install(self, offsets: F32, limits: F32) -> None:
        self.offsets = offsets
        self.limits = limits
        self.scales = limits / np.float32(127)
        self.clipped = 0
        self.dim = len(limits)

    def first(self, dims: int) -> Self:
        """The same for the first dims alone."""
        if dims == self.dim:
            return self
        made = type(self)(self.metric, affine=self.affine)
        made._install(self.offsets[:dims], self.limits[:dims])
        return made

    def widened(self, limits: F64) -> Self:
        """The same with other limits (D,)."""
        made = type(self)(self.metric, affine=self.affine)
        made._install(self.offsets, limits.astype(np.float32))
        return made

    def encode(self, X: Any, *, threads: int | None = None, progress: bool = False) -> I8:
        """Codes (N, D) int8, from -127 to 127. Values beyond the limits are clipped, and counted in `clipped`."""
        clipped: list[int] = []

        def encode(vectors: F32, codes: Array) -> None:
            # A dim without a scale has nothing but code 0; what is far beyond the limits overflows, and is clipped.
            with np.errstate(over="ignore"):
                centred = vectors - self.offsets if self.affine else vectors
                clipped.append(int(np.count_nonzero(np.abs(centred) > self.limits)))
                steps = np.divide(centred, self.scales, out=np.zeros_like(vectors), where=self.scales > 0)
            codes[:] = np.clip(np.rint(steps), -127, 127)

        codes = self._encoded(X, np.int8, encode, threads, progress)
        self.clipped += sum(clipped)
        return codes

    def decode(self, codes: Any) -> F32:
        """Rows (N, D): codes times scales, plus offsets."""
        out = self._scaled_back(self._codes(codes).array)
        if self.affine:
            out += self.offsets
        return out

    def _scaled_back(self, codes: I8) -> F32:
        out: F32 = np.multiply(codes, self.scales, dtype=np.float32, order="C")
        return out

    def _codes(self, codes: Any) -> Matrix:
        self._check_fitted()
        array = np.asarray(codes)
        if array.dtype != np.int8:
            raise TypeError(f"codes: expected int8, got {array.dtype}")
        if array.ndim != 2 or array.shape[1] != self.dim:
            raise ValueError(f"codes: expected shape (n, {self.dim}), got {array.shape}")
        return Matrix.of(array, "codes")

    def norms2(self, codes: Any) -> F32:
        """Squared norms (N,) of decoded rows less their offsets, which l2 scores need; infinite where float32 holds none so large."""
        matrix = self._codes(codes)
        out = np.empty(len(matrix), np.float32)
        for first, last in ranges(len(matrix), block_rows(4 * self.dim)):
            current().dense_norms("float32", [self._scaled_back(matrix.array[first:last])], out[first:last])
        with np.errstate(over="ignore"):
            return out * out

    def prepare(self, queries: F32) -> IntegerQueries:
        """Checked float32 queries (Q, D), of unit length for cosine, as integers.

        ip and cosine: score = factor * (codes . row). l2: score = (offset + norms2[row]) + factor * (codes . row).
        """
        if self.affine and self.metric == "l2":
            # Distances stay as they are when offsets are taken from query and rows alike.
            with np.errstate(over="ignore"):
                queries = queries - self.offsets
        added = np.zeros(len(queries), np.float32)
        if self.affine and self.metric != "l2":
            products = np.empty((len(queries), 1), np.float32)
            current().dense_map(np.ascontiguousarray(queries), self.offsets[np.newaxis], products)
            added = products[:, 0].copy()
        return integer_queries(queries, self.scales, self.metric, added)

    def top_k(self, queries: Any, codes: Any, k: int, *, mask: Any = None, threads: int | None = None) -> Neighbors:
        """The k rows with the best estimated score for every query, ties by row number.

        Parameters
        ----------
        queries : array_like, shape (Q, D) or (D,)
            Floats.
        codes : array_like of int8, shape (N, D)
            What `encode` gave; used in place.
        k, mask, threads
            As for `adaptive_search.top_k`.
        """
        batch, single = self._queries(queries)
        matrix = self._codes(codes)
        allowed = as_mask(mask, len(batch), len(matrix))
        k, threads = as_k(k), as_threads(threads)
        norms2 = self.norms2(matrix.array) if self.metric == "l2" else None
        metric: IntegerMetric = "l2" if self.metric == "l2" else "ip"
        family = IntegerFamily(current(), matrix, *self.prepare(batch), metric, norms2)
        return squeezed(flat.top_k(family, k, allowed, threads), single)

    def state(self) -> dict[str, Array]:
        if not self.fitted:
            return {}
        return {"limits": self.limits} | ({"offsets": self.offsets} if self.affine else {})

    @classmethod
    def from_state(cls, state: Mapping[str, Array], metric: Metric) -> Self:
        limits = taken(state, "limits", np.float32, 1)
        if not 1 <= len(limits) <= MAX_DIM or not np.isfinite(limits).all() or (limits < 0).any():
            raise ValueError("state: expected 'limits' to be finite, not negative, one per dim")
        quantizer = cls(metric, affine="offsets" in state)
        offsets = taken(state, "offsets", np.float32, 1) if quantizer.affine else np.zeros_like(limits)
        if offsets.shape != limits.shape or not np.isfinite(offsets).all():
            raise ValueError("state: expected 'offsets' to be finite, one per dim")
        quantizer._install(offsets.copy(), limits.copy())
        return quantizer
