"""Product quantization: scans over blocks of 64 rows.

A scan adds the float tables in the canonical order, so that its sums *are* the scores, or what those of rows with scales are made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from llvmlite import ir

from ...types import F32, F64, I64, Bool
from ..protocol import CodeChunk, Scaling
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
from .chunks import BASE, NORMS, PIECES, START, STRIDE, WEIGHTS, NumbaRows, find_chunk
from .codewords import GROUP
from .emit import (
    F32 as FLOAT,
    I8 as BYTE,
    I16,
    I64 as INT,
    LANES,
    Sums,
    Value,
    emitted,
    load,
    loop,
    splat,
    store,
    vector,
)
from .jit import Real, at, inner, kernel
from .memory import INT8, load_f32, load_u8


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


class Terms(NamedTuple):
    """`Scaling` as kernels take it; arrays are empty where sums are scores."""

    scaled: bool
    offset: F64
    base: F64
    step: F64
    weight: F64


@inner
def _score(rows: Layout, chunk: int, local: int, terms: Terms, query: int, sign: Real, total: Real) -> Real:
    """The canonical score of a row, from the sum of its entries."""
    if not terms.scaled:
        return total
    scale = np.float64(load_f32(rows.table[chunk, WEIGHTS] + 4 * local))
    said = scale * (terms.base[query] + terms.step[query] * np.float64(total))
    start = terms.offset[query]
    if rows.table[chunk, NORMS]:
        start += terms.weight[query] * np.float64(load_f32(rows.table[chunk, NORMS] + 4 * local))
    # A distance that rounds to zero from below is +0, as it is for native code.
    return np.float32(start + said) if sign > 0 else np.float32(start - said) + np.float32(0)


@kernel
def _scan(rows: Layout, blocks: I64, tables: F32, terms: Terms, sign: Real, allowed: Allowed, sums: F32, held: Reservoirs) -> None:
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
                n = min(LANES, first + count - i)
                if terms.scaled:
                    for j in range(n):
                        sums[j] = _score(rows, chunk, i + j, terms, query, sign, sums[j])
                valid = (1 << n) - 1
                passed = valid & not_below(at(sums), sign32, held.cut_keys[query])
                j = 0
                while passed:
                    if passed & 1 and permitted(allowed, query, start + i + j):
                        offer(held, query, sign32 * sums[j], start + i + j)
                    passed >>= 1
                    j += 1


@kernel
def _rescore(
    rows: Layout,
    ids: int,
    tables: F32,
    terms: Terms,
    lists: Lists,
    sign: Real,
    keys: F32,
    numbers: I64,
    scores: F32,
    found: I64,
) -> None:
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
            keys[n] = ordered(np.float32(sign) * _score(rows, chunk, local, terms, query, sign, total))
            numbers[n] = number
            n += 1
        keep_best(keys, numbers, n, ids, sign, scores[query], found[query])


def _terms(scaling: Scaling | None) -> Terms:
    nothing = np.empty(0)
    return Terms(False, *[nothing] * 4) if scaling is None else Terms(True, *(np.array(values) for values in scaling))


class CodeRows(NumbaRows):
    """Packed codes and their shape."""

    def __init__(self, chunks: Sequence[CodeChunk], subspaces: int, bits: int, ids: I64 | None) -> None:
        parts = [(chunk.rows, (chunk.packed,), chunk.terms) for chunk in chunks]
        super().__init__(INT8, parts, ids, [chunk.scales for chunk in chunks])
        self.layout = Layout(self.table, subspaces, bits)


class CodeScan(NumbaScan):
    def __init__(self, rows: CodeRows, tables: F32, k: int, largest: bool, allowed: Bool | None, scaling: Scaling | None) -> None:
        super().__init__(rows, len(tables), k, allowed, largest)
        self._layout = rows.layout
        self._tables = np.array(tables)
        self._terms = _terms(scaling)

    def _visit(self, blocks: I64) -> int:
        sums = np.empty(LANES, np.float32)
        _scan(self._layout, blocks, self._tables, self._terms, self._sign, self._allowed, sums, self._held)
        return -1


def rescore(rows: CodeRows, tables: F32, candidates: I64, k: int, largest: bool, scaling: Scaling | None) -> tuple[F32, I64]:
    """See ``Backend.pq_rescore``."""
    scores, found = empty_results(len(tables), k)
    keys, numbers = empty_results(1, candidates.shape[1])
    lists, sign = candidate_lists(candidates), 1.0 if largest else -1.0
    _rescore(rows.layout, rows.ids, np.array(tables), _terms(scaling), lists, sign, keys[0], numbers[0], scores, found)
    return scores, found
