"""Small functions written directly in LLVM's instructions, callable from kernels.

Loop vectorisers decide for themselves whether and in which order to sum. Here the sixteen virtual lanes of the canonical scores *are* a
16-wide vector value, which LLVM splits over the registers of any machine, and a product is fused with an addition only where it is
marked ``contract``. Addresses carry no alignment: every load and store is of alignment 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba.core import cgutils as untyped_cgutils, types
from numba.extending import intrinsic

cgutils: Any = untyped_cgutils

LANES = 16

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()

FAST = ("contract",)
"""Flag of sums whose order and fusing are free: those of filters, never those of canonical scores."""

_TYPES = {"i64": types.int64, "f32": types.float32, "f64": types.float64, "none": types.none}

Value = Any
Emitter = Callable[..., Value]


def emitted(result: str, *parameters: str) -> Callable[[Emitter], Callable[..., Any]]:
    """Make ``emitter(builder, *values)`` callable from kernels with the given types."""

    def wrap(emitter: Emitter) -> Callable[..., Any]:
        sig = _TYPES[result](*(_TYPES[p] for p in parameters))

        def codegen(context: Any, builder: ir.IRBuilder, _: Any, args: Any) -> Value:
            value = emitter(builder, *args)
            return context.get_dummy_value() if result == "none" else value

        def typed(typingctx: Any, *_: Any) -> Any:
            return sig, codegen

        names = [inspect.Parameter(f"a{i}", inspect.Parameter.POSITIONAL_ONLY) for i in range(len(parameters) + 1)]
        typed.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]
        typed.__name__ = typed.__qualname__ = emitter.__name__
        made: Callable[..., Any] = intrinsic(typed)
        return made

    return wrap


def vector(element: ir.Type, count: int = LANES) -> ir.Type:
    return ir.VectorType(element, count)


def constant(type_: ir.Type, value: Any) -> Value:
    """A scalar, or the same value in every lane of a vector."""
    if isinstance(type_, ir.VectorType):
        return ir.Constant(type_, [value] * type_.count)
    return ir.Constant(type_, value)


def load(b: ir.IRBuilder, type_: ir.Type, address: Value, offset: Value | int = 0) -> Value:
    return b.load(_pointer(b, type_, address, offset), align=1)


def store(b: ir.IRBuilder, value: Value, address: Value, offset: Value | int = 0) -> None:
    b.store(value, _pointer(b, value.type, address, offset), align=1)


def _pointer(b: ir.IRBuilder, type_: ir.Type, address: Value, offset: Value | int) -> Value:
    if not isinstance(offset, int):
        address = b.add(address, offset)
    elif offset:
        address = b.add(address, I64(offset))
    return b.inttoptr(address, type_.as_pointer())


def splat(b: ir.IRBuilder, value: Value, count: int = LANES) -> Value:
    type_ = vector(value.type, count)
    first = b.insert_element(ir.Constant(type_, ir.Undefined), value, I32(0))
    return b.shuffle_vector(first, ir.Constant(type_, ir.Undefined), constant(vector(I32, count), 0))


def pick(b: ir.IRBuilder, value: Value, lanes: range) -> Value:
    """The given lanes of a vector."""
    mask = ir.Constant(vector(I32, len(lanes)), list(lanes))
    return b.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask)


def tree(b: ir.IRBuilder, value: Value, add: Callable[[Value, Value], Value]) -> Value:
    """Sum of all lanes: the upper half onto the lower one, until one is left."""
    count = value.type.count
    while count > 1:
        count //= 2
        value = add(pick(b, value, range(count)), pick(b, value, range(count, 2 * count)))
    return b.extract_element(value, I32(0))


def count_ones(b: ir.IRBuilder, value: Value) -> Value:
    """Set bits of an integer, or of each lane."""
    type_ = value.type
    suffix = f"v{type_.count}i{type_.element.width}" if isinstance(type_, ir.VectorType) else f"i{type_.width}"
    function = cgutils.get_or_insert_function(b.module, ir.FunctionType(type_, [type_]), f"llvm.ctpop.{suffix}")
    return b.call(function, [value])


class Sums:
    """Accumulators that live in registers across a loop."""

    def __init__(self, b: ir.IRBuilder, type_: ir.Type, count: int, start: float = 0) -> None:
        self._b = b
        self._slots = [cgutils.alloca_once(b, type_) for _ in range(count)]
        for slot in self._slots:
            b.store(constant(type_, start), slot)

    def __getitem__(self, i: int) -> Value:
        return self._b.load(self._slots[i])

    def __setitem__(self, i: int, value: Value) -> None:
        self._b.store(value, self._slots[i])


@contextmanager
def loop(b: ir.IRBuilder, stop: Value, step: int = 1) -> Iterator[Value]:
    """Count from 0 below ``stop`` in steps."""
    with cgutils.for_range_slice(b, I64(0), stop, I64(step)) as (i, _):
        yield i
