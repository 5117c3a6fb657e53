"""Callers' arrays as kernels see them: element kinds, use in place, conversion in bounded blocks.

A matrix of rows is handed to kernels as it is when its elements are of a kind that they read and each row is contiguous (any row
stride, read-only and memory-mapped memory included). Everything else is converted block by block, never as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .types import F32, MAX_DIM, Array, Bool, Kind

BLOCK_BYTES = 32 << 20
"""Most memory that a converted block of rows takes."""


def block_rows(row_bytes: int) -> int:
    """Rows of a converted block: whole visits of 4,096 rows where that fits into `BLOCK_BYTES`, and at least one row."""
    rows = BLOCK_BYTES // max(1, row_bytes)
    return max(1, rows // 4096 * 4096 or rows)


def ranges(count: int, step: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges (first, last) of at most ``step`` that cover ``range(count)``."""
    for first in range(0, count, step):
        yield first, min(count, first + step)


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is bfloat16, whichever package made it."""
    # A name is put together at every call, so NumPy's own types are told apart first.
    return dtype.itemsize == 2 and dtype.kind not in "fiu" and dtype.name == "bfloat16" and dtype.isnative


def is_real(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype holds floats: float16, bfloat16, float32, float64 or wider."""
    return dtype.kind == "f" or is_bfloat16(dtype)


def bits_of(array: Array) -> Array:
    """The array as backends want it: bfloat16 as a uint16 view, all else unchanged."""
    return array.view(np.uint16) if is_bfloat16(array.dtype) else array


def widened(bits: Array) -> F32:
    """bfloat16 bits (uint16) as float32, exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float32(array: Array) -> F32:
    """Float32 copy (or the array itself); what does not fit becomes infinite."""
    if is_bfloat16(array.dtype):
        return widened(array.view(np.uint16))
    if array.dtype == np.float32:
        return array
    with np.errstate(over="ignore", under="ignore"):
        return array.astype(np.float32, copy=False)


def rounded(array: Array, kind: Kind) -> Array:
    """Floats rounded to nearest (ties to even) as an element kind; what does not fit becomes infinite. bfloat16 comes as uint16 bits.

    float64 goes to bfloat16 by way of float32, like everything that this package computes.
    """
    if kind == "float32":
        return float32(array)
    if kind == "float16":
        with np.errstate(over="ignore", under="ignore"):
            return (float32(array) if is_bfloat16(array.dtype) else array).astype(np.float16, copy=False)
    if kind != "bfloat16":
        raise ValueError(f"floats cannot be rounded to {kind}")
    if is_bfloat16(array.dtype):
        return array.view(np.uint16)
    bits = float32(array).view(np.uint32)
    # Adding just under half a unit, plus the last bit kept, carries into the upper half exactly when rounding goes up.
    # NaN is kept apart, as the carry could turn it into an infinity.
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet_nan = np.uint32(0x7FC0)
    return np.where(np.isnan(bits.view(np.float32)), quiet_nan, nearest).astype(np.uint16)


def finite_rows(array: Array) -> Bool:
    """Which rows of a matrix (any kind, bfloat16 as bits or not) hold neither NaN nor infinity."""
    bits = bits_of(array)
    if bits.dtype == np.uint16:
        finite = (bits & np.uint16(0x7F80)) != np.uint16(0x7F80)
    else:
        finite = np.isfinite(bits)
    return np.asarray(finite.all(axis=1))


_USED_IN_PLACE: dict[np.dtype[Any], Kind] = {np.dtype(np.float32): "float32", np.dtype(np.float16): "float16", np.dtype(np.int8): "int8"}


@dataclass(frozen=True)
class Matrix:
    """A caller's rows (N, D) of floats or int8.

    Attributes
    ----------
    array : ndarray
        The caller's memory.
    kind : str
        Element kind of what `part` returns.
    in_place : bool
        Whether `part` returns views.
    name : str
        The argument's name, for errors.
    """

    array: Array
    kind: Kind
    in_place: bool
    name: str

    @classmethod
    def of(cls, array: Array, name: str) -> Matrix:
        """Rows (N, D) whose dtype is known to be a float or int8."""
        kind: Kind | None = "bfloat16" if is_bfloat16(array.dtype) else _USED_IN_PLACE.get(array.dtype)
        return cls(array, kind or "float32", kind is not None and array.strides[1] == array.itemsize, name)

    def __len__(self) -> int:
        return len(self.array)

    @property
    def dim(self) -> int:
        return int(self.array.shape[1])

    def prefix(self, dims: int) -> Matrix:
        """The first ``dims`` dims of every row."""
        return self if dims == self.dim else replace(self, array=self.array[:, :dims])

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows to be worked on one after another: a single one if nothing is converted."""
        return ranges(len(self), max(1, len(self)) if self.in_place else block_rows(4 * self.dim))

    def part(self, first: int, last: int) -> Array:
        """Rows first..last as a backend wants them."""
        return self.convert(self.array[first:last])

    def convert(self, rows: Array) -> Array:
        """Rows picked from `array`, as a backend wants them."""
        if self.in_place:
            return bits_of(rows)
        return bits_of(np.ascontiguousarray(float32(rows) if self.kind == "float32" else rows))

    def first_bad(self, first: int, last: int, allowed: Bool | None = None) -> int:
        """Smallest row in first..last, among the allowed ones, that holds NaN, infinity or what float32 cannot hold; -1 if none."""
        if self.kind == "int8":
            return -1
        for start, stop in ranges(last - first, block_rows(4 * self.dim)):
            bad = ~finite_rows(self.part(first + start, first + stop))
            if allowed is not None:
                bad &= allowed[start:stop]
            if bad.any():
                return first + start + int(bad.argmax())
        return -1

    def bad_row_error(self, row: int) -> ValueError:
        """What to raise about a row found by `first_bad` or by a scan."""
        if finite_rows(self.array[row : row + 1])[0]:
            return ValueError(f"{self.name}: row {row} holds a number too large for float32")
        return ValueError(f"{self.name}: row {row} holds NaN or infinity")

    def check_dim(self) -> None:
        if not 1 <= self.dim <= MAX_DIM:
            raise ValueError(f"{self.name}: expected 1 to {MAX_DIM} dims, got shape {self.array.shape}")
