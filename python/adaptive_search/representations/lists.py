"""Inverted lists: rows that lie together, judged together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np

from ..backends.protocol import Backend, Bound, Level, Rows
from ..execution import Progress
from ..layout import Column, Slabs
from ..margins import Units
from ..quantizers import PackedCodes
from ..quantizers.clustering import clustered
from ..quantizers.kmeans import assign
from ..rows import RowStore
from ..types import F32, I64, Array, Metric
from .base import Bounding, Representation, Stage
from .pq import PQRows, Tables

MOST_LISTS = 65_536
"""What numbers of two bytes can tell apart."""

ROUNDS = 4
"""Of k-means, which begins with rows far apart: more move few rows."""

ROWS_OF_A_LIST = 64
"""Rows that a centroid is learned from, on average, at most."""

MOST_CHAINED = 8_192
"""Lists that are put into an order, which takes time by their square."""


@dataclass(frozen=True, repr=False)
class Lists(Stage):
    """Inverted lists: every row belongs to the list of its nearest centroid, and a query looks at the rows of those lists alone whose
    centroid, with a margin, could still be that of one of its k best (Jegou et al. 2011).

    Which lists that are is decided query by query, and calibrated like any other stage: there is no number of probes to choose. It goes
    before a `PQ` without ``keep``, whose codes are then kept in the order of lists as well, in memory. Centroids are means of what that
    stage codes, and queries are compared with the codes of centroids, by the tables that they need in any case.

    Parameters
    ----------
    lists : int
        2 to 65,536; fifty to two hundred rows to each are a good choice.

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
        return ListRows(self.lists, name)


class ListRows(Representation):
    """The number of every row's list."""

    scans: ClassVar[bool] = False

    def __init__(self, lists: int, name: str, codes: PQRows | None = None, centroids: F32 | None = None) -> None:
        self._lists, self._name = lists, name
        self._codes, self._centroids = codes, centroids
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

    def before(self, following: Representation) -> Self:
        if not isinstance(following, PQRows):
            raise TypeError(f"lists go before codes, not before {following!r}")
        return type(self)(self._lists, self._name, following, self._centroids)

    def fit(self, sample: F32, progress: Progress | None = None) -> Self:
        some = sample[:: max(1, len(sample) // (ROWS_OF_A_LIST * self._lists))]
        points = self._asks.points(np.ascontiguousarray(some))
        return self._with(_chained(clustered(points, self._lists, ROUNDS, 0, progress)))

    def encode(self, vectors: F32) -> dict[str, Array]:
        points, nearest = self._asks.points(vectors), np.empty((len(vectors), 1), np.int32)
        assign(points, self._learned, nearest)
        return {self.columns[0].name: nearest[:, 0].astype(np.uint16)}

    def rows(self, backend: Backend, store: RowStore) -> Rows:
        centroids = self._asks.coded_rows(backend, self._coded)
        return backend.list_rows(store.used(self.columns[0].name), centroids, store.ids)

    def rescore(self, backend: Backend, rows: Rows, queries: F32, candidates: I64, k: int) -> tuple[F32, I64]:
        return backend.list_rescore(rows, self._asks.asked(backend, queries).tables, candidates, k, self.largest)

    @property
    def asks(self) -> Representation:
        return self._asks

    def level(self, backend: Backend, rows: Rows, asked: Tables, bounding: Bounding, scan: bool) -> tuple[Level, Bound]:
        bound = bounding(self._asks.units_of(asked))
        return backend.list_level(rows, asked.tables, self.largest, bound), bound

    @property
    def largest(self) -> bool:
        return self._asks.largest

    def units(self, backend: Backend, queries: F32) -> Units:
        return self._asks.units(backend, queries)

    def named(self, name: str) -> Self:
        return type(self)(self._lists, name, self._codes, self._centroids)

    def state(self) -> dict[str, Array]:
        return {} if self._centroids is None else {"centroids": self._centroids}

    def restore(self, state: Mapping[str, Array]) -> Self:
        centroids, shape = state.get("centroids"), (self._lists, self._asks.dims)
        if centroids is None or centroids.shape != shape or centroids.dtype != np.float32:
            raise ValueError(f"state: expected centroids of shape {shape}, float32")
        if not np.isfinite(centroids).all():
            raise ValueError("state: expected centroids that are finite")
        return self._with(np.ascontiguousarray(centroids))

    @property
    def _asks(self) -> PQRows:
        if self._codes is None:
            raise RuntimeError("the lists do not know the codes that come next")
        return self._codes

    @property
    def _learned(self) -> F32:
        if self._centroids is None:
            raise RuntimeError("the lists are not fitted")
        return self._centroids

    @cached_property
    def _coded(self) -> PackedCodes:
        """Made once, not whenever rows have come."""
        return self._asks.coded(self._learned)

    def _with(self, centroids: F32) -> Self:
        return type(self)(self._lists, self._name, self._codes, centroids)


def _chained(centroids: F32) -> F32:
    """In an order in which each is near the one before, so that the lists of a query lie close together."""
    if len(centroids) > MOST_CHAINED:
        return centroids
    points = np.ldexp(centroids, -np.frexp(np.abs(centroids).max())[1])  # so that no product is too large
    squares, numbers = np.square(points, dtype=np.float64).sum(axis=1), np.arange(len(points))
    nearest = int(squares.argmin())
    for left in range(len(points) - 1, 0, -1):
        # Those in the chain gather behind those that are left.
        for array in (points, squares, numbers):
            array[[nearest, left]] = array[[left, nearest]]
        nearest = int((squares[:left] - 2.0 * (points[:left] @ points[left])).argmin())
    return np.ascontiguousarray(centroids[numbers[::-1]])
