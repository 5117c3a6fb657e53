"""Inverted lists: rows that lie together, judged together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from ..backends import current
from ..backends.protocol import Backend, Bound, Level, Rows, Source
from ..execution import run_ranges
from ..layout import Column, Slabs
from ..margins import Units
from ..quantizers.kmeans import train
from ..rotations import rotated
from ..rows import RowStore
from ..types import F32, F64, I64, Array, Metric
from .base import Bounding, Representation, Stage, query_norms, score_units, unit_queries

MOST_LISTS = 65_536
"""What numbers of two bytes can tell apart."""

ROUNDS = 10
"""Of k-means: more move few rows, and lists need not be the best there are."""

ROWS_OF_A_LIST = 64
"""Rows that a centroid is learned from, on average, at most."""

GRAIN = 1_024
"""Rows that are assigned at a time."""


@dataclass(frozen=True, repr=False)
class Lists(Stage):
    """Inverted lists: every row belongs to the list of its nearest centroid, and a query looks at the rows of those lists alone whose
    centroid, with a margin, could still be that of one of its k best (Jegou et al. 2011).

    Which lists that are is decided query by query, and calibrated like any other stage: there is no number of probes to choose. It goes
    before a `PQ` without ``keep``, whose codes are then kept in the order of lists as well, in memory.

    Parameters
    ----------
    lists : int
        2 to 65,536; a hundred or two hundred rows to each are a good choice.

    Examples
    --------
    >>> from adaptive_search import PQ, Cascade, Full, Lists
    >>> Cascade([Lists(256), PQ(64, bits=4), Full()])
    Cascade([Lists(lists=256), PQ(subspaces=64, bits=4), Full()])
    """

    fit_rows: ClassVar[int] = 10_000

    lists: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.lists <= MOST_LISTS:
            raise ValueError(f"lists: expected 2 to {MOST_LISTS:,}, got {self.lists}")

    def bind(self, slabs: Slabs, metric: Metric, name: str) -> ListRows:
        return ListRows(self.lists, slabs.dim, metric, name)


class ListRows(Representation):
    """The number of every row's list."""

    scans: ClassVar[bool] = False

    def __init__(self, lists: int, dim: int, metric: Metric, name: str, centroids: F32 | None = None) -> None:
        self._lists, self._dim, self._metric, self._name = lists, dim, metric, name
        self._centroids = centroids
        self._matrix = None if centroids is None else self._compared(centroids)
        self.columns = (Column(f"{name}.list", np.dtype(np.uint16)),)

    @property
    def fitted(self) -> bool:
        return self._centroids is not None

    def fit(self, sample: F32) -> Self:
        some = sample[:: max(1, len(sample) // (ROWS_OF_A_LIST * self._lists))]
        points = unit_queries(current(), np.ascontiguousarray(some), self._metric)
        return self._with(_chained(train(points, 1, self._lists, ROUNDS, 0)[0]))

    def encode(self, vectors: F32) -> dict[str, Array]:
        backend, codebook = current(), self._learned[np.newaxis]
        points, nearest = unit_queries(backend, np.ascontiguousarray(vectors), self._metric), np.empty((len(vectors), 1), np.int32)

        def work(first: int, last: int) -> None:
            backend.pq_assign(points[first:last], codebook, nearest[first:last])

        run_ranges(work, len(points), grain=GRAIN)
        return {self.columns[0].name: nearest[:, 0].astype(np.uint16)}

    def rows(self, backend: Backend, store: RowStore) -> Rows:
        return backend.list_rows(store.used(self.columns[0].name), self._lists, store.ids)

    def rescore(self, backend: Backend, rows: Rows, queries: F32, candidates: I64, k: int) -> tuple[F32, I64]:
        return backend.list_rescore(rows, self._keys(backend, queries), candidates, k)

    def level(self, backend: Backend, rows: Rows, queries: F32, bounding: Bounding, scan: bool) -> tuple[Level, Bound]:
        bound = bounding(self.units(backend, queries))
        return backend.list_level(rows, self._keys(backend, queries), bound), bound

    def source(self, backend: Backend, rows: Rows, intercept: float, slope: float) -> Source | None:
        if self._metric == "l2":
            return None
        return backend.list_source(rows, self._metric, intercept, slope, self._learned)

    @property
    def largest(self) -> bool:
        return True

    def units(self, backend: Backend, queries: F32) -> Units:
        if self._metric != "l2":
            return score_units(backend, queries, self._metric)
        squares: F64 = query_norms(backend, queries) ** 2
        return Units(squares, 1.0, 1.0)

    def named(self, name: str) -> Self:
        return type(self)(self._lists, self._dim, self._metric, name, self._centroids)

    def state(self) -> dict[str, Array]:
        return {} if self._centroids is None else {"centroids": self._centroids}

    def restore(self, state: Mapping[str, Array]) -> Self:
        centroids = state.get("centroids")
        if centroids is None or centroids.shape != (self._lists, self._dim) or centroids.dtype != np.float32:
            raise ValueError(f"state: expected centroids of shape ({self._lists}, {self._dim}), float32")
        if not np.isfinite(centroids).all():
            raise ValueError("state: expected centroids that are finite")
        return self._with(np.ascontiguousarray(centroids))

    @property
    def _learned(self) -> F32:
        if self._centroids is None:
            raise RuntimeError("the lists are not fitted")
        return self._centroids

    def _keys(self, backend: Backend, queries: F32) -> F32:
        """Of queries (Q, D): (Q, lists), finite. For l2: 2 q.c - |c|^2, which is |q|^2 minus the distance."""
        vectors = unit_queries(backend, np.ascontiguousarray(queries), self._metric)
        if self._matrix is None:
            raise RuntimeError("the lists are not fitted")
        if self._metric == "l2":
            vectors = np.concatenate([vectors, np.ones((len(vectors), 1), np.float32)], axis=1)
        return rotated(backend, vectors, self._matrix)

    def _compared(self, centroids: F32) -> F32:
        """The matrix whose products with queries are keys."""
        if self._metric != "l2":
            return centroids
        largest = np.finfo(np.float32).max
        squares = np.square(centroids, dtype=np.float64).sum(axis=1, keepdims=True)
        doubled = np.concatenate([2.0 * centroids.astype(np.float64), -squares], axis=1)
        return np.ascontiguousarray(doubled.clip(-largest, largest).astype(np.float32))

    def _with(self, centroids: F32) -> Self:
        return type(self)(self._lists, self._dim, self._metric, self._name, centroids)


def _chained(centroids: F32) -> F32:
    """In an order in which each is near the one before, so that the lists of a query lie close together."""
    left = np.ones(len(centroids), np.bool_)
    squares = np.square(centroids, dtype=np.float64).sum(axis=1)
    order = [int(squares.argmin())]
    for _ in range(1, len(centroids)):
        left[order[-1]] = False
        distances = squares - 2.0 * (centroids @ centroids[order[-1]])
        order.append(int(np.where(left, distances, np.inf).argmin()))
    return np.ascontiguousarray(centroids[order])
