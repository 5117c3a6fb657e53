"""The top-k in progress: per query a reservoir of canonically scored rows, cut to k whenever it is full.

A key is larger for better rows and never NaN; ties go to the smaller id.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np

from ...types import F32, I64, Bool
from ..protocol import Scan
from .chunks import NumbaRows, row_id
from .jit import Int, Real, address, inner, kernel
from .memory import load_i64, load_u8


@inner
def better(key: Real, id_: int, other_key: Real, other_id: int) -> bool:
    """Whether (key, id) comes strictly before the other one."""
    return key > other_key or (key == other_key and id_ < other_id)


@inner
def ordered(key: Real) -> Real:
    """A NaN, from a sum of finite terms that overflowed both ways, counts as the worst score."""
    return np.float32(-np.inf) if np.isnan(key) else key


@inner
def _swap(keys: F32, rows: I64, i: int, j: int) -> None:
    keys[i], keys[j] = keys[j], keys[i]
    rows[i], rows[j] = rows[j], rows[i]


@inner
def _partition(keys: F32, rows: I64, low: int, high: int, ids: int) -> int:
    """Split [low, high] around the median of three; returns the pivot's place. Stops at equal entries, so repeats stay balanced.

    Long parts take their three from scattered places: rows often come in runs, whose ends and middles are all extreme.
    """
    middle = (low + high) // 2
    span = high - low + 1
    if span > 40:
        for place, factor in ((low, 40503), (middle, 30011), (high, 21001)):
            _swap(keys, rows, place, low + (factor * (low + high)) % span)
    for i, j in ((low, middle), (low, high), (middle, high)):
        if better(keys[j], row_id(ids, rows[j]), keys[i], row_id(ids, rows[i])):
            _swap(keys, rows, i, j)
    _swap(keys, rows, middle, low + 1)
    key, id_ = keys[low + 1], row_id(ids, rows[low + 1])
    i, j = low + 1, high
    while True:
        i += 1
        while better(keys[i], row_id(ids, rows[i]), key, id_):
            i += 1
        j -= 1
        while better(key, id_, keys[j], row_id(ids, rows[j])):
            j -= 1
        if i >= j:
            break
        _swap(keys, rows, i, j)
    _swap(keys, rows, low + 1, j)
    return j


@inner
def _insertion_sort(keys: F32, rows: I64, low: int, high: int, ids: int) -> None:
    for i in range(low + 1, high + 1):
        key, row = keys[i], rows[i]
        id_ = row_id(ids, row)
        j = i
        while j > low and better(key, id_, keys[j - 1], row_id(ids, rows[j - 1])):
            keys[j], rows[j] = keys[j - 1], rows[j - 1]
            j -= 1
        keys[j], rows[j] = key, row


@inner
def select(keys: F32, rows: I64, count: int, k: int, ids: int) -> None:
    """Move the k best of the first ``count`` to the front, the k-th best to place k - 1."""
    low, high = 0, count - 1
    while high - low > 8:
        place = _partition(keys, rows, low, high, ids)
        if place == k - 1:
            return
        if place > k - 1:
            high = place - 1
        else:
            low = place + 1
    _insertion_sort(keys, rows, low, high, ids)


@inner
def sort(keys: F32, rows: I64, count: int, ids: int) -> None:
    """Best first. The larger part waits, so 64 places are enough."""
    waiting = np.empty((64, 2), np.int64)
    depth = 0
    low, high = 0, count - 1
    while True:
        while high - low > 12:
            place = _partition(keys, rows, low, high, ids)
            if place - low > high - place:
                waiting[depth, 0], waiting[depth, 1] = low, place - 1
                low = place + 1
            else:
                waiting[depth, 0], waiting[depth, 1] = place + 1, high
                high = place - 1
            depth += 1
        _insertion_sort(keys, rows, low, high, ids)
        if depth == 0:
            return
        depth -= 1
        low, high = waiting[depth, 0], waiting[depth, 1]


class Reservoirs(NamedTuple):
    """The candidates of all queries of a scan, as kernels take them."""

    keys: F32
    """(Q, capacity)"""
    rows: I64
    """(Q, capacity)"""
    counts: I64
    """(Q,) candidates held"""
    cut_keys: F32
    """(Q,) key of the k-th best at the last cut"""
    cut_ids: I64
    """(Q,) its id; before the first cut, one that no row is worse than"""
    k: int
    ids: int
    """Address of the ids of the rows, or 0."""


class Allowed(NamedTuple):
    """A caller's mask in place, as kernels take it."""

    address: int
    """0 allows everything."""
    query_stride: int
    row_stride: int
    shared: bool
    """Whether it is the same for all queries."""


def allowed_rows(mask: Bool | None) -> Allowed:
    """A mask of shape (N,) or (Q, N), any strides; None allows everything."""
    if mask is None:
        return Allowed(0, 0, 0, True)
    shared = mask.ndim == 1
    return Allowed(address(mask), 0 if shared else mask.strides[0], mask.strides[-1], shared)


@inner
def permitted(allowed: Allowed, query: int, row: int) -> bool:
    return allowed.address == 0 or load_u8(allowed.address + query * allowed.query_stride + row * allowed.row_stride) != 0


class Lists(NamedTuple):
    """Candidate lists of a caller in place, as kernels take them."""

    address: int
    query_stride: int
    length: int


def candidate_lists(candidates: I64) -> Lists:
    """Lists of shape (Q, C)."""
    return Lists(address(candidates), candidates.strides[0], candidates.shape[1])


@inner
def candidate(lists: Lists, query: int, c: int) -> Int:
    """A row number, or below zero for none."""
    return load_i64(lists.address + query * lists.query_stride + 8 * c)


@inner
def offer(to: Reservoirs, query: int, key: Real, row: int) -> bool:
    """Keep a row unless k better ones are known; whether the cut moved."""
    key = ordered(key)
    if better(to.cut_keys[query], to.cut_ids[query], key, row_id(to.ids, row)):
        return False
    count = to.counts[query]
    to.keys[query, count] = key
    to.rows[query, count] = row
    to.counts[query] = count + 1
    if count + 1 < to.keys.shape[1]:
        return False
    select(to.keys[query], to.rows[query], count + 1, to.k, to.ids)
    to.counts[query] = to.k
    to.cut_keys[query] = to.keys[query, to.k - 1]
    to.cut_ids[query] = row_id(to.ids, to.rows[query, to.k - 1])
    return True


@kernel
def _merge(to: Reservoirs, other: Reservoirs) -> None:
    for query in range(len(other.counts)):
        for i in range(other.counts[query]):
            offer(to, query, other.keys[query, i], other.rows[query, i])


@kernel
def _finish(held: Reservoirs, sign: Real, scores: F32, found: I64) -> None:
    for query in range(len(held.counts)):
        keys, rows, count = held.keys[query], held.rows[query], held.counts[query]
        if count > held.k:
            select(keys, rows, count, held.k, held.ids)
            count = held.k
        sort(keys, rows, count, held.ids)
        for i in range(count):
            scores[query, i] = np.float32(sign) * keys[i]
            found[query, i] = rows[i]


class NumbaScan:
    """What all families share. A family adds packed queries and ``_visit``."""

    def __init__(self, rows: NumbaRows, queries: int, k: int, allowed: Bool | None, largest: bool) -> None:
        self._rows = rows
        self._mask = allowed
        self._allowed = allowed_rows(allowed)
        self._queries = queries
        self._k = k
        self._sign = 1.0 if largest else -1.0
        self._cut = np.full(queries, -np.inf, np.float32)
        self._share = 1
        # The highest cut of all forks: k rows that one of them holds reach it. A write that another one overtakes does no harm.
        self._known = self._cut.copy()
        self._reset()

    def _reset(self) -> None:
        k = min(self._k, len(self._rows))
        shape = (self._queries, min(2 * k + 64, len(self._rows) + 1))
        self.bad_row = -1
        self._held = Reservoirs(
            keys=np.empty(shape, np.float32),
            rows=np.empty(shape, np.int64),
            counts=np.zeros(self._queries, np.int64),
            cut_keys=self._cut.copy(),
            cut_ids=np.full(self._queries, np.iinfo(np.int64).max),
            k=k,
            ids=self._rows.ids,
        )

    @property
    def scored(self) -> I64:
        return np.empty((0, self._queries), np.int64)

    def cut(self, keys: F32) -> None:
        """Rows whose key is below that of their query (Q,) are not wanted."""
        self._cut = keys
        self._known = keys.copy()
        self._held.cut_keys[:] = keys

    def sample(self, share: int) -> None:
        """One of so many runs of 64 rows is enough."""
        self._share = share

    def run(self, first: int, last: int) -> None:
        if self._queries and first < last:
            cut = self._held.cut_keys
            raised = self._known > cut
            cut[raised] = self._known[raised]
            self._held.cut_ids[raised] = np.iinfo(np.int64).max
            self._note(self._visit(self._rows.blocks[first:last] if self._share == 1 else self._rows.sample(first, last, self._share)))
            np.maximum(self._known, cut, out=self._known)

    def _visit(self, blocks: I64) -> int:
        """Score the rows of the blocks; smallest bad row or -1."""
        raise NotImplementedError

    def _note(self, bad_row: int) -> None:
        if bad_row >= 0 and (self.bad_row < 0 or bad_row < self.bad_row):
            self.bad_row = bad_row

    def fork(self) -> Self:
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made._reset()
        return made

    def merge(self, other: Scan) -> None:
        if not isinstance(other, NumbaScan):
            raise TypeError(f"merge: expected a fork of this scan, got {type(other).__name__}")
        _merge(self._held, other._held)
        self._note(other.bad_row)

    def finish(self) -> tuple[F32, I64]:
        scores = np.full((self._queries, self._k), np.nan, np.float32)
        found = np.full((self._queries, self._k), -1, np.int64)
        _finish(self._held, self._sign, scores, found)
        return scores, found


@inner
def keep_best(keys: F32, rows: I64, count: int, ids: int, sign: Real, scores: F32, found: I64) -> None:
    """Sorted, each row once, into one query's ``scores`` and ``found``; -1 and NaN beyond."""
    sort(keys, rows, count, ids)
    kept = 0
    for i in range(count):
        if kept == len(scores):
            break
        if i == 0 or rows[i] != rows[i - 1]:
            scores[kept] = np.float32(sign) * keys[i]
            found[kept] = rows[i]
            kept += 1
    scores[kept:] = np.nan
    found[kept:] = -1


def empty_results(queries: int, k: int) -> tuple[F32, I64]:
    return np.empty((queries, k), np.float32), np.empty((queries, k), np.int64)
