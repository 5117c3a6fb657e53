"""Inverted lists: rows are as good as their lists. See ``protocol.Backend.list_rows``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...types import F32, I64, U16
from .chunks import NumbaRows


class ListedRows(NumbaRows):
    """The number of every row's list."""

    def __init__(self, chunks: Sequence[U16], lists: int, ids: I64 | None) -> None:
        super().__init__(0, [(len(chunk), (chunk[:, None],), None) for chunk in chunks], ids)
        self.numbers = np.concatenate([np.empty(0, np.uint16), *chunks])
        if self.numbers.max(initial=0) >= lists:
            raise ValueError("lists: expected numbers below how many there are")


def rescore(rows: ListedRows, keys: F32, candidates: I64, k: int) -> tuple[F32, I64]:
    """See ``Backend.list_rescore``."""
    lists = np.sort(candidates, axis=1)
    lists[:, 1:][lists[:, 1:] == lists[:, :-1]] = -1
    there = lists >= 0
    own = np.take_along_axis(keys, rows.numbers[lists].astype(np.int64), axis=1) if len(rows) else np.zeros(lists.shape, np.float32)
    named = lists if rows.id_array is None else np.where(there, rows.id_array[lists], 0)
    order = np.lexsort((named, -own, ~there), axis=1)[:, :k]
    found, scores = np.full((len(keys), k), -1, np.int64), np.full((len(keys), k), np.nan, np.float32)
    best = np.take_along_axis(lists, order, axis=1)
    found[:, : best.shape[1]] = best
    scores[:, : best.shape[1]] = np.where(best >= 0, np.take_along_axis(own, order, axis=1), np.nan)
    return scores, found
