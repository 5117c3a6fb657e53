"""Scalar quantization to signed bytes, with a scale for every row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from .. import flat
from ..arrays import Matrix, block_rows, ranges
from ..backends import current
from ..backends.protocol import IntegerMetric
from ..flat import IntegerFamily
from ..functional import squeezed
from ..types import F32, I8, MAX_DIM, Array, Metric, Neighbors
from ..validation import as_k, as_mask, as_ndarray, as_threads
from .base import Quantizer, taken
from .int8 import QUERY_LIMIT, IntegerQueries, integer_queries

SCALE_BYTES = 4


class RowInt8Quantizer(Quantizer):
    """One signed byte per dim, and a float32 scale per row with which its largest absolute value becomes 127.

    For rows whose lengths differ a lot, and for rows to come that are unlike those seen: nothing is learned but how many dims there are,
    and nothing is ever clipped. A dim that is much larger than the others costs all dims of a row their precision; `Int8Quantizer`, whose
    scales belong to dims, is better there. (Dettmers et al., "LLM.int8(): 8-bit matrix multiplication for transformers at scale", 2022,
    call it vector-wise.)

    The query is rounded to 7 bits, so that a score is an integer product and a few float operations. Scores estimate the metric with the
    error of both roundings; an l2 estimate can be slightly negative.

    Parameters
    ----------
    metric : {"ip", "cosine", "l2"}
        What scores estimate.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> rows = np.float32([[1, 0.5], [-100, 200], [0.25, -2]])
    >>> quantizer = asx.RowInt8Quantizer().fit(rows)
    >>> codes = quantizer.encode(rows)
    >>> codes[:, :2]
    array([[ 127,   64],
           [ -64,  127],
           [  16, -127]], dtype=int8)
    >>> quantizer.scales(codes) * 127
    array([  1., 200.,   2.], dtype=float32)
    >>> quantizer.top_k([1.0, 0.0], codes, k=2).ids
    array([0, 2])
    """

    def __init__(self, metric: Metric = "ip") -> None:
        super().__init__(metric)

    def __repr__(self) -> str:
        return f"RowInt8Quantizer(metric={self.metric!r})"

    @property
    def code_bytes(self) -> int:
        return self.dim + SCALE_BYTES if self.dim else 0

    def fit(self, X: Any, *, progress: bool = False) -> Self:
        """Learn how many dims rows (n, D) have; scales belong to the rows."""
        self.dim = self._sample(X).dim
        return self

    def encode(self, X: Any, *, threads: int | None = None, progress: bool = False) -> I8:
        """Codes (N, D + 4) int8: D numbers from -127 to 127, and the bytes of the row's scale as a little-endian float32."""

        def encode(vectors: F32, codes: Array) -> None:
            scales = np.abs(vectors).max(axis=1) / np.float32(127)
            wide = scales[:, np.newaxis]
            # A row of zeros, or of what is too small to have a scale, has nothing but code 0.
            steps = np.divide(vectors, wide, out=np.zeros_like(vectors), where=wide > 0)
            codes[:, : self.dim] = np.clip(np.rint(steps), -127, 127)
            codes[:, self.dim :] = scales.astype("<f4").view(np.int8).reshape(-1, SCALE_BYTES)

        return self._encoded(X, np.int8, encode, threads, progress)

    def scales(self, codes: Any) -> F32:
        """What the numbers of every code are multiplied with: (N,)."""
        return self._parts(codes)[1]

    def decode(self, codes: Any) -> F32:
        """Rows (N, D): numbers times scales."""
        numbers, scales = self._parts(codes)
        return _decoded(numbers.array, scales)

    def norms2(self, codes: Any) -> F32:
        """Squared norms (N,) of decoded rows, which l2 scores need."""
        numbers, scales = self._parts(codes)
        out = np.empty(len(scales), np.float32)
        for first, last in ranges(len(scales), block_rows(4 * self.dim)):
            current().dense_norms("float32", [_decoded(numbers.array[first:last], scales[first:last])], out[first:last])
        with np.errstate(over="ignore"):
            return out * out

    def prepare(self, queries: F32) -> IntegerQueries:
        """Checked float32 queries (Q, D), of unit length for cosine, as integers.

        ip and cosine: score = factor * (scale[row] * (codes . row)). l2: (offset + norms2[row]) + the same.
        """
        return integer_queries(queries, np.ones(queries.shape[1], np.float32), self.metric, np.zeros(len(queries), np.float32))

    def top_k(self, queries: Any, codes: Any, k: int, *, mask: Any = None, threads: int | None = None) -> Neighbors:
        """The k rows with the best estimated score for every query, ties by row number.

        Parameters
        ----------
        queries : array_like, shape (Q, D) or (D,)
            Floats.
        codes : array_like of int8, shape (N, D + 4)
            What `encode` gave; numbers are used in place, scales are copied.
        k, mask, threads
            As for `adaptive_search.top_k`.

        Raises
        ------
        ValueError
            Also for scales with which scores could be too large for float32.
        """
        batch, single = self._queries(queries)
        numbers, scales = self._parts(codes)
        allowed = as_mask(mask, len(batch), len(numbers))
        k, threads = as_k(k), as_threads(threads)
        norms2 = self.norms2(codes) if self.metric == "l2" else None
        bad = scales > np.finfo(np.float32).max / (128.0 * (QUERY_LIMIT + 1) * self.dim)
        if norms2 is not None:
            bad |= ~np.isfinite(norms2)
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(f"codes: row {row} has a scale too large for scores of float32, {scales[row]}")
        metric: IntegerMetric = "ip_scaled" if norms2 is None else "l2_scaled"
        family = IntegerFamily(current(), numbers, *self.prepare(batch), metric, norms2, scales)
        return squeezed(flat.top_k(family, k, allowed, threads), single)

    def _parts(self, codes: Any) -> tuple[Matrix, F32]:
        """The numbers of codes, as a view, and the scales."""
        self._check_fitted()
        array = as_ndarray(codes, "codes")
        if array.dtype != np.int8:
            raise TypeError(f"codes: expected int8, got {array.dtype}")
        if array.ndim != 2 or array.shape[1] != self.code_bytes:
            raise ValueError(f"codes: expected shape (n, {self.code_bytes}), got {array.shape}")
        scales = np.ascontiguousarray(array[:, self.dim :]).view("<f4")[:, 0].astype(np.float32)
        bad = ~(np.isfinite(scales) & (scales >= 0))
        if bad.any():
            raise ValueError(f"codes: row {int(bad.argmax())} has no scale that `encode` could have given")
        return Matrix.of(array[:, : self.dim], "codes"), scales

    def state(self) -> dict[str, Array]:
        return {"dim": np.array([self.dim], np.int64)} if self.fitted else {}

    @classmethod
    def from_state(cls, state: Mapping[str, Array], metric: Metric) -> Self:
        dims = taken(state, "dim", np.int64, 1)
        if len(dims) != 1 or not 1 <= dims[0] <= MAX_DIM:
            raise ValueError(f"state: expected 'dim' to be one number from 1 to {MAX_DIM}, got {dims[:4].tolist()}")
        quantizer = cls(metric)
        quantizer.dim = int(dims[0])
        return quantizer


def _decoded(numbers: I8, scales: F32) -> F32:
    out: F32 = np.multiply(numbers, scales[:, np.newaxis], dtype=np.float32, order="C")
    return out
