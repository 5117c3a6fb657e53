"""The vectors themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..backends.protocol import Backend, Bound, DenseChunk, Level, Rows, Source
from ..layout import Slabs
from ..margins import Units
from ..rows import RowStore
from ..types import F32, I64, Metric
from .base import Bounding, Line, ListSource, Representation, Stage


@dataclass(frozen=True, repr=False)
class Full(Stage):
    """The full vectors as stored: canonical scores, hence the exact order of what reaches this stage. Always the last one.

    Examples
    --------
    >>> from adaptive_search import Full
    >>> Full()
    Full()
    """

    def bind(self, slabs: Slabs, metric: Metric, name: str) -> FullRows:
        return FullRows(slabs, metric)


class FullRows(Representation):
    """All slabs of the stored vectors."""

    def __init__(self, slabs: Slabs, metric: Metric) -> None:
        self._slabs = slabs
        self._metric = metric

    @property
    def bytes_per_row(self) -> int:
        return sum(column.row_bytes for column in self._slabs.columns) + 4

    def rows(self, backend: Backend, store: RowStore) -> Rows:
        return backend.dense_rows(self._slabs.kind, dense_chunks(self._slabs, store, self._slabs.dim, "norm"), store.ids)

    def rescore(self, backend: Backend, rows: Rows, queries: F32, candidates: I64, k: int) -> tuple[F32, I64]:
        scores, positions, _ = backend.dense_rescore(rows, queries, candidates, k, self._metric)
        return scores, positions

    def level(self, backend: Backend, rows: Rows, queries: F32, bounding: Bounding, scan: bool) -> tuple[Level, Bound]:
        bound = bounding(self.units(backend, queries))
        return backend.dense_level(rows, queries, self._metric, bound, scan), bound

    def source(self, backend: Backend, rows: Rows, line: Line, lists: ListSource | None = None) -> Source | None:
        return backend.full_source(rows, self._metric)

    def units(self, backend: Backend, queries: F32) -> Units:
        return Units(0.0, 1.0, 1.0)

    @property
    def largest(self) -> bool:
        return self._metric != "l2"


def dense_chunks(slabs: Slabs, store: RowStore, dims: int, norm: str, weights: Sequence[F32 | None] = ()) -> list[DenseChunk]:
    """The first dims of all rows as a backend takes them, with the column of norms that belongs to them, and weights for every chunk."""
    norms = store.used(norm)
    arrays = zip(*(store.used(column.name) for column in slabs.columns), strict=True)
    pieces = [slabs.pieces(own, slice(None), 0, dims) for own in arrays]
    return [DenseChunk(*chunk) for chunk in zip(pieces, norms, weights or [None] * len(norms), strict=True)]
