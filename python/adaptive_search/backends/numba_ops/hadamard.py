"""Walsh-Hadamard transforms."""

from __future__ import annotations

import numpy as np

from ...types import F32
from .jit import Real, address, at, kernel
from .memory import copy_bytes


@kernel
def _transform(rows: int, stride: int, count: int, scale: Real, x: F32) -> None:
    """``x`` (size,) is workspace: compilers know that it is contiguous."""
    size = len(x)
    for r in range(count):
        copy_bytes(rows + r * stride, at(x), 4 * size)
        half = 1
        while half < size:
            for first in range(0, size, 2 * half):
                for i in range(first, first + half):
                    total = x[i] + x[i + half]
                    x[i + half] = x[i] - x[i + half]
                    x[i] = total
            half *= 2
        for i in range(size):
            x[i] *= np.float32(scale)
        copy_bytes(at(x), rows + r * stride, 4 * size)


def transform(rows: F32) -> None:
    """See ``Backend.hadamard``."""
    size = rows.shape[1]
    _transform(address(rows), rows.strides[0], len(rows), 1.0 / np.sqrt(size), np.empty(size, np.float32))
