"""Exact top-k over rows of any family: selective masks, blocks of converted rows, merging. What differs per family is a `Family`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .arrays import Matrix, bits_of, block_rows, ranges
from .backends.protocol import Backend, DenseChunk, IntegerMetric, Rows, Scan
from .execution import queries_at_once, run_ranges, run_scan
from .types import F32, I8, I32, I64, U8, Array, Bool, Metric, Neighbors

SELECTIVE = 8
SELECTIVE_BATCH = 32
"""From one allowed row in this many on downwards, allowed rows are scored one by one instead of scanning all.

A scan of many queries takes less time per query, as rows are read from memory once for all of them."""

SMALL_WORK = 1 << 20
NARROWEST = 16
"""So few products (queries times rows times dims, or 16), a fraction of a millisecond, are computed in one call: sharing costs more."""

SMALL_LOOKUPS = 1 << 24
"""So many entries of tables of 16, looked up in about the same time."""

FEW_QUERIES = 4

CANDIDATE_ENTRIES = 1 << 20
"""Most entries of the candidate lists that a mask is turned into at a time."""


class Family(Protocol):
    """A batch of queries and the rows to be searched, bound to one family of operations.

    Row numbers of `open`ed blocks count from the block's first row.
    """

    @property
    def queries(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def largest(self) -> bool:
        """Whether larger scores are better."""

    @property
    def width(self) -> int:
        """How many numbers a row is scored from, roughly."""

    @property
    def query_bytes(self) -> int:
        """Memory that a query takes while it is searched, beside its candidates."""

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows that are searched one after another, so that only one at a time is held in converted form."""

    def open(self, first: int, last: int) -> Rows: ...
    def scan(self, rows: Rows, first: int, last: int, k: int, allowed: Bool | None) -> Scan:
        """A scan for queries first..last."""

    def rescore(self, rows: Rows, first: int, last: int, candidates: I64, k: int) -> tuple[F32, I64, int]:
        """The best of candidate lists for queries first..last; the third value is a bad row or -1."""

    def check_rows(self, first: int, last: int, allowed: Bool | None) -> None:
        """Raise if a row in first..last, among the allowed ones, holds NaN or infinity. Called when a bad row was met."""


def top_k(family: Family, k: int, allowed: Bool | None = None, threads: int | None = None) -> Neighbors:
    """The k best allowed rows of every query: shape (Q, min(k, m)), m the largest number of rows allowed to any query."""
    most = family.rows if allowed is None else int(np.max(np.count_nonzero(allowed, axis=-1), initial=0))
    k = min(k, most)
    if not k or not family.queries:
        return Neighbors(np.empty((family.queries, k), np.int64), np.empty((family.queries, k), np.float32))
    best: Neighbors | None = None
    for first, last in family.blocks():
        part = None if allowed is None else allowed[..., first:last]
        most = last - first if part is None else int(np.count_nonzero(part, axis=-1).max())
        if most:
            found = _block(family, first, last, min(k, most), part, most, threads)
            best = found if best is None else merged(best, found, k, family.largest)
    if best is None:
        raise RuntimeError("no block holds an allowed row")
    return best


def _block(family: Family, first: int, last: int, k: int, allowed: Bool | None, most: int, threads: int | None) -> Neighbors:
    rows = family.open(first, last)

    def bad_row(_: int) -> None:
        anyone = allowed if allowed is None or allowed.ndim == 1 else np.logical_or.reduce(allowed, axis=0)
        family.check_rows(first, last, anyone)

    selective = SELECTIVE if family.queries <= FEW_QUERIES else SELECTIVE_BATCH
    if allowed is not None and most * selective <= last - first:
        found = _allowed_only(family, rows, k, allowed, most, threads, bad_row)
    else:

        def make(start: int, stop: int) -> Scan:
            # A slice of columns is not contiguous; only one group of queries is copied at a time.
            mask = allowed if allowed is None or allowed.ndim == 1 else np.ascontiguousarray(allowed[start:stop])
            return family.scan(rows, start, stop, k, mask)

        width, query_bytes = family.width, family.query_bytes
        scores, ids = run_scan(rows, make, family.queries, k, width=width, query_bytes=query_bytes, threads=threads, bad_row=bad_row)
        found = Neighbors(ids, scores)
    if first:
        found.ids[found.ids >= 0] += first
    return found


def _allowed_only(
    family: Family, rows: Rows, k: int, allowed: Bool, most: int, threads: int | None, bad_row: Callable[[int], None]
) -> Neighbors:
    """Score the allowed rows (at most ``most`` per query) one by one."""
    scores = np.full((family.queries, k), np.nan, np.float32)
    ids = np.full((family.queries, k), -1, np.int64)
    bad: list[int] = []

    def work(start: int, stop: int) -> None:
        for first, last in ranges(stop - start, max(1, CANDIDATE_ENTRIES // most)):
            some(start + first, start + last)

    def some(start: int, stop: int) -> None:
        lists = _row_lists(allowed if allowed.ndim == 1 else allowed[start:stop], stop - start, most)
        best: Neighbors | None = None
        # In parts, so that Ctrl-C is seen in between.
        for first, last in ranges(most, CANDIDATE_ENTRIES // 4):
            part = np.ascontiguousarray(lists[:, first:last])
            found_scores, found, met = family.rescore(rows, start, stop, part, min(k, last - first))
            bad.append(met)
            one = Neighbors(found, found_scores)
            best = one if best is None else merged(best, one, k, family.largest)
        if best is not None:
            ids[start:stop], scores[start:stop] = best

    run_ranges(work, family.queries, threads=threads)
    met = [row for row in bad if row >= 0]
    if met:
        bad_row(min(met))
    return Neighbors(ids, scores)


def _row_lists(allowed: Bool, queries: int, most: int) -> I64:
    """The allowed rows of every query in rising order, -1 padded: (queries, most)."""
    if allowed.ndim == 1:
        return np.broadcast_to(np.flatnonzero(allowed), (queries, most))
    lists = np.full((queries, most), -1, np.int64)
    owners, rows = np.nonzero(allowed)
    begins = np.searchsorted(owners, np.arange(queries))
    lists[owners, np.arange(len(owners)) - begins[owners]] = rows
    return lists


def merged(one: Neighbors, other: Neighbors, k: int, largest: bool) -> Neighbors:
    """The k best of two results for the same queries over different rows, ties by id, -1 last."""
    ids = np.concatenate([one.ids, other.ids], axis=1)
    scores = np.concatenate([one.scores, other.scores], axis=1)
    order = np.lexsort((ids, -scores if largest else scores, ids < 0), axis=1)[:, :k]
    return Neighbors(np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1))


@dataclass(frozen=True)
class _MatrixFamily:
    """What families over a matrix of rows share."""

    backend: Backend
    matrix: Matrix

    @property
    def rows(self) -> int:
        return len(self.matrix)

    @property
    def width(self) -> int:
        return self.matrix.dim

    @property
    def query_bytes(self) -> int:
        return 4 * self.matrix.dim

    def blocks(self) -> Iterator[tuple[int, int]]:
        return self.matrix.blocks()


@dataclass(frozen=True)
class DenseFamily(_MatrixFamily):
    """Float queries against dense rows of any kind."""

    batch: F32
    metric: Metric

    @property
    def queries(self) -> int:
        return len(self.batch)

    @property
    def largest(self) -> bool:
        return self.metric != "l2"

    def open(self, first: int, last: int) -> Rows:
        return self.bind(self.matrix.part(first, last))

    def bind(self, part: Array) -> Rows:
        return self.backend.dense_rows(self.matrix.kind, [DenseChunk((part,))])

    def scan(self, rows: Rows, first: int, last: int, k: int, allowed: Bool | None) -> Scan:
        return self.backend.dense_scan(rows, self.batch[first:last], k, self.metric, allowed)

    def rescore(self, rows: Rows, first: int, last: int, candidates: I64, k: int) -> tuple[F32, I64, int]:
        return self.backend.dense_rescore(rows, self.batch[first:last], candidates, k, self.metric)

    def at_once(self, k: int) -> Neighbors | None:
        """What `top_k` gives, if the search is small and rows are used in place: one call of the backend, on this thread."""
        matrix = self.matrix
        work = self.queries * len(matrix) * max(NARROWEST, matrix.dim)
        if not matrix.in_place or work > SMALL_WORK or self.queries > queries_at_once(matrix.dim):
            return None
        scores, ids, bad = self.backend.dense_top_k(matrix.kind, bits_of(matrix.array), self.batch, min(k, len(matrix)), self.metric)
        if bad >= 0:
            self.check_rows(0, len(matrix), None)
        return Neighbors(ids, scores)

    def fill(self, rows: Rows, start: int, stop: int, out: F32, first: int, last: int) -> int:
        """Products of queries start..stop with rows first..last, and the smallest bad row or -1."""
        return self.backend.dense_dot(rows, self.batch[start:stop], out, first, last)

    def check_rows(self, first: int, last: int, allowed: Bool | None) -> None:
        row = self.matrix.first_bad(first, last, allowed)
        if row >= 0:
            raise self.matrix.bad_row_error(row)


@dataclass(frozen=True)
class IntegerFamily(_MatrixFamily):
    """int8 queries against int8 rows; scores are factor * (integer) + offset, see `Backend.integer_scan`."""

    batch: I8
    factors: F32
    offsets: F32
    metric: IntegerMetric
    norms2: F32 | None = None
    scales: F32 | None = None

    @property
    def queries(self) -> int:
        return len(self.batch)

    @property
    def largest(self) -> bool:
        return self.metric in ("ip", "ip_scaled")

    def open(self, first: int, last: int) -> Rows:
        norms2, scales = (None if given is None else given[first:last] for given in (self.norms2, self.scales))
        return self.bind(self.matrix.part(first, last), norms2, scales)

    def bind(self, part: Array, norms2: F32 | None = None, scales: F32 | None = None) -> Rows:
        return self.backend.dense_rows("int8", [DenseChunk((part,), norms2, scales)])

    def scan(self, rows: Rows, first: int, last: int, k: int, allowed: Bool | None) -> Scan:
        part = slice(first, last)
        return self.backend.integer_scan(rows, self.batch[part], self.factors[part], self.offsets[part], k, self.metric, allowed)

    def rescore(self, rows: Rows, first: int, last: int, candidates: I64, k: int) -> tuple[F32, I64, int]:
        part = slice(first, last)
        found = self.backend.integer_rescore(rows, self.batch[part], self.factors[part], self.offsets[part], candidates, k, self.metric)
        return *found, -1

    def check_rows(self, first: int, last: int, allowed: Bool | None) -> None:
        """Integers are finite."""


@dataclass(frozen=True)
class HammingFamily:
    """Packed binary queries against packed binary rows."""

    backend: Backend
    codes: U8
    batch: U8
    bits: int

    @property
    def queries(self) -> int:
        return len(self.batch)

    @property
    def rows(self) -> int:
        return len(self.codes)

    @property
    def largest(self) -> bool:
        return False

    @property
    def width(self) -> int:
        return -(-self.bits // 64)

    @property
    def query_bytes(self) -> int:
        return int(self.batch.shape[1])

    def blocks(self) -> Iterator[tuple[int, int]]:
        count, width = self.codes.shape
        return ranges(count, count or 1 if self.codes.strides[1] == 1 else block_rows(width))

    def open(self, first: int, last: int) -> Rows:
        part = self.codes[first:last]
        return self.backend.bit_rows([part if part.strides[1] == 1 else np.ascontiguousarray(part)], self.bits)

    def scan(self, rows: Rows, first: int, last: int, k: int, allowed: Bool | None) -> Scan:
        return self.backend.hamming_scan(rows, self.batch[first:last], k, allowed)

    def rescore(self, rows: Rows, first: int, last: int, candidates: I64, k: int) -> tuple[F32, I64, int]:
        return *self.backend.hamming_rescore(rows, self.batch[first:last], candidates, k), -1

    def fill(self, rows: Rows, start: int, stop: int, out: I32, first: int, last: int) -> int:
        """Distances of queries start..stop to rows first..last; no row is bad."""
        self.backend.hamming_distances(rows, self.batch[start:stop], out, first, last)
        return -1

    def check_rows(self, first: int, last: int, allowed: Bool | None) -> None:
        """Bits are always good."""
