"""Argument checks. Every message names the argument, what was expected and what came.

Functions named ``as_…`` return the argument in the form that the code below works with, or raise ``TypeError`` or ``ValueError``.
"""

from __future__ import annotations

import operator
from typing import Any, cast

import numpy as np

from . import arrays
from .arrays import Matrix
from .types import F32, I8, I64, KINDS, METRICS, U8, Array, Bool, Kind, Metric


def as_ndarray(value: Any, name: str) -> Array:
    """An array as NumPy makes it, unless that would lose something."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask of its own, got a masked array, which would lose it")
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name}: expected an array, got {type(value).__name__} that does not make one: {error}") from error


def as_int(value: Any, name: str, low: int, high: int | None = None) -> int:
    """An integer within low..high (both inclusive)."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r} ({type(value).__name__})") from None
    if number < low or (high is not None and number > high):
        expected = f"at least {low}" if high is None else f"{low} to {high}"
        raise ValueError(f"{name}: expected {expected}, got {number}")
    return number


def as_k(k: Any) -> int:
    return as_int(k, "k", 1)


def as_metric(metric: Any) -> Metric:
    if not isinstance(metric, str) or metric not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(map(repr, METRICS))}, got {metric!r}")
    return metric


def check_rotation(value: Any, *known: str) -> None:
    """A `ValueError` unless it is one of the known names, or None."""
    if value is not None and not (isinstance(value, str) and value in known):
        raise ValueError(f"rotation: expected {', '.join(map(repr, known))} or None, got {value!r}")


def as_kind(dtype: Any, name: str = "dtype") -> Kind:
    """An element kind, from its name or from a dtype of that name."""
    found = dtype if isinstance(dtype, str) else getattr(dtype, "name", None) or getattr(dtype, "__name__", dtype)
    if found not in KINDS:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, KINDS))}, got {dtype!r}")
    return cast(Kind, found)


def as_matrix(value: Any, name: str, what: str = "(n, dims)") -> Array:
    """A 2-D array of floats or int8, in the caller's memory where it is an array already."""
    array = as_ndarray(value, name)
    check_elements(array, name)
    if array.ndim != 2:
        raise ValueError(f"{name}: expected shape {what}, got {array.shape}")
    return array


def check_elements(array: Array, name: str) -> None:
    """Vectors are floats, or int8."""
    if arrays.is_real(array.dtype) or array.dtype == np.int8:
        return
    hint = ""
    if array.dtype.kind in "iub":
        hint = "; convert integers with .astype(np.float32)"
        if array.dtype == np.uint8:
            hint += ", or search packed binary codes with hamming_top_k"
    raise TypeError(f"{name}: expected floats (float16, bfloat16, float32, float64) or int8, got {array.dtype}{hint}")


def as_rows(value: Any, name: str = "rows") -> Matrix:
    """Rows (N, D), D from 1 up; values are checked by whoever reads them."""
    matrix = Matrix.of(as_matrix(value, name), name)
    matrix.check_dim()
    return matrix


def as_batch(value: Any, name: str = "queries") -> tuple[Array, bool]:
    """Queries (Q, D) as given, and whether it was a single one (D,)."""
    array = as_ndarray(value, name)
    check_elements(array, name)
    single = array.ndim == 1
    array = array[np.newaxis] if single else array
    if array.ndim != 2:
        raise ValueError(f"{name}: expected shape (dims,) or (Q, dims), got {array.shape}")
    return array, single


def as_float(value: Any, name: str, low: float) -> float:
    """A finite number from ``low`` up."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    number = nearest_float(value)
    if not low <= number < float("inf"):
        raise ValueError(f"{name}: expected a number from {low:g} up, got {value!r}")
    return number


def nearest_float(number: Any) -> float:
    """A number as a float; infinite if it is an integer beyond all floats."""
    try:
        return float(number)
    except OverflowError:
        return float("inf") if number > 0 else float("-inf")


def as_float32(array: Array, name: str = "queries", row_name: str = "row") -> F32:
    """Contiguous float32 copy (or the array itself) of floats or int8, all of it finite."""
    out = arrays.float32(array)
    if not (out.flags.c_contiguous and out.flags.aligned):
        out = np.require(out, requirements=("C", "A"))
    finite = np.isfinite(out)
    if not finite.all():
        row = int((~finite.all(axis=1)).argmax())
        too_large = arrays.finite_rows(array[row : row + 1])[0]
        raise ValueError(f"{name}: {row_name} {row} holds {'a number too large for float32' if too_large else 'NaN or infinity'}")
    return out


def as_queries(value: Any, dim: int, name: str = "queries") -> tuple[F32, bool]:
    """Finite float32 queries (Q, dim), and whether it was a single one (dim,)."""
    array, single = as_batch(value, name)
    if array.shape[1] != dim:
        raise ValueError(f"{name}: expected {dim} dims, got shape {array.shape[1:] if single else array.shape}")
    return as_float32(array, name), single


def as_dims(dims: Any, queries: int, rows: int) -> int:
    """How many dims to compare: all, which then must agree, or the first ``dims`` of both."""
    if dims is not None:
        return as_int(dims, "dims", 1, min(queries, rows))
    if queries != rows:
        raise ValueError(f"queries: expected {rows} dims as the rows have, got {queries} (dims= compares a common prefix)")
    return rows


def as_vectors(value: Any, kind: Kind, dim: int | None = None, name: str = "vectors") -> Array:
    """Vectors (n, dim) rounded to an element kind, C-contiguous and finite; bfloat16 as uint16 bits.

    Floats are rounded; what overflows is an error. For int8 any integers in -128..127 are taken, and nothing else.
    The caller's memory is returned where nothing had to change: copy before keeping it.
    """
    array = as_ndarray(value, name)
    check_vectors(array, kind, dim, name)
    if kind == "int8":
        return np.ascontiguousarray(_as_int8(array, name))
    out = np.ascontiguousarray(arrays.rounded(array, kind))
    finite = arrays.finite_rows(out)
    if not finite.all():
        row = int((~finite).argmax())
        too_large = arrays.finite_rows(array[row : row + 1])[0]
        raise ValueError(f"{name}: row {row} holds {f'a number too large for {kind}' if too_large else 'NaN or infinity'}")
    return out


def check_vectors(array: Array, kind: Kind, dim: int | None = None, name: str = "vectors") -> None:
    """Vectors (n, dim) of an element kind, but for their numbers, which nobody looks at here."""
    if kind != "int8":
        check_elements(array, name)
    elif array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers from -128 to 127 (dtype int8), got {array.dtype}")
    if array.ndim != 2:
        raise ValueError(f"{name}: expected shape (n, {'dims' if dim is None else dim}), got {array.shape}")
    if dim is not None and array.shape[1] != dim:
        raise ValueError(f"{name}: expected {dim} dims, got shape {array.shape}")
    Matrix.of(array, name).check_dim()


def _as_int8(array: Array, name: str) -> I8:
    if array.dtype != np.int8 and array.size and (array.max() > 127 or array.min() < -128):
        raise ValueError(f"{name}: expected integers from -128 to 127, got values from {array.min()} to {array.max()}")
    return array.astype(np.int8, copy=False)


def as_codes(value: Any, name: str, width: int | None = None) -> U8:
    """A 2-D array of uint8 codes."""
    array = _uint8(value, name)
    if array.ndim != 2 or (width is not None and array.shape[1] != width):
        raise ValueError(f"{name}: expected shape (n, {'bytes' if width is None else width}), got {array.shape}")
    return array


def as_code_batch(value: Any, name: str = "queries") -> tuple[U8, bool]:
    """Packed queries (Q, bytes), and whether it was a single one (bytes,)."""
    array = _uint8(value, name)
    single = array.ndim == 1
    array = array[np.newaxis] if single else array
    if array.ndim != 2:
        raise ValueError(f"{name}: expected shape (bytes,) or (Q, bytes), got {array.shape}")
    return array, single


def _uint8(value: Any, name: str) -> U8:
    array = as_ndarray(value, name)
    if array.dtype != np.uint8:
        hint = " (pack bits with np.packbits(bits, axis=1))" if array.dtype == np.bool_ else ""
        raise TypeError(f"{name}: expected uint8, got {array.dtype}{hint}")
    return array


def as_bits(bits: Any, queries: int, codes: int) -> int:
    """How many bits to compare: whole bytes of codes of one width, or the first ``bits`` of both."""
    if min(queries, codes) < 1:
        raise ValueError(f"codes: expected at least one byte each, got {queries} for queries and {codes} for codes")
    if bits is not None:
        return as_int(bits, "bits", 1, 8 * min(queries, codes))
    if queries != codes:
        raise ValueError(f"queries: expected {codes} bytes as the codes have, got {queries} (bits= compares a common prefix)")
    return 8 * codes


def as_mask(mask: Any, queries: int, rows: int, name: str = "mask") -> Bool | None:
    """Allowed rows, (N,) or (Q, N); contiguous where it is (N,)."""
    if mask is None:
        return None
    array = as_ndarray(mask, name)
    if array.dtype != np.bool_:
        raise TypeError(f"{name}: expected bool, got {array.dtype}")
    if array.shape == (rows,):
        return np.ascontiguousarray(array)
    if array.shape == (queries, rows):
        return array
    raise ValueError(f"{name}: expected shape ({rows},) or ({queries}, {rows}), got {array.shape}")


def _int64(array: Array, name: str) -> I64:
    if array.size == 0 and array.dtype == np.float64:  # what np.asarray makes of an empty list
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {array.dtype}")
    if array.dtype == np.uint64 and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{name}: expected 64-bit signed integers, got {array.max()}")
    return np.require(array, np.int64, ("C", "A"))


def as_candidates(value: Any, queries: int, rows: int, single: bool) -> I64:
    """Lists of row numbers (Q, C), -1 being none; (C,) for a single query."""
    array = _int64(as_ndarray(value, "candidates"), "candidates")
    if single and array.ndim == 1:
        array = array[np.newaxis]
    if array.ndim != 2 or len(array) != queries:
        raise ValueError(f"candidates: expected shape {'(C,)' if single else f'({queries}, C)'}, got {array.shape}")
    outside = (array < -1) | (array >= rows)
    if outside.any():
        where = np.argwhere(outside)
        named = ", ".join(f"{array[tuple(place)]} at {[int(i) for i in place]}" for place in where[:3])
        more = f" and {len(where) - 3} more" if len(where) > 3 else ""
        raise ValueError(f"candidates: expected -1 or row numbers below {rows}, got {named}{more}")
    return array


def as_ids(ids: Any, count: int, name: str = "ids") -> I64:
    """Ids (n,) to give to rows: integers from 0 up, each once."""
    array = _int64(as_ndarray(ids, name), name)
    if array.shape != (count,):
        raise ValueError(f"{name}: expected shape ({count},), got {array.shape}")
    if count and array.min() < 0:
        raise ValueError(f"{name}: expected ids from 0 up, got {array.min()}")
    ordered = np.sort(array)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise ValueError(f"{name}: expected every id once, got {twice[0]} twice")
    return array


def as_id_list(value: Any, name: str) -> I64:
    """Any integers, as a 1-D array: ids to look up, of which some may be absent or repeated."""
    array = _int64(as_ndarray(value, name), name)
    if array.ndim > 1:
        raise ValueError(f"{name}: expected one id or a list of ids, got shape {array.shape}")
    return array.reshape(-1)


def as_threads(threads: Any) -> int | None:
    return None if threads is None else as_int(threads, "threads", 1)
