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
from ..validation import check_rotation
from .base import Bounding, Representation, Stage, query_norms, score_units
from .coordinates import ROTATIONS, Coordinates, Rotation

MOST_LISTS = 65_536
"""What numbers of two bytes can tell apart."""

ROUNDS = 10
"""Of k-means: more move few rows, and lists need not be the best there are."""

ROWS_OF_A_LIST = 64
"""Rows that a centroid is learned from, on average, at most."""

MOST_CHAINED = 4_096
"""Lists that are put into an order, which takes time by their square."""

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
    dims : int or None
        Centroids of the first so many dims alone, which a query is compared with in less time; None takes all.
    rotation : {"pca", "learned", "random"} or None
        Take ``dims`` directions instead of the first dims, as `Int8` does.

    Examples
    --------
    >>> from adaptive_search import PQ, Cascade, Full, Lists
    >>> Cascade([Lists(256), PQ(64, bits=4), Full()])
    Cascade([Lists(lists=256), PQ(subspaces=64, bits=4), Full()])
    """

    fit_rows: ClassVar[int] = 10_000

    lists: int
    dims: int | None = None
    rotation: Rotation | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.lists <= MOST_LISTS:
            raise ValueError(f"lists: expected 2 to {MOST_LISTS:,}, got {self.lists}")
        check_rotation(self.rotation, *ROTATIONS)

    def bind(self, slabs: Slabs, metric: Metric, name: str) -> ListRows:
        dims = slabs.dim if self.dims is None else self.dims
        if dims > slabs.dim:
            raise ValueError(f"Lists(dims={dims}) is longer than the vectors, which have {slabs.dim} dims")
        return ListRows(self.lists, Coordinates(metric, slabs.dim, dims, self.rotation), name)


class ListRows(Representation):
    """The number of every row's list."""

    scans: ClassVar[bool] = False

    def __init__(self, lists: int, coordinates: Coordinates, name: str, centroids: F32 | None = None) -> None:
        self._lists, self._coordinates, self._name = lists, coordinates, name
        self._centroids = centroids
        self._matrix = None if centroids is None else self._compared(centroids)
        self.columns = (Column(f"{name}.list", np.dtype(np.uint16), below=lists),)

    @property
    def lists(self) -> int:
        """How many there are."""
        return self._lists

    @property
    def bytes_per_row(self) -> int:
        """None: centroids are read, not rows."""
        return 0

    @property
    def fitted(self) -> bool:
        return self._centroids is not None

    def fit(self, sample: F32) -> Self:
        coordinates = self._coordinates.fit(sample)
        some = sample[:: max(1, len(sample) // (ROWS_OF_A_LIST * self._lists))]
        points = coordinates.of_queries(current(), np.ascontiguousarray(some))
        return self._with(coordinates, _chained(train(points, 1, self._lists, ROUNDS, 0)[0]))

    def encode(self, vectors: F32) -> dict[str, Array]:
        backend, codebook = current(), self._learned[np.newaxis]
        points, nearest = self._coordinates.of_queries(backend, vectors), np.empty((len(vectors), 1), np.int32)

        def work(first: int, last: int) -> None:
            backend.pq_assign(points[first:last], codebook, nearest[first:last])

        run_ranges(work, len(points), grain=GRAIN)
        return {self.columns[0].name: nearest[:, 0].astype(np.uint16)}

    def rows(self, backend: Backend, store: RowStore) -> Rows:
        return backend.list_rows(store.used(self.columns[0].name), self._lists, store.ids)

    def rescore(self, backend: Backend, rows: Rows, queries: F32, candidates: I64, k: int) -> tuple[F32, I64]:
        return backend.list_rescore(rows, self._keys(backend, self._coordinates.of_queries(backend, queries)), candidates, k)

    def level(self, backend: Backend, rows: Rows, queries: F32, bounding: Bounding, scan: bool) -> tuple[Level, Bound]:
        points = self._coordinates.of_queries(backend, queries)
        bound = bounding(self._units(backend, queries, points))
        return backend.list_level(rows, self._keys(backend, points), bound), bound

    def source(self, backend: Backend, rows: Rows, intercept: float, slope: float) -> Source | None:
        own = self._coordinates
        if own.metric == "l2":
            return None
        return backend.list_source(rows, own.metric, own.dim, own.directions, intercept, slope, self._learned)

    @property
    def largest(self) -> bool:
        return True

    def units(self, backend: Backend, queries: F32) -> Units:
        return self._units(backend, queries, self._coordinates.of_queries(backend, queries))

    def named(self, name: str) -> Self:
        return type(self)(self._lists, self._coordinates, name, self._centroids)

    def state(self) -> dict[str, Array]:
        return {} if self._centroids is None else {"centroids": self._centroids} | self._coordinates.state()

    def restore(self, state: Mapping[str, Array]) -> Self:
        coordinates, rest = self._coordinates.restore(state)
        centroids = rest.get("centroids")
        if centroids is None or centroids.shape != (self._lists, coordinates.dims) or centroids.dtype != np.float32:
            raise ValueError(f"state: expected centroids of shape ({self._lists}, {coordinates.dims}), float32")
        if not np.isfinite(centroids).all():
            raise ValueError("state: expected centroids that are finite")
        return self._with(coordinates, np.ascontiguousarray(centroids))

    @property
    def _learned(self) -> F32:
        if self._centroids is None:
            raise RuntimeError("the lists are not fitted")
        return self._centroids

    def _keys(self, backend: Backend, points: F32) -> F32:
        """Of queries' coordinates (Q, d): (Q, lists), finite. For l2: 2 q.c - |c|^2, which is |q|^2 minus the distance."""
        if self._matrix is None:
            raise RuntimeError("the lists are not fitted")
        if self._coordinates.metric == "l2":
            points = np.concatenate([points, np.ones((len(points), 1), np.float32)], axis=1)
        return rotated(backend, points, self._matrix)

    def _units(self, backend: Backend, queries: F32, points: F32) -> Units:
        if self._coordinates.metric != "l2":
            return score_units(backend, queries, self._coordinates.metric)
        squares: F64 = query_norms(backend, points) ** 2
        return Units(squares, 1.0, 1.0)

    def _compared(self, centroids: F32) -> F32:
        """The matrix whose products with coordinates are keys."""
        if self._coordinates.metric != "l2":
            return centroids
        largest = np.finfo(np.float32).max
        squares = np.square(centroids, dtype=np.float64).sum(axis=1, keepdims=True)
        doubled = np.concatenate([2.0 * centroids.astype(np.float64), -squares], axis=1)
        return np.ascontiguousarray(doubled.clip(-largest, largest).astype(np.float32))

    def _with(self, coordinates: Coordinates, centroids: F32) -> Self:
        return type(self)(self._lists, coordinates, self._name, centroids)


def _chained(centroids: F32) -> F32:
    """In an order in which each is near the one before, so that the lists of a query lie close together."""
    if len(centroids) > MOST_CHAINED:
        return centroids
    left = np.ones(len(centroids), np.bool_)
    squares = np.square(centroids, dtype=np.float64).sum(axis=1)
    order = [int(squares.argmin())]
    for _ in range(1, len(centroids)):
        left[order[-1]] = False
        distances = squares - 2.0 * (centroids @ centroids[order[-1]])
        order.append(int(np.where(left, distances, np.inf).argmin()))
    return np.ascontiguousarray(centroids[order])
