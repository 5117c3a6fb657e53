"""int8 rows with int8 queries: exact integer products, then one float32 formula.

Queries are packed as int16, so that a product of two int16 pairs is one instruction (pmaddwd) where there is one. Widths are whole
numbers of 32; narrower rows and rows of several pieces are copied and padded with zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from ...types import F32, F64, I8, I64, Array, Bool
from ..protocol import IntegerMetric
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
    ordered,
    permitted,
)
from .chunks import BASE, BLOCK, NORMS, PIECE_COLUMNS, PIECES, START, STRIDE, WEIGHTS, WIDTH, NumbaRows, find_chunk
from .emit import I8 as BYTE, I16, I32, I64 as INT, Sums, Value, emitted, load, loop, pick, store, tree, vector
from .jit import Real, at, inner, kernel
from .memory import copy_bytes, load_f32, load_i64, store_u8
from .parts import fill_tile, list_rows, part_rows

IP, L2, L2_EXACT = range(3)
_CODES: dict[IntegerMetric, int] = {"ip": IP, "l2": L2, "ip_scaled": IP, "l2_scaled": L2, "l2_exact": L2_EXACT}

STEP = 32
TILE_ROWS, TILE_QUERIES = 2, 4


def _pairs(b: ir.IRBuilder, x: Value, y: Value) -> Value:
    """Sixteen sums of two int16 products; in int32 they cannot overflow, nor can 1024 of them (32,768 dims)."""
    wide = vector(I32)
    even, odd = range(0, STEP, 2), range(1, STEP, 2)
    products = [b.mul(b.sext(pick(b, x, half), wide), b.sext(pick(b, y, half), wide)) for half in (even, odd)]
    return b.add(*products)


def _products(rows: int, queries: int) -> Callable[..., Any]:
    @emitted("none", "i64", "i64", "i64", "i64", "i64")
    def products(b: ir.IRBuilder, addresses: Value, packed: Value, query_bytes: Value, width: Value, out: Value) -> None:
        row_at = [load(b, INT, addresses, 8 * i) for i in range(rows)]
        query_at = [b.add(packed, b.mul(query_bytes, INT(j))) for j in range(queries)]
        sums = Sums(b, vector(I32), rows * queries)
        with loop(b, width, STEP) as dim:
            x = [b.sext(load(b, vector(BYTE, STEP), address, dim), vector(I16, STEP)) for address in row_at]
            for j, address in enumerate(query_at):
                q = load(b, vector(I16, STEP), address, b.shl(dim, INT(1)))
                for i in range(rows):
                    sums[i * queries + j] = b.add(sums[i * queries + j], _pairs(b, x[i], q))
        for place in range(rows * queries):
            store(b, b.sext(tree(b, sums[place], b.add), INT), out, 8 * place)

    return products


products_1 = _products(1, 1)
products_tile = _products(TILE_ROWS, TILE_QUERIES)
"""(addresses of rows, packed queries, bytes of a packed query, width, out): out[rows, queries] = exact products."""


@emitted("i64", "i64", "i64")
def squares(b: ir.IRBuilder, row: Value, width: Value) -> Value:
    sums = Sums(b, vector(I32), 1)
    with loop(b, width, STEP) as dim:
        x = b.sext(load(b, vector(BYTE, STEP), row, dim), vector(I16, STEP))
        sums[0] = b.add(sums[0], _pairs(b, x, x))
    return b.sext(tree(b, sums[0], b.add), INT)


class Layout(NamedTuple):
    """int8 rows as kernels take them."""

    table: I64
    pieces: int
    padded: int
    """The width in whole steps."""
    in_place: bool


class Part(NamedTuple):
    """Workspace: rows of one block that are scored together."""

    addresses: I64
    locals: I64
    squares: I64
    norms2: F32
    scales: F32
    """1 where rows have none."""
    products: I64
    """(TILE_ROWS, TILE_QUERIES)"""
    copies: I8


class Packed(NamedTuple):
    """Queries as kernels take them."""

    metric: int
    scaled: bool
    rows: Array
    """(Q, padded D) int16"""
    factors: F32
    offsets: F32
    squares: I64


@inner
def _gather(rows: Layout, chunk: int, local: int, target: int) -> None:
    place = PIECES
    end = target + rows.padded
    for _ in range(rows.pieces):
        count = rows.table[chunk, place + WIDTH]
        copy_bytes(rows.table[chunk, place + BASE] + local * rows.table[chunk, place + STRIDE], target, count)
        place += PIECE_COLUMNS
        target += count
    while target < end:
        store_u8(target, 0)
        target += 1


@inner
def _key(metric: int, factor: Real, offset: Real, query_squares: int, product: int, row_squares: int, norm2: Real, scale: Real) -> Real:
    """The canonical score, larger is better. Every step rounds to float32."""
    if metric == L2_EXACT:
        return -np.float32(query_squares + row_squares - 2 * product)
    scaled = factor * (scale * np.float32(product))
    return -((offset + norm2) + scaled) if metric == L2 else offset + scaled


@inner
def _keep(rows: Layout, chunk: int, part: Part, i: int, query: int, key: Real, allowed: Allowed, held: Reservoirs) -> None:
    row = rows.table[chunk, START] + part.locals[i]
    if allowed.shared or permitted(allowed, query, row):
        offer(held, query, key, row)


@inner
def _fill(rows: Layout, chunk: int, first: int, last: int, metric: int, scaled: bool, allowed: Allowed, part: Part) -> int:
    """Fill ``part`` with the rows that a shared mask allows; how many."""
    n = list_rows(rows.table, chunk, first, last, allowed, part.addresses, part.locals)
    for i in range(n):
        if not rows.in_place:
            part.addresses[i] = at(part.copies) + rows.padded * i
            _gather(rows, chunk, part.locals[i], part.addresses[i])
        if metric == L2:
            part.norms2[i] = load_f32(rows.table[chunk, NORMS] + 4 * part.locals[i])
        elif metric == L2_EXACT:
            part.squares[i] = squares(part.addresses[i], rows.padded)
        if scaled:
            part.scales[i] = load_f32(rows.table[chunk, WEIGHTS] + 4 * part.locals[i])
    fill_tile(part.addresses, n, TILE_ROWS)
    return n


@kernel
def _scan(rows: Layout, blocks: I64, queries: Packed, allowed: Allowed, part: Part, held: Reservoirs) -> None:
    step, width, metric = len(part.locals), rows.padded, queries.metric
    n_queries, query_bytes, products = len(queries.rows), 2 * width, at(part.products)
    for b in range(len(blocks)):
        chunk, end = blocks[b, 0], blocks[b, 1] + blocks[b, 2]
        for first in range(blocks[b, 1], end, step):
            n = _fill(rows, chunk, first, min(first + step, end), metric, queries.scaled, allowed, part)
            query = 0
            while query < n_queries:
                start = at(queries.rows) + query * query_bytes
                together, height = (TILE_QUERIES, TILE_ROWS) if query + TILE_QUERIES <= n_queries else (1, 1)
                for i in range(0, n, height):
                    if together == 1:
                        products_1(at(part.addresses) + 8 * i, start, query_bytes, width, products)
                    else:
                        products_tile(at(part.addresses) + 8 * i, start, query_bytes, width, products)
                    for j in range(min(height, n - i)):
                        squares_, norm2, scale = part.squares[i + j], part.norms2[i + j], part.scales[i + j]
                        for q in range(query, query + together):
                            product = load_i64(products + 8 * (j * together + q - query))
                            key = _key(metric, queries.factors[q], queries.offsets[q], queries.squares[q], product, squares_, norm2, scale)
                            if not key < held.cut_keys[q]:
                                _keep(rows, chunk, part, i + j, q, key, allowed, held)
                query += together


@kernel
def _rescore(
    rows: Layout,
    ids: int,
    queries: Packed,
    lists: Lists,
    sign: Real,
    everything: Allowed,
    part: Part,
    keys: F32,
    numbers: I64,
    scores: F32,
    found: I64,
) -> None:
    for query in range(len(queries.rows)):
        n = 0
        for c in range(lists.length):
            number = candidate(lists, query, c)
            if number < 0:
                continue
            chunk = find_chunk(rows.table, number)
            local = number - rows.table[chunk, START]
            _fill(rows, chunk, local, local + 1, queries.metric, queries.scaled, everything, part)
            products_1(at(part.addresses), at(queries.rows) + 2 * rows.padded * query, 2 * rows.padded, rows.padded, at(part.products))
            factor, offset, product = queries.factors[query], queries.offsets[query], part.products[0, 0]
            squares_, norm2, scale = part.squares[0], part.norms2[0], part.scales[0]
            key = _key(queries.metric, factor, offset, queries.squares[query], product, squares_, norm2, scale)
            keys[n] = ordered(key)
            numbers[n] = number
            n += 1
        keep_best(keys, numbers, n, ids, sign, scores[query], found[query])


def is_largest(metric: IntegerMetric) -> bool:
    """Whether larger scores are better."""
    return _CODES[metric] == IP


def _layout(rows: NumbaRows) -> Layout:
    padded = -(-rows.width // STEP) * STEP
    return Layout(rows.table, rows.pieces, padded, in_place=rows.pieces == 1 and rows.width == padded)


def _part(rows: Layout, most: int) -> Part:
    count = min(part_rows(rows.padded, TILE_ROWS), most)
    return Part(
        addresses=np.empty(count + TILE_ROWS, np.int64),
        locals=np.empty(count, np.int64),
        squares=np.zeros(count, np.int64),
        norms2=np.zeros(count, np.float32),
        scales=np.ones(count, np.float32),
        products=np.empty((TILE_ROWS, TILE_QUERIES), np.int64),
        copies=np.empty((0 if rows.in_place else count, rows.padded), np.int8),
    )


def _pack(codes: I8, factors: F32, offsets: F32, metric: IntegerMetric) -> Packed:
    count, width = codes.shape
    rows = np.zeros((count, -(-width // STEP) * STEP), np.int16)
    rows[:, :width] = codes
    return Packed(
        _CODES[metric],
        metric in ("ip_scaled", "l2_scaled"),
        rows,
        np.array(factors),
        np.array(offsets),
        np.square(codes, dtype=np.int64).sum(axis=1),
    )


class IntegerScan(NumbaScan):
    def __init__(self, rows: NumbaRows, codes: I8, factors: F32, offsets: F32, k: int, metric: IntegerMetric, allowed: Bool | None) -> None:
        super().__init__(rows, len(codes), k, allowed, largest=is_largest(metric))
        self._packed = _pack(codes, factors, offsets, metric)

    def _visit(self, blocks: I64) -> int:
        layout = _layout(self._rows)
        _scan(layout, blocks, self._packed, self._allowed, _part(layout, most=BLOCK), self._held)
        return -1


def rescore(rows: NumbaRows, codes: I8, factors: F32, offsets: F32, candidates: I64, k: int, metric: IntegerMetric) -> tuple[F32, I64]:
    """See ``Backend.integer_rescore``."""
    scores, found = empty_results(len(codes), k)
    keys, numbers = empty_results(1, candidates.shape[1])
    lists = candidate_lists(candidates)
    packed, sign = _pack(codes, factors, offsets, metric), 1.0 if is_largest(metric) else -1.0
    layout = _layout(rows)
    everything, part = allowed_rows(None), _part(layout, most=1)
    _rescore(layout, rows.ids, packed, lists, sign, everything, part, keys[0], numbers[0], scores, found)
    return scores, found


def quantize(queries: F32, scales: F32, codes: I8, steps: F64) -> None:
    """See ``Backend.integer_queries``."""
    folded = np.multiply(queries, scales, dtype=np.float64)
    steps[:] = np.abs(folded).max(axis=1) / 63.0
    # Products of float32 are never so small that their step would round to 0.
    with np.errstate(invalid="ignore"):  # of queries that are not finite, whose steps say so
        folded /= np.where(steps > 0, steps, 1.0)[:, None]
        codes[:] = np.rint(folded, out=folded)
