"""Inverted lists: rows are as good as their lists. See ``protocol.Backend.list_rows``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...arrays import ranges
from ...types import F32, I64, U16
from . import pq
from .chunks import NumbaRows
from .pq import CodeRows


class ListedRows(NumbaRows):
    """The number of every row's list."""

    def __init__(self, chunks: Sequence[U16], centroids: CodeRows, ids: I64 | None) -> None:
        super().__init__(0, [(len(chunk), (chunk[:, None],), None) for chunk in chunks], ids)
        self.centroids = centroids
        self.numbers = np.concatenate([np.empty(0, np.uint16), *chunks])
        if self.numbers.max(initial=0) >= len(centroids):
            raise ValueError("lists: expected numbers below how many there are")


TOGETHER = 64
"""Queries whose keys of all lists are made at a time."""


def keys_of(rows: ListedRows, tables: F32, largest: bool) -> F32:
    """Of all lists (Q, lists), larger ones being better."""
    lists = len(rows.centroids)
    keys = np.empty((len(tables), lists), np.float32)
    for first, last in ranges(len(tables), TOGETHER):
        every = np.tile(np.arange(lists), (last - first, 1))
        ordered, numbers = pq.rescore(rows.centroids, tables[first:last], every, lists, largest, None)
        np.put_along_axis(keys[first:last], numbers, ordered if largest else -ordered, axis=1)
    return keys


def rescore(rows: ListedRows, keys: F32, candidates: I64, k: int, largest: bool) -> tuple[F32, I64]:
    """See ``Backend.list_rescore``; ``keys`` of `keys_of`."""
    named = np.sort(candidates, axis=1)
    named[:, 1:][named[:, 1:] == named[:, :-1]] = -1
    there = named >= 0
    own = np.take_along_axis(keys, rows.numbers[named].astype(np.int64), axis=1) if len(rows) else np.zeros(named.shape, np.float32)
    of_ids = named if rows.id_array is None else np.where(there, rows.id_array[named], 0)
    order = np.lexsort((of_ids, -own, ~there), axis=1)[:, :k]
    found, scores = np.full((len(keys), k), -1, np.int64), np.full((len(keys), k), np.nan, np.float32)
    best = np.take_along_axis(named, order, axis=1)
    own = np.take_along_axis(own, order, axis=1)
    found[:, : best.shape[1]] = best
    scores[:, : best.shape[1]] = np.where(best >= 0, own if largest else -own, np.nan)
    return scores, found
