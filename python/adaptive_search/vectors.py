"""Vectors into and out of the slabs of an index."""

from __future__ import annotations

import numpy as np

from .arrays import float32, widened
from .backends.protocol import Backend
from .layout import Slabs
from .rows import Chunk
from .types import F32, I64, Array, Bool


def write_vectors(backend: Backend, slabs: Slabs, chunk: Chunk, first: int, stored: Array) -> Bool:
    """Put rows (n, dim) of the slabs' element kind, and their norms, into a chunk from row ``first`` on.

    Returns
    -------
    ndarray of bool, shape (n,)
        Which rows may not stay: those whose norm is not a finite float32, because of their elements or by overflow.
    """
    last = first + len(stored)
    arrays = [chunk.arrays[column.name] for column in slabs.columns]
    for column, array, start, stop in zip(slabs.columns, arrays, slabs.edges[:-1], slabs.edges[1:], strict=True):
        column.write(array, first, stored[:, start:stop])
    rows = slice(first, last)
    norms = chunk.arrays["norm"][rows]
    backend.dense_norms(slabs.kind, slabs.pieces(arrays, rows), norms)
    for dims in slabs.boundaries:
        backend.dense_norms(slabs.kind, slabs.pieces(arrays, rows, 0, dims), chunk.arrays[f"norm.first.{dims}"][rows])
        backend.dense_norms(slabs.kind, slabs.pieces(arrays, rows, dims), chunk.arrays[f"norm.rest.{dims}"][rows], True)
    return ~np.isfinite(norms)


def read_vectors(slabs: Slabs, chunk: Chunk, rows: slice | I64) -> F32:
    """Some rows of a chunk as float32 (n, dim): a view where they are stored like that."""
    arrays = [chunk.arrays[column.name] for column in slabs.columns]
    parts = [
        widened(piece) if slabs.kind == "bfloat16" else float32(piece)
        for piece in (column.read(array, rows) for column, array in zip(slabs.columns, arrays, strict=True))
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
