"""Canonical sums: sixteen lanes, multiply, then add, then a fixed tree; never fused. Widths are multiples of 16, padded with zeros.

A padded element adds +0 to a lane, which changes no lane: a lane starts at +0 and therefore never becomes -0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from .emit import F32, F64, I64, LANES, Sums, Value, emitted, load, loop, tree, vector


def _product(b: ir.IRBuilder, q: Value, x: Value) -> Value:
    return b.fmul(q, x)


def _squared_difference(b: ir.IRBuilder, q: Value, x: Value) -> Value:
    difference = b.fsub(q, x)
    return b.fmul(difference, difference)


def _sum(term: Callable[..., Value]) -> Callable[..., Any]:
    @emitted("f32", "i64", "i64", "i64")
    def total(b: ir.IRBuilder, query: Value, row: Value, width: Value) -> Value:
        sums = Sums(b, vector(F32), 1)
        with loop(b, b.shl(width, I64(2)), 4 * LANES) as offset:
            q, x = load(b, vector(F32), query, offset), load(b, vector(F32), row, offset)
            sums[0] = b.fadd(sums[0], term(b, q, x))
        return tree(b, sums[0], b.fadd)

    return total


dot = _sum(_product)
"""(query, row, width): canonical product."""

squared_distance = _sum(_squared_difference)
"""(query, row, width): canonical squared distance."""


@emitted("f64", "i64", "i64")
def squares64(b: ir.IRBuilder, row: Value, width: Value) -> Value:
    """(row, width): sum of squares in float64; cannot overflow for finite rows."""
    sums = Sums(b, vector(F64), 1)
    with loop(b, b.shl(width, I64(2)), 4 * LANES) as offset:
        x = b.fpext(load(b, vector(F32), row, offset), vector(F64))
        sums[0] = b.fadd(sums[0], b.fmul(x, x))
    return tree(b, sums[0], b.fadd)
