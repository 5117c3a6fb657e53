"""Packed binary codes: differing bits, counted in 64-bit words.

A row of at least eight bytes is read in place: whole words, then, if bits are left over, the eight bytes that end with the last used one,
masked to the bits not yet counted, so that nothing beyond a row is read. Shorter rows are copied. Batches pack queries word by word,
eight queries beside each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from llvmlite import ir

from ...types import F32, I32, I64, U8, Bool
from .candidates import (
    Allowed,
    Lists,
    NumbaScan,
    Reservoirs,
    allowed_rows,
    candidate,
    candidate_lists,
    empty_results,
    keep_best,
    offer,
    permitted,
)
from .chunks import BASE, COUNT, PIECES, START, STRIDE, NumbaRows, find_chunk
from .emit import I8 as BYTE, I64 as INT, Sums, Value, count_ones, emitted, load, loop, splat, store, tree, vector
from .jit import Int, Real, address, at, inner, kernel
from .memory import INT8, copy_bytes, store_i32
from .parts import fill_tile, list_rows, part_rows

WORD = 8
GROUP = 8
"""Queries beside each other."""
TILE_ROWS = 4

FEW = 3
"""Up to so many queries are compared one by one."""


def _difference(b: ir.IRBuilder, x: Value, q: Value) -> Value:
    return count_ones(b, b.xor(x, q))


@emitted("i64", "i64", "i64", "i64", "i64", "i64")
def distance(b: ir.IRBuilder, query: Value, row: Value, words: Value, tail: Value, mask: Value) -> Value:
    """(packed query, row, whole words, offset of the tail, mask of the tail, 0 for none): differing bits."""
    four = vector(INT, 4)
    sums, rest = Sums(b, four, 1), Sums(b, INT, 1)
    quads = b.and_(words, INT(~3))
    with loop(b, b.shl(quads, INT(3)), 4 * WORD) as offset:
        sums[0] = b.add(sums[0], _difference(b, load(b, four, row, offset), load(b, four, query, offset)))
    with loop(b, b.sub(words, quads)) as word:
        offset = b.shl(b.add(quads, word), INT(3))
        rest[0] = b.add(rest[0], _difference(b, load(b, INT, row, offset), load(b, INT, query, offset)))
    with b.if_then(b.icmp_unsigned("!=", mask, INT(0))):
        x = b.and_(load(b, INT, row, tail), mask)
        rest[0] = b.add(rest[0], _difference(b, x, load(b, INT, query, b.shl(words, INT(3)))))
    return b.add(tree(b, sums[0], b.add), rest[0])


@emitted("none", "i64", "i64", "i64", "i64", "i64", "i64")
def distance_tile(b: ir.IRBuilder, addresses: Value, group: Value, words: Value, tail: Value, mask: Value, out: Value) -> None:
    """(addresses of 4 rows, packed group, words, tail, mask, out): out[4, 8] = differing bits of 4 rows with 8 queries."""
    eight = vector(INT, GROUP)
    rows = [load(b, INT, addresses, 8 * i) for i in range(TILE_ROWS)]
    sums = Sums(b, eight, TILE_ROWS)

    def add(at_row: Value, at_group: Value, mask: Value | None = None) -> None:
        q = load(b, eight, group, at_group)
        for i, row in enumerate(rows):
            x = load(b, INT, row, at_row)
            x = x if mask is None else b.and_(x, mask)
            sums[i] = b.add(sums[i], _difference(b, splat(b, x, GROUP), q))

    with loop(b, words) as word:
        add(b.shl(word, INT(3)), b.shl(word, INT(6)))
    with b.if_then(b.icmp_unsigned("!=", mask, INT(0))):
        add(tail, b.shl(words, INT(6)), mask)
    for i in range(TILE_ROWS):
        store(b, sums[i], out, WORD * GROUP * i)


@emitted("i64", "i64", "i64")
def not_above(b: ir.IRBuilder, distances: Value, limits: Value) -> Value:
    """Bits of the eight queries whose distance is not above the limit."""
    eight = vector(INT, GROUP)
    passed = b.icmp_signed("<=", load(b, eight, distances), load(b, eight, limits))
    return b.zext(b.bitcast(passed, BYTE), INT)


class Layout(NamedTuple):
    """Rows of bits as kernels take them."""

    table: I64
    words: int
    """Whole 64-bit words."""
    bytes: int
    """Used bytes of a row."""
    tail: int
    """Offset of the eight bytes that hold what is left."""
    mask: int
    """Which of their bits are counted; 0 if nothing is left."""
    in_place: bool


class Part(NamedTuple):
    """Workspace: rows of one block that are scored together."""

    addresses: I64
    locals: I64
    distances: I64
    """(TILE_ROWS, GROUP)"""
    copies: U8


class Packed(NamedTuple):
    """Queries as kernels take them."""

    rows: I64
    """(Q, words + 1): the last word is the masked tail."""
    groups: I64
    """(groups, words + 1, 8); no group if the queries are few."""


@inner
def _limit(cut: Real) -> Int:
    """The largest distance whose float32 may equal that of the cut; distances above 2**24 are rounded."""
    return np.int64(-np.float64(cut) * (1 + 2.0**-22)) if cut > -1e18 else np.int64(2**62)


@inner
def _list_part(rows: Layout, chunk: int, first: int, last: int, allowed: Allowed, part: Part) -> int:
    n = list_rows(rows.table, chunk, first, last, allowed, part.addresses, part.locals)
    if not rows.in_place:
        for i in range(n):
            copy_bytes(part.addresses[i], at(part.copies) + WORD * i, rows.bytes)
            part.addresses[i] = at(part.copies) + WORD * i
    fill_tile(part.addresses, n, TILE_ROWS)
    return n


@inner
def _consider(rows: Layout, chunk: int, part: Part, i: int, query: int, distance_: int, allowed: Allowed, held: Reservoirs) -> None:
    row = rows.table[chunk, START] + part.locals[i]
    if allowed.shared or permitted(allowed, query, row):
        offer(held, query, -np.float32(distance_), row)


@kernel
def _scan(rows: Layout, blocks: I64, queries: Packed, limits: I64, allowed: Allowed, part: Part, held: Reservoirs) -> None:
    step = len(part.locals)
    line = WORD * (rows.words + 1)
    n_queries, n_groups = len(queries.rows), len(queries.groups)
    for query in range(n_queries):
        limits[query] = _limit(held.cut_keys[query])
    for b in range(len(blocks)):
        chunk, end = blocks[b, 0], blocks[b, 1] + blocks[b, 2]
        for first in range(blocks[b, 1], end, step):
            n = _list_part(rows, chunk, first, min(first + step, end), allowed, part)
            for group in range(n_groups):
                start = group * GROUP
                valid = (1 << min(GROUP, n_queries - start)) - 1
                packed = at(queries.groups) + group * GROUP * line
                for i in range(0, n, TILE_ROWS):
                    distance_tile(at(part.addresses) + 8 * i, packed, rows.words, rows.tail, rows.mask, at(part.distances))
                    for j in range(min(TILE_ROWS, n - i)):
                        passed = valid & not_above(at(part.distances) + WORD * GROUP * j, at(limits) + WORD * start)
                        query = start
                        while passed:
                            if passed & 1:
                                _consider(rows, chunk, part, i + j, query, part.distances[j, query - start], allowed, held)
                                limits[query] = _limit(held.cut_keys[query])
                            passed >>= 1
                            query += 1
            for query in range(min(n_groups * GROUP, n_queries), n_queries):
                packed = at(queries.rows) + query * line
                for i in range(n):
                    found = distance(packed, part.addresses[i], rows.words, rows.tail, rows.mask)
                    if found <= limits[query]:
                        _consider(rows, chunk, part, i, query, found, allowed, held)
                        limits[query] = _limit(held.cut_keys[query])


@kernel
def _rescore(rows: Layout, ids: int, queries: I64, lists: Lists, copy: U8, keys: F32, numbers: I64, scores: F32, found: I64) -> None:
    line = WORD * (rows.words + 1)
    for query in range(len(queries)):
        n = 0
        for c in range(lists.length):
            number = candidate(lists, query, c)
            if number < 0:
                continue
            chunk = find_chunk(rows.table, number)
            row = rows.table[chunk, PIECES + BASE] + (number - rows.table[chunk, START]) * rows.table[chunk, PIECES + STRIDE]
            if not rows.in_place:
                copy_bytes(row, at(copy), rows.bytes)
                row = at(copy)
            keys[n] = -np.float32(distance(at(queries) + query * line, row, rows.words, rows.tail, rows.mask))
            numbers[n] = number
            n += 1
        keep_best(keys, numbers, n, ids, -1.0, scores[query], found[query])


@kernel
def _distances(rows: Layout, queries: Packed, first: int, last: int, part: Part, everything: Allowed, out: int, query_stride: int) -> None:
    step = len(part.locals)
    line = WORD * (rows.words + 1)
    n_queries, n_groups = len(queries.rows), len(queries.groups)
    for chunk in range(len(rows.table)):
        start = rows.table[chunk, START]
        low, high = max(first - start, 0), min(last - start, rows.table[chunk, COUNT])
        for begin in range(low, high, step):
            n = _list_part(rows, chunk, begin, min(begin + step, high), everything, part)
            for group in range(n_groups):
                packed = at(queries.groups) + group * GROUP * line
                for i in range(0, n, TILE_ROWS):
                    distance_tile(at(part.addresses) + 8 * i, packed, rows.words, rows.tail, rows.mask, at(part.distances))
                    for q in range(min(GROUP, n_queries - group * GROUP)):
                        target = out + (group * GROUP + q) * query_stride + 4 * (start + begin + i)
                        for j in range(min(TILE_ROWS, n - i)):
                            store_i32(target + 4 * j, part.distances[j, q])
            for query in range(min(n_groups * GROUP, n_queries), n_queries):
                for i in range(n):
                    found = distance(at(queries.rows) + query * line, part.addresses[i], rows.words, rows.tail, rows.mask)
                    store_i32(out + query * query_stride + 4 * (start + begin + i), found)


class BitRows(NumbaRows):
    """Packed codes and how many of their bits count."""

    def __init__(self, chunks: Sequence[U8], bits: int, ids: I64 | None) -> None:
        super().__init__(INT8, [(len(chunk), (chunk,), None) for chunk in chunks], ids)
        words, used = bits // 64, -(-bits // 8)
        tail = max(used - WORD, 0)
        counted = np.zeros(WORD, np.uint8)
        counted[WORD * words - tail : used - tail] = 0xFF
        if bits % 8:
            counted[used - tail - 1] = 0xFF << (8 - bits % 8) & 0xFF
        mask = int(counted.view(np.int64)[0])
        self.layout = Layout(self.table, words, used, tail, mask, in_place=mask == 0 or used >= WORD)

    def pack(self, codes: U8) -> Packed:
        """Queries word by word, and eight beside each other for all but a last few."""
        layout = self.layout
        padded = np.zeros((len(codes), max(layout.bytes, WORD)), np.uint8)
        padded[:, : layout.bytes] = codes[:, : layout.bytes]
        rows = np.zeros((len(codes), layout.words + 1), np.int64)
        rows[:, : layout.words] = np.ascontiguousarray(padded[:, : WORD * layout.words]).view(np.int64)
        rows[:, layout.words] = np.ascontiguousarray(padded[:, layout.tail : layout.tail + WORD]).view(np.int64)[:, 0] & layout.mask
        rest = len(codes) % GROUP
        tiled = len(codes) - rest if rest <= FEW else len(codes)
        groups = np.zeros((-(-tiled // GROUP), layout.words + 1, GROUP), np.int64)
        for group, lines in enumerate(groups):
            part = rows[group * GROUP : min((group + 1) * GROUP, tiled)]
            lines[:, : len(part)] = part.T
        return Packed(rows, groups)

    def part(self) -> Part:
        count = part_rows(self.layout.bytes, TILE_ROWS)
        return Part(
            addresses=np.empty(count, np.int64),
            locals=np.empty(count, np.int64),
            distances=np.empty((TILE_ROWS, GROUP), np.int64),
            copies=np.zeros((0 if self.layout.in_place else count, WORD), np.uint8),
        )


class HammingScan(NumbaScan):
    def __init__(self, rows: BitRows, codes: U8, k: int, allowed: Bool | None) -> None:
        super().__init__(rows, len(codes), k, allowed, largest=False)
        self._bits = rows
        self._packed = rows.pack(codes)

    def _visit(self, blocks: I64) -> int:
        limits = np.empty(self._queries + GROUP, np.int64)
        _scan(self._bits.layout, blocks, self._packed, limits, self._allowed, self._bits.part(), self._held)
        return -1


def rescore(rows: BitRows, codes: U8, candidates: I64, k: int) -> tuple[F32, I64]:
    """See ``Backend.hamming_rescore``."""
    scores, found = empty_results(len(codes), k)
    keys, numbers = empty_results(1, candidates.shape[1])
    lists = candidate_lists(candidates)
    _rescore(
        rows.layout,
        rows.ids,
        rows.pack(codes).rows,
        lists,
        np.zeros(WORD, np.uint8),
        keys[0],
        numbers[0],
        scores,
        found,
    )
    return scores, found


def distances(rows: BitRows, codes: U8, out: I32, first: int, last: int) -> None:
    """See ``Backend.hamming_distances``."""
    _distances(rows.layout, rows.pack(codes), first, last, rows.part(), allowed_rows(None), address(out), out.strides[0])
