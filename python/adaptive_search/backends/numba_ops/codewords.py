"""Product quantization: tables of queries, nearest codewords, the blocked layout of codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from ...types import F32, F64, I32, I64, U8
from .emit import F32 as FLOAT, I32 as INT32, I64 as INT, LANES, Sums, Value, emitted, load, loop, pick, splat, store, vector
from .jit import address, at, inner, kernel
from .memory import copy_bytes, load_f32, load_u8, store_u8

GROUP = 64
"""Rows of a block of codes."""


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


def tables(queries: F32, codebooks: F32, squared: bool, out: F32) -> bool:
    """See ``Backend.pq_tables``."""
    subspaces, _, dims = codebooks.shape
    ready = np.zeros((len(queries), subspaces * dims), np.float32)
    ready[:, : queries.shape[1]] = queries
    _tables(ready, _by_dim(codebooks), squared, out)
    return bool(np.isfinite(out).all())


def assign(vectors: F32, codebooks: F32, out: I32) -> None:
    """See ``Backend.pq_assign``."""
    subspaces, count, dims = codebooks.shape
    # To a whole number of registers; infinite codewords are nobody's nearest.
    padded = np.full((subspaces, dims, -(-count // LANES) * LANES), np.inf, np.float32)
    padded[:, :, :count] = codebooks.transpose(0, 2, 1)
    rows, entries = np.zeros((64, subspaces * dims), np.float32), np.empty(padded.shape[2], np.float32)
    _assign(address(vectors), vectors.strides[0], vectors.shape[1], padded, rows, entries, out)


@kernel
def _centroid_sums(points: int, stride: int, nearest: I32, sums: F64, counts: I64) -> None:
    sums[:], counts[:] = 0.0, 0
    for i in range(len(nearest)):
        codeword = nearest[i]
        for s in range(sums.shape[1]):
            sums[codeword, s] += load_f32(points + i * stride + 4 * s)
        counts[codeword] += 1


def centroid_sums(points: F32, nearest: I32, sums: F64, counts: I64) -> None:
    """See ``Backend.centroid_sums``."""
    _centroid_sums(address(points), points.strides[0], nearest, sums, counts)


@kernel
def _descend(units: F32, lengths: F32, books: F32, squares: F32, twice: F32, sweeps: int, state: F32, entries: F32, codes: I32) -> None:
    """``units`` (n, M * S), ``books`` (M, S, K), ``squares`` (M, K), ``twice`` extra and twice as much, ``state`` (2, M)."""
    subspaces, dims, count = books.shape
    along, left = state[0], state[1]
    tried = np.empty(subspaces, np.int32)
    zero = np.float32(0)
    for i in range(len(codes)):
        length, total = lengths[i], zero
        for m in range(subspaces):
            square, product, tried[m] = zero, zero, codes[i, m]
            for s in range(dims):
                u = units[i, m * dims + s]
                square += u * u
                product += u * books[m, s, tried[m]]
            along[m] = length * square
            left[m] = along[m] - product
            total += left[m]
        for _ in range(sweeps):
            for m in range(subspaces):
                others = total - left[m]
                pull = (length + length) + twice[1] * (others + along[m])
                _entries(at(units) + 4 * (units.shape[1] * i + m * dims), books[m], False, at(entries))
                for j in range(count):
                    entries[count + j] = squares[m, j] + entries[j] * (twice[0] * entries[j] - pull)
                tried[m] = lowest(at(entries) + 4 * count, count)
                left[m] = along[m] - entries[tried[m]]
                total = others + left[m]
        if length > zero and np.isfinite(total):
            codes[i] = tried


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


def descend(units: F32, lengths: F32, codebooks: F32, extra: float, sweeps: int, codes: I32) -> None:
    """See ``Backend.pq_descend``."""
    subspaces, count, dims = codebooks.shape
    padded = -(-count // LANES) * LANES
    books, squares = np.zeros((subspaces, dims, padded), np.float32), np.full((subspaces, padded), np.inf, np.float32)
    books[:, :, :count] = codebooks.transpose(0, 2, 1)
    squares[:, :count] = 0
    with np.errstate(over="ignore", under="ignore"):
        for s in range(dims):
            squares[:, :count] += codebooks[:, :, s] * codebooks[:, :, s]
    ready = np.zeros((len(units), subspaces * dims), np.float32)
    ready[:, : units.shape[1]] = units
    twice = np.array([extra, np.float32(extra) + np.float32(extra)], np.float32)
    state, entries = np.empty((2, subspaces), np.float32), np.empty(2 * padded, np.float32)
    _descend(ready, np.array(lengths), books, squares, twice, sweeps, state, entries, codes)


def make_whole(tables: F32, base: F64, step: F64) -> None:
    """See ``Backend.pq_whole``."""
    if not tables.size:
        base[:], step[:] = 0.0, 1.0
        return
    lows = tables.min(axis=2, keepdims=True)
    with np.errstate(over="ignore"):
        tables -= lows
    widest = tables.max(axis=(1, 2))
    usable = (widest > np.float32(1e-30)) & (widest < np.float32(1e37))
    sizes = np.where(usable, widest / np.float32(63), np.float32(1))
    base[:], step[:] = np.cumsum(lows[:, :, 0], axis=1, dtype=np.float64)[:, -1] + 0.0, sizes
    tables[~usable] = 0
    tables *= (np.float32(1) / sizes)[:, None, None]
    tables += np.float32(0.5)
    np.minimum(np.trunc(tables, out=tables), np.float32(63), out=tables)
