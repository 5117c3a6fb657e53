"""Dense rows as canonical sums read them: float32 in whole lanes, in place or copied. Keys, norms, unit queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...types import F32, I64, METRICS, Array
from .chunks import BASE, PIECE_COLUMNS, PIECES, STRIDE, WIDTH, NumbaRows
from .emit import LANES
from .jit import Int, Real, at, inner, kernel
from .lanes import dot, squared_distance, squares64
from .memory import FLOAT32, load_f32, load_i64, store_f32, widen
from .tiles import padded_queries

IP, COSINE, L2 = (METRICS.index(name) for name in ("ip", "cosine", "l2"))


class Layout(NamedTuple):
    """Dense rows as kernels take them."""

    table: I64
    kind: int
    pieces: int
    width: int
    padded: int
    """The width in whole lanes."""
    in_place: bool
    """Whether canonical sums can read the rows where they are."""


def layout_of(rows: NumbaRows) -> Layout:
    padded = -(-rows.width // LANES) * LANES
    in_place = rows.kind == FLOAT32 and rows.pieces == 1 and rows.width == padded
    return Layout(rows.table, rows.kind, rows.pieces, rows.width, padded, in_place)


@inner
def gather(kind: int, pieces: int, piece: int, local: int, target: int, end: int) -> None:
    """One row as float32, its pieces joined, zeros up to ``end``. ``piece`` is the address of its pieces in the table."""
    for _ in range(pieces):
        width = load_i64(piece + 8 * WIDTH)
        widen(kind, load_i64(piece + 8 * BASE) + local * load_i64(piece + 8 * STRIDE), width, target)
        piece += 8 * PIECE_COLUMNS
        target += 4 * width
    while target < end:
        store_f32(target, np.float32(0))
        target += 4


@inner
def row_address(rows: Layout, chunk: int, local: int, buffer: int) -> Int:
    """Address of a row ready for canonical sums; ``buffer`` takes it if it cannot be read in place."""
    if rows.in_place:
        return rows.table[chunk, PIECES + BASE] + local * rows.table[chunk, PIECES + STRIDE]
    gather(rows.kind, rows.pieces, at(rows.table[chunk]) + 8 * PIECES, local, buffer, buffer + 4 * rows.padded)
    return buffer


@inner
def row_norm(norms: int, local: int, row: int, width: int) -> Real:
    return load_f32(norms + 4 * local) if norms != 0 else np.float32(np.sqrt(squares64(row, width)))


@inner
def key_of(metric: int, query: int, row: int, width: int, norm: Real) -> Real:
    """Canonical score, larger is better; ``width`` is padded, ``norm`` is used by cosine only."""
    if metric == L2:
        return -squared_distance(query, row, width)
    product = dot(query, row, width)
    if metric == COSINE:
        return product / norm if norm != 0 else np.float32(0)
    return product


@inner
def finite(row: int, width: int) -> bool:
    """A square of a float32 cannot overflow in float64."""
    return bool(np.isfinite(squares64(row, width)))


@kernel
def _norms(rows: Layout, copy: F32, upward: bool, out: F32) -> None:
    width = rows.padded
    for local in range(len(out)):
        norm = np.sqrt(squares64(row_address(rows, 0, local, at(copy)), width))
        if upward:
            norm *= 1 + 2.0**-40
        rounded = np.float32(norm)
        if upward and np.float64(rounded) < norm:
            rounded = np.nextafter(rounded, np.float32(np.inf))
        out[local] = rounded


@kernel
def _unit(queries: F32, out: F32) -> None:
    for query in range(len(out)):
        norm = np.sqrt(squares64(at(queries) + 4 * queries.shape[1] * query, queries.shape[1]))
        for i in range(out.shape[1]):
            out[query, i] = np.float32(queries[query, i] / norm) if norm != 0 else np.float32(0)


@kernel
def _products(queries: F32, matrix: F32, out: F32) -> None:
    width = queries.shape[1]
    for row in range(out.shape[1]):
        for query in range(len(out)):
            out[query, row] = dot(at(queries) + 4 * width * query, at(matrix) + 4 * width * row, width)


def norms(kind: int, pieces: Sequence[Array], out: F32, upward: bool) -> None:
    rows = NumbaRows(kind, [(len(out), pieces, None)], None)
    layout = layout_of(rows)
    _norms(layout, np.empty(layout.padded, np.float32), upward, out)


def unit_queries(queries: F32) -> F32:
    out = np.empty(queries.shape, np.float32)
    _unit(padded_queries(queries), out)
    return out


def products(queries: F32, matrix: F32, out: F32) -> None:
    _products(padded_queries(queries), padded_queries(matrix), out)
