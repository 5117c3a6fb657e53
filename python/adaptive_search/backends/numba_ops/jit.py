"""How functions of this package are compiled: without the GIL, lazily, one specialisation each, cached on disk where possible.

Kernels take addresses (int64), counts, scalars and arrays that this package made itself. A caller's array reaches them as an address
with strides, so that read-only, strided, unaligned and memory-mapped arrays share one specialisation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

from ...types import Array

F = TypeVar("F", bound=Callable[..., Any])

Real = Any
"""A number in a kernel, nearly always a float32: Python's float and NumPy's scalars are one there."""

Int = Any
"""The same for an int64 that comes from NumPy or from an emitted function."""


def kernel(function: F) -> F:
    """Compile on first use from Python; release the GIL; never reorder floats."""
    try:
        compiled: Any = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no directory is writable: neither the package's, nor the user's cache, nor NUMBA_CACHE_DIR
        compiled = numba.njit(nogil=True)(function)
    return cast(F, compiled)


def inner(function: F) -> F:
    """Compile as a part of the kernels that call it; Python cannot, which spares the conversion of arguments."""
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast(F, numba.njit(**options)(function))


def address(array: Array | None) -> int:
    """Address of the first element; 0 for None. The caller keeps the array alive."""
    return 0 if array is None else int(array.__array_interface__["data"][0])


@inner
def at(array: Array) -> Int:
    """Address of an array inside a kernel. The array must be an argument: Numba frees its own arrays after their last use by name."""
    return np.int64(array.ctypes.data)
