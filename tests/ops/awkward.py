"""Awkward places for arrays: odd addresses, gaps between rows, read-only and mapped memory, the last bytes before a forbidden page."""

from __future__ import annotations

import ctypes
import mmap
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

DIMS = (1, 7, 8, 15, 16, 31, 33, 63, 65, 127, 384, 768, 1000)
BATCHES = (1, 2, 3, 4, 5, 8, 16, 17, 31, 32, 33, 100)


def unaligned(array: Array) -> Array:
    """At an address that is odd."""
    raw = np.zeros(array.nbytes + 65, np.uint8)
    start = -raw.ctypes.data % 64 + 1
    made = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    made[...] = array
    return made


def strided(array: Array) -> Array:
    """With a gap of five elements after every row, and rubbish in it."""
    made = np.full((*array.shape[:-1], array.shape[-1] + 5), 77, array.dtype)
    if array.dtype.kind == "f":
        made[...] = np.nan
    made[..., : array.shape[-1]] = array
    return made[..., : array.shape[-1]]


def backwards(array: Array) -> Array:
    """With its rows in memory from the last to the first: a negative stride."""
    return np.ascontiguousarray(array[::-1])[::-1]


def read_only(array: Array) -> Array:
    made = array.copy()
    made.flags.writeable = False
    return made


def mapped(array: Array) -> Array:
    """In a file, read-only, at an odd offset."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows"
        path.write_bytes(b"x" + array.tobytes())
        if array.size == 0:
            return read_only(array)
        made = np.memmap(path, array.dtype, "r", offset=1, shape=array.shape)
        if sys.platform == "win32":
            return read_only(np.array(made))
        return made


def _guarded_bytes(size: int) -> tuple[mmap.mmap, int]:
    """Memory of which ``size`` bytes from the returned offset on lie between two pages that must not be touched."""
    page = mmap.PAGESIZE
    inner = -(-max(size, 1) // page) * page
    memory = mmap.mmap(-1, inner + 2 * page)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start in (base, base + page + inner):
        if protect(start, page, 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    return memory, page + inner - size


def before_forbidden_page(array: Array) -> Array:
    """Ends with the last byte that may be read: one byte more is a crash. Elsewhere than on Linux, a plain copy."""
    if sys.platform != "linux" or array.nbytes == 0:
        return array.copy()
    memory, start = _guarded_bytes(array.nbytes)
    made = np.frombuffer(memory, np.uint8, array.nbytes, start).view(array.dtype).reshape(array.shape)
    made[...] = array
    return made


def of_any_true_bytes(mask: Array) -> Array:
    """A mask whose true bytes are 1 to 255, as a view of other bytes has them, before a forbidden page."""
    made = before_forbidden_page((mask * (np.arange(mask.size).reshape(mask.shape) % 255 + 1)).astype(np.uint8))
    return made.view(np.bool_)


def after_forbidden_page(array: Array) -> Array:
    """Starts with the first byte that may be read."""
    if sys.platform != "linux" or array.nbytes == 0:
        return array.copy()
    memory, _ = _guarded_bytes(array.nbytes)
    made = np.frombuffer(memory, np.uint8, array.nbytes, mmap.PAGESIZE).view(array.dtype).reshape(array.shape)
    made[...] = array
    return made


def strided_unaligned(array: Array) -> Array:
    """Rows a prime number of bytes apart."""
    stride = array.shape[1] * array.itemsize + 3
    raw = np.full(len(array) * stride + 65, 0xFF, np.uint8)
    start = -raw.ctypes.data % 64 + 1
    made = np.ndarray(array.shape, array.dtype, raw, start, (stride, array.itemsize))
    made[...] = array
    return made


def strided_to_the_end(array: Array) -> Array:
    """Rows with gaps, none after the last one."""
    if array.size == 0:
        return array.copy()
    stride = array.shape[1] + 3
    flat = np.zeros((len(array) - 1) * stride + array.shape[1], array.dtype)
    flat = before_forbidden_page(flat)
    made = np.lib.stride_tricks.as_strided(flat, array.shape, (stride * array.itemsize, array.itemsize), writeable=True)
    made[...] = array
    return made


ROW_PLACES: dict[str, Callable[[Array], Array]] = {
    "unaligned": unaligned,
    "strided": strided,
    "strided and unaligned": strided_unaligned,
    "backwards": backwards,
    "read-only": read_only,
    "mapped": mapped,
    "before a forbidden page": before_forbidden_page,
    "after a forbidden page": after_forbidden_page,
    "strided, before a forbidden page": strided_to_the_end,
}
"""Where matrices of rows may lie: any row stride, contiguous last axis."""

FLAT_PLACES = {name: ROW_PLACES[name] for name in ("unaligned", "read-only", "mapped", "before a forbidden page", "after a forbidden page")}
"""Where C-contiguous arrays may lie."""


class Guarded:
    """An output with known bytes around it."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._raw = np.full(size + 128, 0xA5, np.uint8)
        self.array: Array = self._raw[64 : 64 + size].view(dtype).reshape(shape)

    @property
    def intact(self) -> bool:
        return bool((self._raw[:64] == 0xA5).all() and (self._raw[-64:] == 0xA5).all())


def cut(n: int, sizes: tuple[int, ...]) -> list[slice]:
    """Slices of the given sizes, the last size as often as needed, that cover n; one slice if there is nothing to cover."""
    out, start, i = [], 0, 0
    while start < n or not out:
        size = sizes[min(i, len(sizes) - 1)]
        out.append(slice(start, min(start + size, n)))
        start += size
        i += 1
    return out


def run(scan: Any, rows: Any) -> tuple[Array, Array]:
    """All visits, one after the other."""
    scan.run(0, rows.visits)
    found: tuple[Array, Array] = scan.finish()
    return found
