"""Filter products of a few rows with 16 or 32 queries at once.

Queries are packed dim by dim, ``packed[group, dim, 16]``, so that an element of a row meets sixteen queries in one multiplication and
nothing has to be summed across lanes. Sums run over the dims in rising order and may be fused; rows are read one element at a time,
so their width needs no padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir

from ...types import F32
from .emit import F32 as FLOAT, FAST, I16, I64, LANES, Sums, Value, emitted, load, loop, splat, store, vector

TILE_ROWS = 6
"""Six rows by sixteen queries are twelve 256-bit accumulators, which leaves room for the operands in sixteen registers."""

WIDE = bool(binding.get_host_cpu_features().get("avx512f", False))
"""Whether registers hold six rows by thirty-two queries."""


def _tile(groups: int) -> Callable[..., Any]:
    @emitted("none", "i64", "i64", "i64", "i64", "i64")
    def tile(b: ir.IRBuilder, rows: Value, packed: Value, group_bytes: Value, width: Value, out: Value) -> None:
        addresses = [load(b, I64, rows, 8 * i) for i in range(TILE_ROWS)]
        queries = [packed] + [b.add(packed, group_bytes)] * (groups - 1)
        sums = Sums(b, vector(FLOAT), TILE_ROWS * groups)
        with loop(b, width) as dim:
            element, line = b.shl(dim, I64(2)), b.shl(dim, I64(6))
            q = [load(b, vector(FLOAT), address, line) for address in queries]
            for i, address in enumerate(addresses):
                x = splat(b, load(b, FLOAT, address, element))
                for g in range(groups):
                    at = i * groups + g
                    sums[at] = b.fadd(sums[at], b.fmul(x, q[g], flags=FAST), flags=FAST)
        for i in range(TILE_ROWS):
            for g in range(groups):
                store(b, sums[i * groups + g], out, 4 * LANES * (g * TILE_ROWS + i))

    return tile


tile_16 = _tile(1)
"""(addresses of 6 rows, packed, bytes of a group, width, out): out[6, 16] = products with a group of queries."""

tile_32 = _tile(2)
"""(addresses of 6 rows, packed, bytes of a group, width, out): out[2, 6, 16] = products with two groups of queries."""


TERMS = 3


@emitted("i64", "i64", "i64", "i64", "i64")
def not_below(b: ir.IRBuilder, products: Value, terms: Value, query_slacks: Value, limits: Value) -> Value:
    """(products, factor and base and slack of a row, slacks of the queries, their limits): bits of the queries for which
    ``factor * product + base + slack * query_slack`` is not below the limit. NaN is not below anything.
    """
    factor, base, slack = (splat(b, load(b, FLOAT, terms, 4 * i)) for i in range(TERMS))
    upper = b.fadd(b.fmul(load(b, vector(FLOAT), products), factor, flags=FAST), base, flags=FAST)
    upper = b.fadd(upper, b.fmul(load(b, vector(FLOAT), query_slacks), slack, flags=FAST), flags=FAST)
    return b.zext(b.bitcast(b.fcmp_unordered(">=", upper, load(b, vector(FLOAT), limits)), I16), I64)


def padded_queries(queries: F32) -> F32:
    """(Q, D) with zeros up to a whole number of lanes."""
    count, width = queries.shape
    made = np.zeros((count, -(-width // LANES) * LANES), np.float32)
    made[:, :width] = queries
    return made


def pack_tiles(queries: F32) -> F32:
    """(groups, D, 16); missing queries are zero."""
    count, width = queries.shape
    groups = -(-count // LANES)
    made = np.zeros((groups, width, LANES), np.float32)
    for group in range(groups):
        part = queries[group * LANES : (group + 1) * LANES]
        made[group, :, : len(part)] = part.T
    return made
