"""Values at addresses, and rows of any element kind copied as float32."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from .emit import F32, I8, I16, I32, I64, LANES, Value, constant, emitted, load, store, vector
from .jit import inner

FLOAT32, FLOAT16, BFLOAT16, INT8 = range(4)
"""Element kinds as kernels know them: positions in ``types.KINDS``."""


@emitted("i64", "i64")
def load_i64(b: ir.IRBuilder, address: Value) -> Value:
    return load(b, I64, address)


@emitted("none", "i64", "i64")
def store_i64(b: ir.IRBuilder, address: Value, value: Value) -> None:
    store(b, value, address)


@emitted("none", "i64", "i64")
def store_i32(b: ir.IRBuilder, address: Value, value: Value) -> None:
    store(b, b.trunc(value, I32), address)


@emitted("i64", "i64")
def load_u8(b: ir.IRBuilder, address: Value) -> Value:
    return b.zext(load(b, I8, address), I64)


@emitted("none", "i64", "i64")
def store_u8(b: ir.IRBuilder, address: Value, value: Value) -> None:
    store(b, b.trunc(value, I8), address)


@emitted("f32", "i64")
def load_f32(b: ir.IRBuilder, address: Value) -> Value:
    return load(b, F32, address)


@emitted("none", "i64", "f32")
def store_f32(b: ir.IRBuilder, address: Value, value: Value) -> None:
    store(b, value, address)


def _like(element: ir.Type, value: Value) -> ir.Type:
    """``element``, as a vector if ``value`` is one."""
    return vector(element, value.type.count) if isinstance(value.type, ir.VectorType) else element


def _from_bfloat16(b: ir.IRBuilder, bits: Value) -> Value:
    wide = _like(I32, bits)
    return b.bitcast(b.shl(b.zext(bits, wide), constant(wide, 16)), _like(F32, bits))


def _from_float16(b: ir.IRBuilder, bits: Value) -> Value:
    """Exact, by integer arithmetic; no step meets a float32 subnormal, which some processors and modes treat differently."""
    wide, real = _like(I32, bits), _like(F32, bits)
    bits = b.zext(bits, wide)
    sign = b.shl(b.and_(bits, constant(wide, 0x8000)), constant(wide, 16))
    rest = b.shl(b.and_(bits, constant(wide, 0x7FFF)), constant(wide, 13))
    rebias = constant(wide, 112 << 23)
    normal = b.add(rest, rebias)
    special = b.add(normal, rebias)  # exponent 31 becomes 255: infinity or NaN
    small = b.add(normal, constant(wide, 1 << 23))  # a subnormal m is (2**-14 + m * 2**-24) - 2**-14
    shifted = b.fsub(b.bitcast(small, real), constant(real, 2.0**-14))
    result = b.select(b.icmp_unsigned(">=", rest, constant(wide, 0x1F << 23)), special, normal)
    result = b.select(b.icmp_unsigned("<", rest, constant(wide, 1 << 23)), b.bitcast(shifted, wide), result)
    return b.bitcast(b.or_(result, sign), real)


def _from_int8(b: ir.IRBuilder, value: Value) -> Value:
    return b.sitofp(value, _like(F32, value))


def _widening(element: ir.Type, convert: Any) -> tuple[Any, Any]:
    """Functions (source, target) that convert one element and sixteen elements to float32."""

    @emitted("none", "i64", "i64")
    def one(b: ir.IRBuilder, source: Value, target: Value) -> None:
        store(b, convert(b, load(b, element, source)), target)

    @emitted("none", "i64", "i64")
    def sixteen(b: ir.IRBuilder, source: Value, target: Value) -> None:
        store(b, convert(b, load(b, vector(element), source)), target)

    return one, sixteen


copy_1_f16, copy_16_f16 = _widening(I16, _from_float16)
copy_1_bf16, copy_16_bf16 = _widening(I16, _from_bfloat16)
copy_1_i8, copy_16_i8 = _widening(I8, _from_int8)


@emitted("none", "i64", "i64", "i64")
def copy_bytes(b: ir.IRBuilder, source: Value, target: Value, count: Value) -> None:
    pointer = I8.as_pointer()
    move = b.module.declare_intrinsic("llvm.memcpy", [pointer, pointer, I64])
    b.call(move, [b.inttoptr(target, pointer), b.inttoptr(source, pointer), count, ir.IntType(1)(0)])


@inner
def widen(kind: int, source: int, count: int, target: int) -> None:
    """Write ``count`` elements as float32."""
    whole = count - count % LANES
    if kind == FLOAT32:
        copy_bytes(source, target, 4 * count)
    elif kind == FLOAT16:
        for i in range(0, whole, LANES):
            copy_16_f16(source + 2 * i, target + 4 * i)
        for i in range(whole, count):
            copy_1_f16(source + 2 * i, target + 4 * i)
    elif kind == BFLOAT16:
        for i in range(0, whole, LANES):
            copy_16_bf16(source + 2 * i, target + 4 * i)
        for i in range(whole, count):
            copy_1_bf16(source + 2 * i, target + 4 * i)
    else:
        for i in range(0, whole, LANES):
            copy_16_i8(source + i, target + 4 * i)
        for i in range(whole, count):
            copy_1_i8(source + i, target + 4 * i)
