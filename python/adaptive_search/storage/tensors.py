"""Named arrays as the bytes of a safetensors file.

The format: 8 bytes little-endian header length, a JSON header that gives each array's dtype, shape and byte range, the data.
It allows no gaps between arrays; to start every array on 64 bytes, gaps are declared as arrays of their own, whose names begin
with ``_``. Files are written and parsed here because the safetensors library can neither pad nor map.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..types import U8, Array, IndexFormatError
from .directory import SLICE
from .strict_json import parse

ALIGNMENT = 64

# Every header is far below; the limit keeps a hostile file from filling memory with JSON.
MAX_HEADER_BYTES = 1 << 20
MAX_ARRAY_BYTES = 1 << 62
_MAX_NDIM = 8

_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ARRAY_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class Tensor:
    """Where an array lies in a file: ``start`` and ``stop`` count from the beginning of the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    stop: int


class Columns:
    """Arrays to be written, each given whole or as parts that follow each other along the first axis.

    Parameters
    ----------
    arrays : mapping of str to array or sequence of arrays
        Boolean, integer and 16- to 64-bit float arrays of up to 8 axes, any strides.

    Raises
    ------
    TypeError, ValueError
        If an array cannot be stored, naming it.
    """

    header: bytes

    def __init__(self, arrays: Mapping[str, Array | Sequence[Array]]) -> None:
        self._parts: list[tuple[np.dtype[Any], list[Array]]] = []
        header: dict[str, object] = {}
        offset = 0
        for name, value in arrays.items():
            dtype, shape, parts = _parts_of(name, value)
            end = offset + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [offset, end]}
            self._parts.append((dtype, parts))
            offset = end + -end % ALIGNMENT
            if offset > end:
                header[f"_{len(self._parts)}"] = {"dtype": "U8", "shape": [offset - end], "data_offsets": [end, offset]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        if len(text) > MAX_HEADER_BYTES:
            raise ValueError(f"{len(arrays)} arrays are too many for one file")
        self.header = len(text).to_bytes(8, "little") + text

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The bytes of the file in order. Strided arrays are copied slice by slice, contiguous ones not at all."""
        yield self.header
        for dtype, parts in self._parts:
            written = 0
            for part in parts:
                for run in _runs(part):
                    piece = np.ascontiguousarray(run, dtype).reshape(-1).view(np.uint8).data
                    written += len(piece)
                    yield piece
            yield bytes(-written % ALIGNMENT)


def _parts_of(name: str, value: Array | Sequence[Array]) -> tuple[np.dtype[Any], tuple[int, ...], list[Array]]:
    if not isinstance(name, str) or not _ARRAY_NAME.fullmatch(name):
        raise ValueError(f"array names are letters, digits, '_', '.' and '-', beginning with a letter; got {name!r}")
    parts = [value] if isinstance(value, np.ndarray) else list(value)
    if not parts or not all(isinstance(part, np.ndarray) for part in parts):
        raise TypeError(f"{name} must be an array or a non-empty sequence of arrays")
    first = parts[0]
    dtype = first.dtype.newbyteorder("<")
    if dtype not in _NAMES:
        raise TypeError(f"{name} has dtype {first.dtype}, which a segment does not store")
    if first.ndim > _MAX_NDIM:
        raise ValueError(f"{name} has {first.ndim} axes; a segment stores up to {_MAX_NDIM}")
    if len(parts) == 1:
        return dtype, first.shape, parts
    if any(part.ndim == 0 or part.shape[1:] != first.shape[1:] or part.dtype.newbyteorder("<") != dtype for part in parts):
        raise ValueError(f"the parts of {name} must agree in dtype and in every axis but the first")
    return dtype, (sum(len(part) for part in parts), *first.shape[1:]), parts


def _runs(array: Array) -> Iterator[Array]:
    """Views of about SLICE bytes, at least one row, that make up the array in row-major order."""
    if array.flags.c_contiguous:
        array = array.reshape(-1)
    if array.size:
        step = max(SLICE // (array.nbytes // len(array)), 1)
        for first in range(0, len(array), step):
            yield array[first : first + step]


def header_length(prefix: bytes, size: int, what: str) -> int:
    """Length of the JSON header, from the first 8 bytes of a file of ``size`` bytes."""
    length = int.from_bytes(prefix, "little")
    if len(prefix) != 8 or not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
        raise IndexFormatError(f"{what} has no valid header length")
    return length


def parse_header(text: bytes, size: int, what: str) -> dict[str, Tensor]:
    """Arrays of a file of ``size`` bytes whose JSON header is ``text``. All of it is checked, nothing is allocated from it."""
    header = parse(text, f"the header of {what}", max_depth=3)
    if not isinstance(header, dict):
        raise IndexFormatError(f"the header of {what} is not a JSON object")
    header.pop("__metadata__", None)
    tensors = {name: _tensor(entry, 8 + len(text), f"array {name!r} of {what}") for name, entry in header.items()}
    end = 8 + len(text)
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.stop)):
        if tensor.start != end:
            raise IndexFormatError(f"the arrays of {what} overlap or leave gaps")
        end = tensor.stop
    if end != size:
        raise IndexFormatError(f"the arrays of {what} end at byte {end}, the file at byte {size}")
    arrays = {name: tensor for name, tensor in tensors.items() if not name.startswith("_")}
    for name in arrays:
        if not _ARRAY_NAME.fullmatch(name):
            raise IndexFormatError(f"{what} holds an array with the name {name[:100]!r}")
    return arrays


def _tensor(entry: Any, base: int, what: str) -> Tensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise IndexFormatError(f"{what} is not described by dtype, shape and data_offsets")
    name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(name, str) or name not in _DTYPES:
        raise IndexFormatError(f"{what} has the unknown dtype {str(name)[:40]!r}")
    dtype = _DTYPES[name]
    if not _counts(shape) or len(shape) > _MAX_NDIM or not _counts(offsets) or len(offsets) != 2:
        raise IndexFormatError(f"{what} has an impossible shape or byte range")
    # NumPy limits the product without its zeros, so the same is done here.
    if math.prod(axis or 1 for axis in shape) * dtype.itemsize > MAX_ARRAY_BYTES:
        raise IndexFormatError(f"{what} has an impossible shape")
    start, stop = offsets
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise IndexFormatError(f"{what} has a shape that does not fill its byte range")
    return Tensor(dtype, tuple(shape), base + start, base + stop)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_ARRAY_BYTES for item in value)


def view_arrays(memory: U8, tensors: Mapping[str, Tensor], what: str) -> dict[str, Array]:
    """Read-only arrays over the bytes of a whole file. An array that foreign software left unaligned is copied."""
    arrays = {}
    for name, tensor in tensors.items():
        raw = memory[tensor.start : tensor.stop]
        # NumPy counts and indexes with the bytes of booleans as they are; others than 0 and 1 would break its memory accesses.
        if tensor.dtype == np.bool_ and raw.size and raw.max() > 1:
            raise IndexFormatError(f"array {name!r} of {what} holds booleans that are neither 0 nor 1")
        array = raw.view(tensor.dtype).reshape(tensor.shape)
        if not array.flags.aligned:
            array = array.copy()
        array.flags.writeable = False
        arrays[name] = array
    return arrays
