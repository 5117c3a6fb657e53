"""What all quantizers have in common: the verbs, checks, and walking over a caller's rows in bounded blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from ..arrays import Matrix, block_rows, finite_rows, float32, ranges
from ..backends import current
from ..execution import progress_bar, run_ranges
from ..types import F32, I64, Array, Metric, Neighbors
from ..validation import as_metric, as_queries, as_rows, as_threads

Encode = Callable[[F32, Array], None]

SAMPLE_BYTES = 256 << 20
"""Memory of the rows that are learned from, at most, as float32."""


class Quantizer(ABC):
    """Codes of a fixed number of bytes per row.

    Attributes
    ----------
    metric : str
        What `top_k` estimates. With "cosine", rows and queries are scaled to unit length first.
    dim : int
        Dims of the rows it was fitted to; 0 before.
    code_bytes : int
        Bytes of a row's code.
    """

    def __init__(self, metric: Metric) -> None:
        self.metric = as_metric(metric)
        self.dim = 0

    @property
    def fitted(self) -> bool:
        """Whether `fit` was called, so that rows can be encoded."""
        return self.dim > 0

    @property
    @abstractmethod
    def code_bytes(self) -> int: ...

    @abstractmethod
    def fit(self, X: Any, *, progress: bool = False) -> Self:
        """Learn from rows (n, D), n from 1 up. A quantizer that was fitted before starts anew; one whose fit fails stays as it was."""

    @abstractmethod
    def encode(self, X: Any, *, threads: int | None = None, progress: bool = False) -> Array:
        """Codes (N, code_bytes) of rows (N, D)."""

    @abstractmethod
    def decode(self, codes: Any) -> F32:
        """Approximate rows (N, D) from row-major codes; with metric "cosine", of the rows scaled to unit length."""

    @abstractmethod
    def top_k(self, queries: Any, codes: Any, k: int, *, mask: Any = None, threads: int | None = None) -> Neighbors:
        """The k rows with the best estimated score for every query (Q, D) or (D,), in the metric's own units, ties by row number."""

    @abstractmethod
    def state(self) -> dict[str, Array]:
        """What was learned, as arrays; empty before `fit`."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, Array], metric: Metric) -> Self:
        """A fitted quantizer from what `state` gave; a `ValueError` if the arrays cannot be that."""

    # --- shared by the implementations ---------------------------------------------------------------------------------

    def _sample(self, X: Any) -> Matrix:
        matrix = as_rows(X, "X")
        if not len(matrix):
            raise ValueError(f"X: expected at least one row to fit to, got shape {matrix.array.shape}")
        bad = matrix.first_bad(0, len(matrix))
        if bad >= 0:
            raise matrix.bad_row_error(bad)
        return matrix

    def _rows(self, X: Any) -> Matrix:
        self._check_fitted()
        matrix = as_rows(X, "X")
        if matrix.dim != self.dim:
            raise ValueError(f"X: expected {self.dim} dims, got shape {matrix.array.shape}")
        return matrix

    def _queries(self, queries: Any) -> tuple[F32, bool]:
        self._check_fitted()
        batch, single = as_queries(queries, self.dim)
        return self._scaled(batch), single

    def _encoded(self, X: Any, out_type: type[np.generic], encode: Encode, threads: int | None, progress: bool) -> Array:
        """Codes of all rows: ``encode(vectors, codes)`` fills in those of some."""
        matrix = self._rows(X)
        threads = as_threads(threads)
        codes = np.empty((len(matrix), self.code_bytes), out_type)
        for first, last, vectors in self._blocks(matrix, progress, "Encoding"):
            part = codes[first:last]

            def work(begin: int, end: int, vectors: F32 = vectors, part: Array = part) -> None:
                encode(vectors[begin:end], part[begin:end])

            run_ranges(work, last - first, threads=threads, grain=256)
        return codes

    def _blocks(self, matrix: Matrix, progress: bool, title: str) -> Iterator[tuple[int, int, F32]]:
        """Rows in blocks of float32, finite, of unit length for cosine."""
        with progress_bar(progress, title) as report:
            for first, last in ranges(len(matrix), block_rows(4 * matrix.dim)):
                yield first, last, self._vectors(matrix, np.arange(first, last))
                if report is not None:
                    report(last, len(matrix))

    def _vectors(self, matrix: Matrix, rows: I64) -> F32:
        """Some rows of a matrix, rising, as float32, finite, of unit length for cosine."""
        consecutive = len(rows) == rows[-1] - rows[0] + 1
        array = matrix.array[rows[0] : rows[-1] + 1] if consecutive else matrix.array[rows]
        vectors = np.ascontiguousarray(float32(array))
        finite = finite_rows(vectors)
        if not finite.all():
            raise matrix.bad_row_error(int(rows[(~finite).argmax()]))
        return self._scaled(vectors)

    def _scaled(self, vectors: F32) -> F32:
        if self.metric != "cosine":
            return vectors
        out = np.empty_like(vectors)
        current().dense_unit(vectors, out)
        return out

    def _check_fitted(self) -> None:
        if not self.fitted:
            raise ValueError(f"{type(self).__name__} is not fitted: call fit(X) first")


def some_rows(count: int, most: int, seed: int) -> I64:
    """All of so many row numbers, or ``most`` random ones, rising."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def taken(state: Mapping[str, Array], name: str, dtype: type[np.generic], ndim: int) -> Array:
    """One array of a state, checked."""
    array = state.get(name)
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != ndim:
        came = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else repr(array)
        raise ValueError(f"state: expected {name!r} to be a {ndim}-D array of {np.dtype(dtype)}, got {came}")
    return array
