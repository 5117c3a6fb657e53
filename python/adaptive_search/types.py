"""Names shared by every floor: result tuples, array aliases, metrics, errors."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I8 = NDArray[np.int8]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
Bool = NDArray[np.bool_]

Metric = Literal["ip", "cosine", "l2"]
METRICS: tuple[Metric, ...] = ("ip", "cosine", "l2")

Kind = Literal["float32", "float16", "bfloat16", "int8"]
"""Element kinds of dense rows. bfloat16 travels as a uint16 view of the caller's memory."""
KINDS: tuple[Kind, ...] = ("float32", "float16", "bfloat16", "int8")

MAX_DIM = 32_768
"""Largest dim of a dense row: 32-bit sums of int8 products cannot overflow up to here."""


class Neighbors(NamedTuple):
    """The best rows of every query, best first.

    Attributes
    ----------
    ids : ndarray of int64, shape (Q, k) or (k,)
        Row numbers (functional API) or ids (Index); -1 where a query has fewer rows.
    scores : ndarray of float32, same shape
        In the metric's units; NaN where ``ids`` is -1.
    """

    ids: I64
    scores: F32


class IndexFormatError(ValueError):
    """A directory is not an index, or is damaged."""
