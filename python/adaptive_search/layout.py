"""How rows are laid out in memory and on disk: columns, slabs, padding, element kinds. No other Python module knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .types import Array, Kind

CHUNK_ROWS = 65_536
"""Rows of a chunk, at most: kernels number rows in 32 bits, and a chunk is also the unit of saving and of compaction."""

GROUP = 64
"""Rows that the blocked layout interleaves; every chunk but the last holds a multiple of it."""

MAX_PIECES = 8
ALIGNMENT = 64

STORAGE: dict[Kind, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "int8": np.dtype(np.int8),
}


def round_up(value: int, multiple: int) -> int:
    """The least multiple of ``multiple`` that is not below ``value``."""
    return -(-value // multiple) * multiple


def padded_bytes(size: int) -> int:
    """Bytes a row of ``size`` bytes takes: whole cache lines, or a power of two within one, so that no narrow row straddles two lines."""
    return round_up(size, ALIGNMENT) if size >= ALIGNMENT else 1 << max(size - 1, 0).bit_length()


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """Zeros whose first element lies on a cache line. The system hands zero pages out lazily, so unused capacity costs nothing."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


@dataclass(frozen=True)
class Column:
    """A named array of a chunk with ``width`` entries for every row.

    ``width`` 0 is one number a row, shape (capacity,). Otherwise rows are padded, shape (capacity, stride), or, if ``blocked``,
    interleaved by 64, shape (capacity / 64, width, 64). ``below``, if not 0, is what all entries are below.
    """

    name: str
    dtype: np.dtype
    width: int = 0
    blocked: bool = False
    below: int = 0

    @property
    def stride(self) -> int:
        """Entries that a row takes, padding included."""
        if self.width == 0 or self.blocked:
            return max(self.width, 1)
        return padded_bytes(self.width * self.dtype.itemsize) // self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        return self.stride * self.dtype.itemsize

    def shape(self, capacity: int) -> tuple[int, ...]:
        if self.blocked:
            return (round_up(capacity, GROUP) // GROUP, self.width, GROUP)
        return (capacity, self.stride) if self.width else (capacity,)

    def allocate(self, capacity: int) -> Array:
        return aligned_zeros(self.shape(capacity), self.dtype)

    def held(self, array: Array, rows: int) -> Array:
        """What belongs to the first ``rows`` rows, padding included: a view."""
        return array[: round_up(rows, GROUP) // GROUP] if self.blocked else array[:rows]

    def used(self, array: Array, rows: int) -> Array:
        """What kernels see of the first ``rows`` rows: a view without the padding."""
        held = self.held(array, rows)
        return held[:, : self.width] if self.width and not self.blocked else held

    def write(self, array: Array, first: int, values: Array) -> None:
        """Put row-major ``values`` into the rows from ``first`` on. In a blocked column the rest of the last group becomes zero."""
        last = first + len(values)
        if not self.blocked:
            self.used(array, last)[first:] = values
            return
        if first % GROUP == 0 and last % GROUP == 0:
            array[first // GROUP : last // GROUP] = values.reshape(-1, GROUP, self.width).transpose(0, 2, 1)
            return
        rows = np.arange(first, round_up(last, GROUP))
        padded = np.zeros((len(rows), self.width), self.dtype)
        padded[: len(values)] = values
        array[rows // GROUP, :, rows % GROUP] = padded

    def read(self, array: Array, rows: Array | slice) -> Array:
        """Row-major values of the given rows."""
        if not self.blocked:
            return array[rows, : self.width] if self.width else array[rows]
        positions = np.arange(len(array) * GROUP)[rows] if isinstance(rows, slice) else rows
        return np.asarray(array[positions // GROUP, :, positions % GROUP])


@dataclass(frozen=True)
class Slabs:
    """The cut of a row of ``dim`` elements into at most 8 slabs, each a column of its own.

    Parameters
    ----------
    dim, kind
        Elements of a row and their kind.
    boundaries
        Dims at which prefix stages end, rising. The first seven become cuts; a prefix that ends elsewhere is served by a narrower view.
    """

    dim: int
    kind: Kind
    boundaries: tuple[int, ...]

    @property
    def edges(self) -> tuple[int, ...]:
        return (0, *self.boundaries[: MAX_PIECES - 1], self.dim)

    @property
    def columns(self) -> tuple[Column, ...]:
        """One column of elements per slab."""
        widths = np.diff(self.edges).tolist()
        return tuple(Column(f"vectors.{j}", STORAGE[self.kind], width) for j, width in enumerate(widths))

    @property
    def norm_columns(self) -> tuple[Column, ...]:
        """The norm of every row; and of its part before and, rounded up, its part after every boundary."""
        float32 = np.dtype(np.float32)
        parts = [(Column(f"norm.first.{dims}", float32), Column(f"norm.rest.{dims}", float32)) for dims in self.boundaries]
        return (Column("norm", float32), *(column for pair in parts for column in pair))

    def pieces(self, arrays: Sequence[Array], rows: slice, first: int = 0, last: int | None = None) -> tuple[Array, ...]:
        """Views of dims ``first <= i < last`` of some rows, one per slab that they touch."""
        last = self.dim if last is None else last
        found = []
        for array, start, stop in zip(arrays, self.edges[:-1], self.edges[1:], strict=True):
            low, high = max(first, start), min(last, stop)
            if low < high:
                found.append(array[rows, low - start : high - start])
        return tuple(found)
