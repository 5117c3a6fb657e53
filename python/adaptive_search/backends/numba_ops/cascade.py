"""Adaptive cascades: see ``protocol.Backend.cascade_scan``. The order in which rows are looked at matters to no answer, so whole
blocks are.

Scans and rescorings are those of the families; what is between them is little, and NumPy's. Where no bound can fail the answer is
that of the last stage alone, which is what is asked here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from ...types import F32, F64, I64, Bool
from ..protocol import Bound, Scan
from .candidates import NumbaScan
from .chunks import BLOCK, NumbaRows

QUERIES = 64
"""Queries scanned together: every one has room for all rows of a block."""


@dataclass(frozen=True)
class NumbaLevel:
    """See ``protocol.Level``.

    ``scan(part, k, allowed)`` scans for some queries, ``rescore(part, candidates, k)`` scores their lists; ``sign`` makes raw scores keys.
    It speaks for ``queries`` of them, from ``first`` on.
    """

    rows: NumbaRows
    queries: int
    bound: Bound
    sign: float
    scan: Callable[[slice, int, Bool | None], NumbaScan]
    rescore: Callable[[slice, I64, int], tuple[F32, I64]]
    first: int = 0

    def part(self, first: int, queries: int) -> NumbaLevel:
        """The level for some of its queries."""
        own, margin = slice(first, first + queries), self.bound.margin
        bound = Bound(self.offset[own], self.factor[own], None if margin is None else margin[own])
        return replace(self, bound=bound, queries=queries, first=self.first + first)

    @property
    def offset(self) -> F64:
        """Of its bound, per query."""
        return np.broadcast_to(np.asarray(self.bound.offset), self.queries)

    @property
    def factor(self) -> F64:
        """Of its bound, per query."""
        return np.broadcast_to(np.asarray(self.bound.factor), self.queries)

    def upper(self, keys: F64) -> F64:
        """Of keys (Q, C)."""
        upper = self.bound.of(keys)
        return np.where(np.isnan(upper), np.inf, upper)

    def least_keys(self, part: slice, least: F64) -> F32:
        """What keys of some queries reach whose upper bounds are not below their ``least``."""
        offset, factor = self.offset[part], self.factor[part]
        with np.errstate(invalid="ignore", over="ignore"):
            keys = (least - offset) / factor
            # What the bounds and this may be off by.
            keys -= np.abs(keys) * 2.0**-20 + (np.abs(least) + np.abs(offset)) / factor * 2.0**-50
            rounded = np.where(np.isnan(keys), -np.inf, keys).astype(np.float32)  # NaN: infinities say nothing
        return np.nextafter(rounded, np.float32(-np.inf))

    def keys(self, lists: I64) -> F64:
        """Keys of lists that rise, -1 first, each row once."""
        own = slice(self.first, self.first + self.queries)
        raw, rows = self.rescore(own, np.ascontiguousarray(lists), lists.shape[1])
        order = np.argsort(rows, axis=1, kind="stable")
        keys: F64 = self.sign * np.take_along_axis(raw, order, axis=1).astype(np.float64)
        return keys


@dataclass
class _Best:
    """The k best rows of every query by (value, score, id), as far as they are known; -1 where there is none."""

    values: F64
    keys: F64
    rows: I64

    @classmethod
    def none(cls, queries: int, k: int) -> Self:
        shape = (queries, k)
        return cls(np.full(shape, -np.inf), np.full(shape, -np.inf), np.full(shape, -1, np.int64))

    def add(self, other: _Best, ids: I64 | None) -> None:
        k = self.rows.shape[1]
        values, keys = np.concatenate([self.values, other.values], axis=1), np.concatenate([self.keys, other.keys], axis=1)
        rows = np.concatenate([self.rows, other.rows], axis=1)
        named = rows if ids is None else np.where(rows >= 0, ids[rows], 0)
        order = np.lexsort((named, -keys, -values, rows < 0), axis=1)[:, :k]
        self.values, self.keys = np.take_along_axis(values, order, axis=1), np.take_along_axis(keys, order, axis=1)
        self.rows = np.take_along_axis(rows, order, axis=1)

    def least(self, floors: F64) -> F64:
        if not self.rows.shape[1]:
            return floors
        return np.maximum(floors, np.where(self.rows[:, -1] >= 0, self.values[:, -1], -np.inf))

    def finish(self, sign: float, ids: I64 | None) -> tuple[F32, I64]:
        named = self.rows if ids is None else np.where(self.rows >= 0, ids[self.rows], 0)
        order = np.lexsort((named, -self.keys, self.rows < 0), axis=1)
        rows, keys = np.take_along_axis(self.rows, order, axis=1), np.take_along_axis(self.keys, order, axis=1)
        scores = np.where(rows >= 0, sign * keys + 0.0, np.nan).astype(np.float32)
        return scores, rows


def _refined(levels: Sequence[NumbaLevel], judge: NumbaLevel, lists: I64, upper: F64, least: F64, scored: I64) -> _Best:
    """Listed rows, rising, with upper bounds so far, through levels and judge; counts into ``scored`` (levels + 1, Q)."""
    for number, level in enumerate([*levels, judge]):
        lists = np.where(upper < least[:, None], -1, lists)
        order = np.argsort(lists, axis=1, kind="stable")
        lists, upper = np.take_along_axis(lists, order, axis=1), np.take_along_axis(upper, order, axis=1)
        width = int((lists >= 0).sum(axis=1).max(initial=0))
        lists, upper = lists[:, lists.shape[1] - width :], upper[:, upper.shape[1] - width :]
        if not width:
            return _Best(np.empty((len(lists), 0)), np.empty((len(lists), 0)), lists)
        scored[number] += (lists >= 0).sum(axis=1)
        keys = level.keys(lists)
        if level is not judge:
            upper = np.minimum(upper, level.upper(keys))
    values = np.minimum(judge.upper(keys), upper)
    return _Best(np.where(lists >= 0, values, -np.inf), np.where(lists >= 0, keys, -np.inf), lists)


def rescore(
    levels: Sequence[NumbaLevel], judge: NumbaLevel, candidates: I64, raw: F32 | None, k: int, hard: bool
) -> tuple[F32, I64, F64, I64]:
    """See ``Backend.cascade_rescore``."""
    queries = len(candidates)
    scored = np.zeros((len(levels) + 1, queries), np.int64)
    lists = np.sort(candidates, axis=1)
    lists[:, 1:][lists[:, 1:] == lists[:, :-1]] = -1
    nothing = np.full(queries, -np.inf)
    if hard:
        found = _refined([], judge, np.sort(lists, axis=1), np.full(lists.shape, np.inf), nothing, scored[-1:])
    elif raw is None:
        found = _refined(levels, judge, np.sort(lists, axis=1), np.full(lists.shape, np.inf), nothing, scored)
    else:
        order = np.argsort(candidates, axis=1, kind="stable")
        upper = levels[0].upper(levels[0].sign * np.take_along_axis(raw, order, axis=1).astype(np.float64))
        found = _refined(levels[1:], judge, np.take_along_axis(candidates, order, axis=1), upper, nothing, scored[1:])
    best = _Best.none(queries, k)
    best.add(found, judge.rows.id_array)
    return *best.finish(judge.sign, judge.rows.id_array), best.least(nothing), scored


class CascadeScan:
    """See ``Backend.cascade_scan``, where bounds may fail."""

    bad_row = -1

    def __init__(self, levels: Sequence[NumbaLevel], judge: NumbaLevel, k: int, allowed: Bool | None, floors: F64 | None) -> None:
        self._levels, self._judge, self._k, self._allowed = levels, judge, k, allowed
        self._floors = np.full(judge.queries, -np.inf) if floors is None else floors
        self._best = _Best.none(judge.queries, k)
        self.scored = np.zeros((len(levels) + 1, judge.queries), np.int64)

    def run(self, first: int, last: int) -> None:
        head = self._levels[0]
        queries, ids = head.queries, head.rows.id_array
        for visit in range(first, last):
            least = self._best.least(self._floors)
            parts = [slice(start, min(start + QUERIES, queries)) for start in range(0, queries, QUERIES)]
            found = [self._survivors(head, part, visit, least[part]) for part in parts]
            width = max((rows.shape[1] for _, rows in found), default=0)
            if not width:
                continue
            lists, keys = np.full((queries, width), -1, np.int64), np.full((queries, width), -np.inf)
            for part, (scores, rows) in zip(parts, found, strict=True):
                lists[part, : rows.shape[1]], keys[part, : rows.shape[1]] = rows, head.sign * scores.astype(np.float64)
            upper = np.where(lists >= 0, head.upper(keys), -np.inf)
            order = np.argsort(lists, axis=1, kind="stable")
            lists, upper = np.take_along_axis(lists, order, axis=1), np.take_along_axis(upper, order, axis=1)
            self._best.add(_refined(self._levels[1:], self._judge, lists, upper, least, self.scored[1:]), ids)

    def _survivors(self, head: NumbaLevel, part: slice, visit: int, least: F64) -> tuple[F32, I64]:
        """Raw scores and numbers of the rows of a visit that may matter."""
        allowed = self._allowed if self._allowed is None or self._allowed.ndim == 1 else self._allowed[part]
        scan = head.scan(part, BLOCK, allowed)
        scan.cut(head.least_keys(part, least))
        scan.run(visit, visit + 1)
        scores, rows = scan.finish()
        width = int((rows >= 0).sum(axis=1).max(initial=0))
        return scores[:, :width], rows[:, :width]

    def fork(self) -> CascadeScan:
        return CascadeScan(self._levels, self._judge, self._k, self._allowed, self._floors)

    def merge(self, other: Scan) -> None:
        if not isinstance(other, CascadeScan):
            raise TypeError("other: expected a fork of this scan")
        self._best.add(other._best, self._judge.rows.id_array)
        self.scored += other.scored

    def finish(self) -> tuple[F32, I64]:
        return self._best.finish(self._judge.sign, self._judge.rows.id_array)


class WholeScan:
    """A scan by the last stage alone, for bounds that cannot fail."""

    def __init__(self, judge: NumbaLevel, k: int, allowed: Bool | None, stages: int) -> None:
        self._arguments = (judge, k, allowed, stages)
        self._scan = judge.scan(slice(0, judge.queries), k, allowed)
        self.scored = np.zeros((stages, judge.queries), np.int64)

    @property
    def bad_row(self) -> int:
        return self._scan.bad_row

    def run(self, first: int, last: int) -> None:
        self._scan.run(first, last)
        self.scored[-1] += self._arguments[0].rows.blocks[first:last, 2].sum()

    def fork(self) -> WholeScan:
        return WholeScan(*self._arguments)

    def merge(self, other: Scan) -> None:
        if not isinstance(other, WholeScan):
            raise TypeError("other: expected a fork of this scan")
        self._scan.merge(other._scan)
        self.scored += other.scored

    def finish(self) -> tuple[F32, I64]:
        return self._scan.finish()
