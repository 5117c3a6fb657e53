"""Product quantization: sums of table entries over blocks of 64 rows, tables, nearest codewords, the blocked layout.

A scan adds the float tables in the canonical order, so that its sums *are* the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from ...types import F32, I32, I64, U8, Bool
from .candidates import (
    Allowed,
    Lists,
    NumbaScan,
    Reservoirs,
    candidate,
    candidate_lists,
    empty_results,
    keep_best,
    offer,
    ordered,
    permitted,
)
from .chunks import BASE, PIECES, START, STRIDE, NumbaRows, find_chunk
from .emit import (
    F32 as FLOAT,
    I8 as BYTE,
    I16,
    I32 as INT32,
    I64 as INT,
    LANES,
    Sums,
    Value,
    emitted,
    load,
    loop,
    pick,
    splat,
    store,
    vector,
)
from .jit import Real, address, at, inner, kernel
from .memory import INT8, copy_bytes, load_u8, store_u8

GROUP = 64
"""Rows of a block of codes."""


def _add_entries(b: ir.IRBuilder, sums: Sums, table: Value, indices: list[Value]) -> None:
    for i, index in enumerate(indices):
        sums[i] = b.fadd(sums[i], load(b, FLOAT, table, b.shl(index, INT(2))))


@emitted("none", "i64", "i64", "i64", "i64")
def sums_8(b: ir.IRBuilder, codes: Value, table: Value, subspaces: Value, out: Value) -> None:
    """(codes of sixteen rows of a block, tables of a query, subspaces, out): sixteen canonical sums."""
    sums = Sums(b, FLOAT, LANES, -0.0)
    with loop(b, subspaces) as m:
        line = b.add(codes, b.shl(m, INT(6)))
        _add_entries(b, sums, b.add(table, b.shl(m, INT(10))), [b.zext(load(b, BYTE, line, i), INT) for i in range(LANES)])
    for i in range(LANES):
        store(b, sums[i], out, 4 * i)


@emitted("none", "i64", "i64", "i64", "i64")
def sums_4(b: ir.IRBuilder, codes: Value, table: Value, subspaces: Value, out: Value) -> None:
    """As ``sums_8``, for two codes a byte, the low nibble first."""
    sums = Sums(b, FLOAT, LANES, -0.0)
    with loop(b, b.lshr(subspaces, INT(1))) as pair:
        line = b.add(codes, b.shl(pair, INT(6)))
        both = [b.zext(load(b, BYTE, line, i), INT) for i in range(LANES)]
        start = b.add(table, b.shl(pair, INT(7)))
        _add_entries(b, sums, start, [b.and_(code, INT(15)) for code in both])
        _add_entries(b, sums, b.add(start, INT(64)), [b.lshr(code, INT(4)) for code in both])
    with b.if_then(b.trunc(subspaces, ir.IntType(1))):
        last = b.lshr(subspaces, INT(1))
        line = b.add(codes, b.shl(last, INT(6)))
        odd = [b.and_(b.zext(load(b, BYTE, line, i), INT), INT(15)) for i in range(LANES)]
        _add_entries(b, sums, b.add(table, b.shl(last, INT(7))), odd)
    for i in range(LANES):
        store(b, sums[i], out, 4 * i)


@emitted("i64", "i64", "f32", "f32")
def not_below(b: ir.IRBuilder, sums: Value, sign: Value, cut: Value) -> Value:
    """Bits of the sixteen rows whose key, ``sign * sum``, is not below the cut; NaN is not below anything."""
    keys = b.fmul(load(b, vector(FLOAT), sums), splat(b, sign))
    return b.zext(b.bitcast(b.fcmp_unordered(">=", keys, splat(b, cut)), I16), INT)


class Layout(NamedTuple):
    """Packed codes as kernels take them."""

    table: I64
    subspaces: int
    bits: int


@kernel
def _scan(rows: Layout, blocks: I64, tables: F32, sign: Real, allowed: Allowed, sums: F32, held: Reservoirs) -> None:
    table_bytes = 4 * tables.shape[1] * tables.shape[2]
    sign32 = np.float32(sign)
    for b in range(len(blocks)):
        chunk, first, count = blocks[b, 0], blocks[b, 1], blocks[b, 2]
        start = rows.table[chunk, START]
        base, stride = rows.table[chunk, PIECES + BASE], rows.table[chunk, PIECES + STRIDE]
        for query in range(len(tables)):
            table = at(tables) + query * table_bytes
            for i in range(first, first + count, LANES):
                codes = base + i // GROUP * stride + i % GROUP
                if rows.bits == 8:
                    sums_8(codes, table, rows.subspaces, at(sums))
                else:
                    sums_4(codes, table, rows.subspaces, at(sums))
                valid = (1 << min(LANES, first + count - i)) - 1
                passed = valid & not_below(at(sums), sign32, held.cut_keys[query])
                j = 0
                while passed:
                    if passed & 1 and permitted(allowed, query, start + i + j):
                        offer(held, query, sign32 * sums[j], start + i + j)
                    passed >>= 1
                    j += 1


@kernel
def _rescore(rows: Layout, ids: int, tables: F32, lists: Lists, sign: Real, keys: F32, numbers: I64, scores: F32, found: I64) -> None:
    for query in range(len(tables)):
        n = 0
        for c in range(lists.length):
            number = candidate(lists, query, c)
            if number < 0:
                continue
            chunk = find_chunk(rows.table, number)
            local = number - rows.table[chunk, START]
            codes = rows.table[chunk, PIECES + BASE] + local // GROUP * rows.table[chunk, PIECES + STRIDE] + local % GROUP
            total = np.float32(-0.0)
            for m in range(rows.subspaces):
                place = m * rows.bits // 8
                code = load_u8(codes + GROUP * place) >> m * rows.bits % 8
                total += tables[query, m, code & ((1 << rows.bits) - 1)]
            keys[n] = ordered(np.float32(sign) * total)
            numbers[n] = number
            n += 1
        keep_best(keys, numbers, n, ids, sign, scores[query], found[query])


class CodeRows(NumbaRows):
    """Packed codes and their shape."""

    def __init__(self, chunks: Sequence[tuple[U8, int]], subspaces: int, bits: int, ids: I64 | None) -> None:
        super().__init__(INT8, [(count, (packed,), None) for packed, count in chunks], ids)
        self.layout = Layout(self.table, subspaces, bits)


class CodeScan(NumbaScan):
    def __init__(self, rows: CodeRows, tables: F32, k: int, largest: bool, allowed: Bool | None) -> None:
        super().__init__(rows, len(tables), k, allowed, largest)
        self._layout = rows.layout
        self._tables = np.array(tables)

    def _visit(self, blocks: I64) -> int:
        _scan(self._layout, blocks, self._tables, self._sign, self._allowed, np.empty(LANES, np.float32), self._held)
        return -1


def rescore(rows: CodeRows, tables: F32, candidates: I64, k: int, largest: bool) -> tuple[F32, I64]:
    """See ``Backend.pq_rescore``."""
    scores, found = empty_results(len(tables), k)
    keys, numbers = empty_results(1, candidates.shape[1])
    lists = candidate_lists(candidates)
    _rescore(rows.layout, rows.ids, np.array(tables), lists, 1.0 if largest else -1.0, keys[0], numbers[0], scores, found)
    return scores, found


# --- codewords ---------------------------------------------------------------------------------------------------------
def _codeword_sums(squared: bool, groups: int) -> Callable[..., Any]:
    @emitted("none", "i64", "i64", "i64", "i64", "i64")
    def sums_of(b: ir.IRBuilder, query: Value, codewords: Value, dims: Value, line_bytes: Value, out: Value) -> None:
        sums = Sums(b, vector(FLOAT), groups)
        with loop(b, dims) as s:
            q = splat(b, load(b, FLOAT, query, b.shl(s, INT(2))))
            line = b.add(codewords, b.mul(s, line_bytes))
            for g in range(groups):
                c = load(b, vector(FLOAT), line, 4 * LANES * g)
                if squared:
                    c = b.fsub(q, c)
                sums[g] = b.fadd(sums[g], b.fmul(c, c if squared else q))
        for g in range(groups):
            store(b, sums[g], out, 4 * LANES * g)

    return sums_of


products_16, products_64 = _codeword_sums(False, 1), _codeword_sums(False, 4)
distances_16, distances_64 = _codeword_sums(True, 1), _codeword_sums(True, 4)
"""(query, codewords dim by dim, dims, bytes of a dim, out): canonical sums of a query with 16 or 64 codewords."""


@inner
def _entries(query: int, codewords: F32, squared: bool, out: int) -> None:
    """Sums of a query with all codewords of a subspace, ``codewords`` (S, K)."""
    dims, count = codewords.shape
    start, line = at(codewords), 4 * count
    k = 0
    while k < count:
        if k + 64 <= count:
            if squared:
                distances_64(query, start + 4 * k, dims, line, out + 4 * k)
            else:
                products_64(query, start + 4 * k, dims, line, out + 4 * k)
            k += 64
        else:
            if squared:
                distances_16(query, start + 4 * k, dims, line, out + 4 * k)
            else:
                products_16(query, start + 4 * k, dims, line, out + 4 * k)
            k += 16


@emitted("i64", "i64", "i64")
def lowest(b: ir.IRBuilder, values: Value, count: Value) -> Value:
    """Place of the least of ``count`` floats, a whole number of sixteens; the first one on ties. NaN is never least."""
    best, places = Sums(b, vector(FLOAT), 1, float("inf")), Sums(b, vector(INT32), 1)
    places[0] = steps = ir.Constant(vector(INT32), list(range(LANES)))
    with loop(b, count, LANES) as i:
        value = load(b, vector(FLOAT), values, b.shl(i, INT(2)))
        less = b.fcmp_ordered("<", value, best[0])
        places[0] = b.select(less, b.add(splat(b, b.trunc(i, INT32)), steps), places[0])
        best[0] = b.select(less, value, best[0])
    value, place, width = best[0], places[0], LANES
    while width > 1:
        width //= 2
        low, high = range(width), range(width, 2 * width)
        value_0, value_1, place_0, place_1 = pick(b, value, low), pick(b, value, high), pick(b, place, low), pick(b, place, high)
        less = b.fcmp_ordered("<", value_1, value_0)
        equal = b.and_(b.fcmp_ordered("==", value_1, value_0), b.icmp_signed("<", place_1, place_0))
        less = b.or_(less, equal)
        value, place = b.select(less, value_1, value_0), b.select(less, place_1, place_0)
    return b.sext(b.extract_element(place, INT32(0)), INT)


@kernel
def _tables(queries: F32, codebooks: F32, squared: bool, out: F32) -> None:
    """``queries`` (Q, M * S), ``codebooks`` (M, S, K)."""
    subspaces, dims, count = codebooks.shape
    for m in range(subspaces):
        for query in range(len(queries)):
            target = at(out) + 4 * count * (query * subspaces + m)
            _entries(at(queries) + 4 * (query * queries.shape[1] + m * dims), codebooks[m], squared, target)


@kernel
def _assign(vectors: int, stride: int, width: int, codebooks: F32, rows: F32, entries: F32, out: I32) -> None:
    """``codebooks`` (M, S, K), ``rows`` (part, M * S) zeros. A codebook stays in the cache for all vectors of a part."""
    subspaces, dims, count = codebooks.shape
    for first in range(0, len(out), len(rows)):
        n = min(len(rows), len(out) - first)
        for i in range(n):
            copy_bytes(vectors + (first + i) * stride, at(rows) + 4 * rows.shape[1] * i, 4 * width)
        for m in range(subspaces):
            for i in range(n):
                _entries(at(rows) + 4 * (rows.shape[1] * i + m * dims), codebooks[m], True, at(entries))
                out[first + i, m] = lowest(at(entries), count)


def _by_dim(codebooks: F32) -> F32:
    return np.ascontiguousarray(codebooks.transpose(0, 2, 1), np.float32)


def tables(queries: F32, codebooks: F32, squared: bool, out: F32) -> None:
    """See ``Backend.pq_tables``."""
    subspaces, _, dims = codebooks.shape
    ready = np.zeros((len(queries), subspaces * dims), np.float32)
    ready[:, : queries.shape[1]] = queries
    _tables(ready, _by_dim(codebooks), squared, out)


def assign(vectors: F32, codebooks: F32, out: I32) -> None:
    """See ``Backend.pq_assign``."""
    subspaces, count, dims = codebooks.shape
    rows, entries = np.zeros((64, subspaces * dims), np.float32), np.empty(count, np.float32)
    _assign(address(vectors), vectors.strides[0], vectors.shape[1], _by_dim(codebooks), rows, entries, out)


# --- the blocked layout ------------------------------------------------------------------------------------------------
@kernel
def _interleave(codes: int, row_stride: int, count: int, width: int, packed: int) -> None:
    for row in range(-(-count // GROUP) * GROUP):
        target = packed + row // GROUP * width * GROUP + row % GROUP
        for m in range(width):
            store_u8(target + GROUP * m, load_u8(codes + row * row_stride + m) if row < count else 0)


@kernel
def _separate(packed: int, count: int, width: int, codes: int, row_stride: int) -> None:
    for row in range(count):
        source = packed + row // GROUP * width * GROUP + row % GROUP
        for m in range(width):
            store_u8(codes + row * row_stride + m, load_u8(source + GROUP * m))


def pack(codes: U8, out: U8) -> None:
    """Rows to blocks. The same bytes for 4 and 8 bits: both keep the even subspace in the low nibble."""
    _interleave(address(codes), codes.strides[0], len(codes), codes.shape[1], address(out))


def unpack(packed: U8, out: U8) -> None:
    _separate(address(packed), len(out), out.shape[1], address(out), out.strides[0])
