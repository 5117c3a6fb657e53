"""Dense rows: scans, rescoring, products.

Few queries are scored canonically at once: reading the rows is what it costs. For more, tiles of products are compared with the cut
of every query, and only what is not clearly worse is scored canonically. Bounds: see ``docs/architecture.md``; here they are

    |tile key - canonical key| <= slack * query_slack * row_slack (+ slack * (|q|**2 + |x|**2) in l2),   slack = (2 * D + 64) * 2**-24,

with norms raised by 1e-15, which outweighs all underflow (at most 2**-150 for each of up to 32,768 products).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...types import F32, I64, METRICS, Array, Bool, Metric
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
from .chunks import COUNT, NORMS, PIECES, START, NumbaRows, find_chunk
from .dense_rows import COSINE, IP, L2, Layout, finite, gather, key_of, layout_of, row_address, row_norm, unit_queries
from .emit import LANES
from .jit import Int, Real, address, at, inner, kernel
from .lanes import dot
from .memory import INT8, load_f32, load_i64, store_f32, store_i64
from .parts import COPY_BYTES, PART_BYTES, fill_tile, list_rows, part_rows
from .tiles import TERMS, TILE_ROWS, WIDE, not_below, pack_tiles, padded_queries, tile_16, tile_32

FEW = 6
"""Up to so many queries are scored one by one. Alone, 4 to 6 take 0.77 to 0.93 of the time of a tile that is mostly empty; behind
full tiles, 4 take 0.88 to 0.97 and 6 take 1.03 to 1.05."""

FILTER_ROWS = 16 * TILE_ROWS
"""Rows that are filtered before the survivors among them move the cuts."""

RAISE = np.float32(1e-15)

TINY_NORM, HUGE_NORM = np.float32(1e-30), np.float32(1e18)
"""Outside these, underflow of a cosine or overflow of a partial sum may spoil a tile key: such rows are always scored canonically."""


class Part(NamedTuple):
    """Workspace: rows of one block that are scored together."""

    addresses: I64
    """Where canonical sums and tiles read each row."""
    locals: I64
    """Its number within the chunk."""
    norms: F32
    terms: F32
    """(n, TERMS) factor, base and slack: a tile key is at most factor * product + base + slack * query slack."""
    products: F32
    """(2, TILE_ROWS, 16)"""
    masks: I64
    """(2 * FILTER_ROWS,)"""
    copies: F32
    """Rows that cannot be read in place."""


class Packed(NamedTuple):
    """Queries as kernels take them."""

    metric: int
    rows: F32
    """(Q, padded D): canonical sums read these; unit queries for cosine."""
    tiles: F32
    """(groups, D, 16); no group if the queries are few."""
    shifts: Array
    """(groups * 16,) float64: what is added to a query's cut before tile keys are compared with it."""
    slacks: F32
    """(groups * 16,)"""


@inner
def _next(first: int, n: int, metric: int, query: int, addresses: int, width: int, norms: int, cut: Real) -> Int:
    """The next row whose canonical score is not below the cut, or is infinite or NaN, as those of bad rows are."""
    for i in range(first, n):
        key = key_of(metric, query, load_i64(addresses + 8 * i), width, load_f32(norms + 4 * i))
        if not -np.inf < key < cut:
            return i
    return n


@inner
def _list_part(rows: Layout, chunk: int, first: int, last: int, allowed: Allowed, part: Part) -> int:
    """Fill ``part`` with the rows that a shared mask allows; how many."""
    n = list_rows(rows.table, chunk, first, last, allowed, part.addresses, part.locals)
    if not rows.in_place:
        pieces, row_bytes, copies = at(rows.table[chunk]) + 8 * PIECES, 4 * rows.padded, at(part.copies)
        for i in range(n):
            part.addresses[i] = copies + row_bytes * i
            gather(rows.kind, rows.pieces, pieces, part.locals[i], part.addresses[i], part.addresses[i] + row_bytes)
    fill_tile(part.addresses, n, TILE_ROWS)
    return n


@inner
def _measure(rows: Layout, chunk: int, n: int, metric: int, tiled: bool, part: Part) -> None:
    """What keys and tiles need to know of each row."""
    norms, width = rows.table[chunk, NORMS], rows.padded
    slack = np.float32((2 * rows.width + 64) * 2.0**-24)
    for i in range(n):
        row = part.addresses[i]
        if metric == COSINE:
            norm = row_norm(norms, part.locals[i], row, width)
            part.norms[i] = norm
            part.terms[i, 0] = np.float32(1) / norm if norm != 0 else np.float32(0)
            part.terms[i, 1] = np.float32(0)
            part.terms[i, 2] = slack if norm == 0 or TINY_NORM <= norm <= HUGE_NORM else np.float32(np.inf)
        elif tiled:
            # Any norm within a few units of the last place will do here, so a float32 sum is enough.
            norm = load_f32(norms + 4 * part.locals[i]) if norms != 0 else np.sqrt(dot(row, row, width))
            raised = norm + RAISE
            part.terms[i, 2] = slack * raised if norm <= HUGE_NORM else np.float32(np.inf)
            if metric == L2:
                part.terms[i, 0] = np.float32(2)
                part.terms[i, 1] = slack * (raised * raised) - norm * norm
            else:
                part.terms[i, 0] = np.float32(1)
                part.terms[i, 1] = np.float32(0)


@inner
def _limit(cut: Real, shift: Real) -> Real:
    """``cut + shift`` rounded downwards."""
    if shift == 0:
        return np.float32(cut)
    exact = np.float64(cut) + shift
    return np.float32(exact - abs(exact) * 2.0**-22 - 1e-44)


@inner
def _consider(
    rows: Layout, chunk: int, part: Part, i: int, queries: Packed, query: int, allowed: Allowed, held: Reservoirs, bad: int
) -> Int:
    """Score a row of the part canonically and keep it if it is good enough; smallest bad row so far."""
    row = rows.table[chunk, START] + part.locals[i]
    if not allowed.shared and not permitted(allowed, query, row):
        return bad
    width = rows.padded
    start = part.addresses[i]
    key = key_of(queries.metric, at(queries.rows) + 4 * width * query, start, width, part.norms[i])
    # A NaN or infinite element makes every sum NaN or infinite; so does overflow, hence the closer look.
    if not np.isfinite(key) and rows.kind != INT8 and rows.table[chunk, NORMS] == 0 and not finite(start, width):
        return row if bad < 0 else min(bad, row)
    offer(held, query, key, row)
    return bad


@inner
def _tile(groups: int, addresses: int, packed: int, width: int, products: int) -> None:
    """Products of six rows with one or two groups of queries."""
    if groups == 2:
        tile_32(addresses, packed, 4 * LANES * width, width, products)
    else:
        tile_16(addresses, packed, 4 * LANES * width, width, products)


@inner
def _filter(
    groups: int, n: int, addresses: int, packed: int, width: int, products: int, row_terms: int, query_slacks: int, limits: int, masks: int
) -> bool:
    """Queries, as bits, for which each of ``n`` rows may be good enough: ``masks[groups, n]``. Whether there is any."""
    found = 0
    for first in range(0, n, TILE_ROWS):
        _tile(groups, addresses + 8 * first, packed, width, products)
        for g in range(groups):
            for i in range(first, min(first + TILE_ROWS, n)):
                passed = not_below(
                    products + 4 * LANES * (g * TILE_ROWS + i - first),
                    row_terms + 4 * TERMS * i,
                    query_slacks + 4 * LANES * g,
                    limits + 4 * LANES * g,
                )
                store_i64(masks + 8 * (g * n + i), passed)
                found |= passed
    return found != 0


@inner
def _scan_tiles(
    rows: Layout, chunk: int, n: int, part: Part, queries: Packed, limits: F32, allowed: Allowed, held: Reservoirs, bad: int
) -> Int:
    n_queries, n_groups, width = len(queries.rows), len(queries.tiles), rows.width
    group = 0
    while group < n_groups:
        groups = 2 if WIDE and group + 2 <= n_groups else 1
        packed = at(queries.tiles) + 4 * LANES * width * group
        query_slacks, cuts = at(queries.slacks) + 4 * LANES * group, at(limits) + 4 * LANES * group
        for first in range(0, n, FILTER_ROWS):
            count = min(FILTER_ROWS, n - first)
            addresses, row_terms = at(part.addresses) + 8 * first, at(part.terms) + 4 * TERMS * first
            if not _filter(groups, count, addresses, packed, width, at(part.products), row_terms, query_slacks, cuts, at(part.masks)):
                continue
            for g in range(groups):
                start = (group + g) * LANES
                valid = (1 << min(LANES, n_queries - start)) - 1
                for i in range(count):
                    passed = valid & part.masks[g * count + i]
                    query = start
                    while passed:
                        if passed & 1:
                            bad = _consider(rows, chunk, part, first + i, queries, query, allowed, held, bad)
                            limits[query] = _limit(held.cut_keys[query], queries.shifts[query])
                        passed >>= 1
                        query += 1
        group += groups
    return bad


@kernel
def _scan(rows: Layout, blocks: I64, queries: Packed, limits: F32, allowed: Allowed, part: Part, held: Reservoirs) -> int:
    tiled = len(queries.tiles) > 0
    step, width = len(part.norms), rows.padded
    bad = -1
    for query in range(len(queries.rows)):
        limits[query] = _limit(held.cut_keys[query], queries.shifts[query])
    for b in range(len(blocks)):
        chunk = blocks[b, 0]
        end = blocks[b, 1] + blocks[b, 2]
        for first in range(blocks[b, 1], end, step):
            n = _list_part(rows, chunk, first, min(first + step, end), allowed, part)
            if tiled or queries.metric == COSINE:
                _measure(rows, chunk, n, queries.metric, tiled, part)
            if tiled:
                bad = _scan_tiles(rows, chunk, n, part, queries, limits, allowed, held, bad)
            for query in range(min(len(queries.tiles) * LANES, len(queries.rows)), len(queries.rows)):
                start = at(queries.rows) + 4 * width * query
                i = 0
                while i < n:
                    i = _next(i, n, queries.metric, start, at(part.addresses), width, at(part.norms), held.cut_keys[query])
                    if i < n:
                        bad = _consider(rows, chunk, part, i, queries, query, allowed, held, bad)
                    i += 1
    return bad


@kernel
def _rescore(
    rows: Layout,
    ids: int,
    metric: int,
    queries: F32,
    lists: Lists,
    sign: Real,
    keys: F32,
    numbers: I64,
    copy: F32,
    scores: F32,
    found: I64,
) -> int:
    width = rows.padded
    bad = -1
    for query in range(len(queries)):
        n = 0
        for c in range(lists.length):
            number = candidate(lists, query, c)
            if number < 0:
                continue
            chunk = find_chunk(rows.table, number)
            local = number - rows.table[chunk, START]
            norms = rows.table[chunk, NORMS]
            row = row_address(rows, chunk, local, at(copy))
            norm = row_norm(norms, local, row, width) if metric == COSINE else np.float32(0)
            key = key_of(metric, at(queries) + 4 * width * query, row, width, norm)
            if not np.isfinite(key) and rows.kind != INT8 and norms == 0 and not finite(row, width):
                bad = number if bad < 0 else min(bad, number)
                continue
            keys[n] = ordered(key)
            numbers[n] = number
            n += 1
        keep_best(keys, numbers, n, ids, sign, scores[query], found[query])
    return bad


@kernel
def _dot(rows: Layout, queries: Packed, first: int, last: int, part: Part, everything: Allowed, out: int, query_stride: int) -> int:
    width = rows.padded
    n_queries = len(queries.rows)
    step = len(part.norms)
    bad = -1
    for chunk in range(len(rows.table)):
        start = rows.table[chunk, START]
        low, high = max(first - start, 0), min(last - start, rows.table[chunk, COUNT])
        for begin in range(low, high, step):
            n = _list_part(rows, chunk, begin, min(begin + step, high), everything, part)
            for group in range(len(queries.tiles)):
                packed = at(queries.tiles) + 4 * LANES * rows.width * group
                for i in range(0, n, TILE_ROWS):
                    _tile(1, at(part.addresses) + 8 * i, packed, rows.width, at(part.products))
                    for q in range(min(LANES, n_queries - group * LANES)):
                        target = out + (group * LANES + q) * query_stride + 4 * (start + begin + i)
                        for j in range(min(TILE_ROWS, n - i)):
                            store_f32(target + 4 * j, part.products[0, j, q])
            for query in range(min(len(queries.tiles) * LANES, n_queries), n_queries):
                for i in range(n):
                    product = dot(at(queries.rows) + 4 * width * query, part.addresses[i], width)
                    store_f32(out + query * query_stride + 4 * (start + begin + i), product)
            if rows.kind == INT8 or rows.table[chunk, NORMS] != 0 or n_queries == 0:
                continue
            for i in range(n):
                # The first query's product tells: a bad element makes it NaN or infinite.
                product = load_f32(out + 4 * (start + begin + i))
                if not np.isfinite(product) and not finite(part.addresses[i], width):
                    bad = start + begin + i if bad < 0 else bad
                    break
    return bad


def _part(rows: Layout, tiled: bool) -> Part:
    count = part_rows(4 * rows.padded, TILE_ROWS, PART_BYTES if rows.in_place or tiled else COPY_BYTES)
    return Part(
        addresses=np.empty(count, np.int64),
        locals=np.empty(count, np.int64),
        norms=np.empty(count, np.float32),
        terms=np.empty((count, TERMS), np.float32),
        products=np.empty((2, TILE_ROWS, LANES), np.float32),
        masks=np.empty(2 * FILTER_ROWS, np.int64),
        copies=np.empty((0 if rows.in_place else count, rows.padded), np.float32),
    )


def _pack(queries: F32, metric: int) -> Packed:
    """Canonical queries, and tiles for all but a last few."""
    if metric == COSINE:
        queries = unit_queries(queries)
    count, width = queries.shape
    rest = count % LANES
    tiled = count - rest if rest <= FEW else count
    tiles = pack_tiles(queries[:tiled])
    norms = np.zeros(len(tiles) * LANES)
    norms[:tiled] = np.sqrt(np.square(queries[:tiled], dtype=np.float64).sum(axis=1))
    raised = norms + float(RAISE)
    shifts = np.zeros(max(len(norms), count))
    if metric == COSINE:
        slacks = np.ones_like(norms)
    elif metric == IP:
        slacks = raised
    else:
        slacks = 2 * raised
        shifts[: len(norms)] = norms**2 - (2 * width + 64) * 2.0**-24 * raised**2
    slacks[norms > HUGE_NORM] = np.inf
    return Packed(metric, padded_queries(queries), tiles, shifts, np.nextafter(slacks.astype(np.float32), np.float32(np.inf)))


class DenseScan(NumbaScan):
    def __init__(self, rows: NumbaRows, queries: F32, k: int, metric: Metric, allowed: Bool | None) -> None:
        super().__init__(rows, len(queries), k, allowed, largest=metric != "l2")
        self._packed = _pack(queries, METRICS.index(metric))

    def _visit(self, blocks: I64) -> int:
        layout = layout_of(self._rows)
        limits = np.empty(len(self._packed.shifts), np.float32)
        part = _part(layout, tiled=len(self._packed.tiles) > 0)
        return _scan(layout, blocks, self._packed, limits, self._allowed, part, self._held)


def rescore(rows: NumbaRows, queries: F32, candidates: I64, k: int, metric: Metric) -> tuple[F32, I64, int]:
    """See ``Backend.dense_rescore``."""
    code, sign = METRICS.index(metric), -1.0 if metric == "l2" else 1.0
    ready = padded_queries(unit_queries(queries) if metric == "cosine" else queries)
    scores, found = empty_results(len(queries), k)
    keys, numbers = empty_results(1, candidates.shape[1])
    lists = candidate_lists(candidates)
    copy = np.empty(ready.shape[1], np.float32)
    bad = _rescore(layout_of(rows), rows.ids, code, ready, lists, sign, keys[0], numbers[0], copy, scores, found)
    return scores, found, bad


def products(rows: NumbaRows, queries: F32, out: F32, first: int, last: int) -> int:
    layout = layout_of(rows)
    packed = _pack(queries, IP)
    part = _part(layout, tiled=len(packed.tiles) > 0)
    return _dot(layout, packed, first, last, part, allowed_rows(None), address(out), out.strides[0])
