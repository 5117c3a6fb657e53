"""What answers should be, in plain NumPy.

Two kinds: float64 oracles, which say what a score means, and the canonical model, which says its bits: float32 operations in the order
written down in ``adaptive_search/backends/protocol.py``, one NumPy call for each rounding.
"""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from adaptive_search.backends.protocol import Scaling

Array = NDArray[Any]
F32, F64, I64 = NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]

LANES = 16

Oracle = TypeVar("Oracle", bound=Callable[..., Any])
REMEMBERED_BYTES = 1 << 26


def once(oracle: Oracle) -> Oracle:
    """Remembers answers, read-only, by the contents of the arguments: to find what an answer should be takes longer than to answer, and a
    test runs on every backend in turn (`conftest.py`)."""
    answers: OrderedDict[Any, Any] = OrderedDict()
    held = 0

    def contents(argument: Any) -> Any:
        if isinstance(argument, np.ndarray):
            return argument.dtype.str, argument.shape, hashlib.sha1(np.ascontiguousarray(argument)).digest()
        return tuple(map(contents, argument)) if isinstance(argument, tuple) else argument

    def arrays(answer: Any) -> tuple[Array, ...]:
        return answer if isinstance(answer, tuple) else (answer,)

    @functools.wraps(oracle)
    def remembered(*arguments: Any, **options: Any) -> Any:
        nonlocal held
        key = contents(arguments), contents(tuple(sorted(options.items())))
        if key in answers:
            answers.move_to_end(key)
            return answers[key]
        answer = oracle(*arguments, **options)
        for array in arrays(answer):
            array.flags.writeable = False
        answers[key] = answer
        held += sum(array.nbytes for array in arrays(answer))
        while held > REMEMBERED_BYTES:
            held -= sum(array.nbytes for array in arrays(answers.popitem(last=False)[1]))
        return answer

    return remembered  # type: ignore[return-value]


def same_bits(a: Array, b: Array) -> bool:
    """Equal floats of one type to the bit; any NaN equals any other."""
    bits = f"i{a.itemsize}"
    return a.shape == b.shape and a.dtype == b.dtype and bool(np.all((a.view(bits) == b.view(bits)) | (np.isnan(a) & np.isnan(b))))


# --- element kinds -------------------------------------------------------------------------------------------------------
def widened(kind: str, rows: Array) -> F32:
    """Stored elements as float32, which is exact."""
    if kind == "bfloat16":
        return (rows.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        return rows.astype(np.float32)


def narrowed(kind: str, rows: Array) -> Array:
    """Floats as a stored kind; bfloat16 by cutting, int8 by rounding and clipping."""
    if kind == "bfloat16":
        return (np.ascontiguousarray(rows, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if kind == "int8":
        return np.clip(np.rint(rows), -128, 127).astype(np.int8)
    with np.errstate(over="ignore"):
        return rows.astype(kind)


# --- float64 -------------------------------------------------------------------------------------------------------------
@once
def dot(queries: Array, rows: Array) -> F64:
    return queries.astype(np.float64) @ rows.astype(np.float64).T


def squared_distance(queries: Array, rows: Array) -> F64:
    q, x = queries.astype(np.float64), rows.astype(np.float64)
    apart = (x - one for one in q)
    return np.stack([np.einsum("nd,nd->n", each, each) for each in apart]) if len(q) else np.zeros((0, len(x)))


def norms(rows: Array) -> F64:
    return np.sqrt(np.square(rows.astype(np.float64)).sum(axis=1))


def cosine(queries: Array, rows: Array) -> F64:
    """0 where a vector is zero."""
    length = np.outer(norms(queries), norms(rows))
    return np.divide(dot(queries, rows), length, out=np.zeros_like(length), where=length > 0)


@once
def score(metric: str, queries: Array, rows: Array) -> F64:
    return {"ip": dot, "cosine": cosine, "l2": squared_distance}[metric](queries, rows)


@once
def error_bound(metric: str, queries: Array, rows: Array) -> F64:
    """How far a float32 sum in any order may be from `score`; the second term covers underflow."""
    dims = queries.shape[1]
    q, x = norms(queries)[:, None], norms(rows)[None, :]
    scale = {"ip": q * x, "cosine": np.ones_like(q * x), "l2": (q + x) ** 2}[metric]
    underflow = dims * 2.0**-148 / (np.where(x > 0, np.minimum(x, 1), 1) if metric == "cosine" else 1)
    return 2 * (dims + 8) * 2.0**-24 * scale + underflow


@once
def hamming(queries: Array, codes: Array, bits: int) -> I64:
    a, b = (np.unpackbits(array, axis=1)[:, :bits] for array in (queries, codes))
    return np.stack([(b != one).sum(axis=1) for one in a]) if len(a) else np.zeros((0, len(b)), np.int64)


# --- the canonical model --------------------------------------------------------------------------------------------------
def _lanes(array: Array) -> Array:
    """Vectors as (steps, LANES, vectors), padded with zeros: NumPy is fast where the last axis is long."""
    padded = np.pad(array, ((0, 0), (0, -array.shape[1] % LANES)))
    return np.ascontiguousarray(padded.T).reshape(padded.shape[1] // LANES, LANES, len(array))


def _tree(lanes: Array) -> Array:
    """Sum over the first axis, the upper half onto the lower one."""
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    return lanes[0]


def _lane_sum(queries: F32, rows: F32, squared: bool) -> F32:
    q, x = _lanes(queries), _lanes(rows)
    out = np.zeros((len(queries), len(rows)), np.float32)
    group = max(2**16 // (LANES * max(len(rows), 1)), 1)  # queries whose lanes stay in a cache
    with np.errstate(all="ignore"):
        for first in range(0, len(queries), group):
            lanes = np.zeros((LANES, *out[first : first + group].shape), np.float32)
            for query_part, rows_part in zip(q[:, :, first : first + group, None], x[:, :, None], strict=True):
                terms = query_part - rows_part if squared else query_part * rows_part
                lanes += terms * terms if squared else terms
            out[first : first + group] = _tree(lanes)
    return out


@once
def canonical_norm64(rows: F32) -> F64:
    lanes = np.zeros((LANES, len(rows)))
    for part in _lanes(rows.astype(np.float64)):
        lanes += part * part
    return np.sqrt(_tree(lanes))


@once
def canonical_norms(rows: F32) -> F32:
    with np.errstate(over="ignore"):
        return canonical_norm64(rows).astype(np.float32)


@once
def canonical_unit(queries: F32) -> F32:
    length = canonical_norm64(queries)[:, None]
    return np.divide(queries.astype(np.float64), length, out=np.zeros(queries.shape), where=length > 0).astype(np.float32)


@once
def canonical_score(metric: str, queries: F32, rows: F32) -> F32:
    """(Q, N) scores of dense rows that were widened before."""
    if metric == "l2":
        return _lane_sum(queries, rows, squared=True)
    if metric == "ip":
        return _lane_sum(queries, rows, squared=False)
    length = np.broadcast_to(canonical_norms(rows), (len(queries), len(rows)))
    product = _lane_sum(canonical_unit(queries), rows, squared=False)
    with np.errstate(all="ignore"):
        return np.divide(product, length, out=np.zeros_like(product), where=length != 0)


@once
def canonical_integer(
    metric: str, codes: Array, rows: Array, factors: F32, offsets: F32, norms2: F32 | None = None, scales: F32 | None = None
) -> F32:
    """(Q, N) scores of int8 rows with int8 queries."""
    c, x = codes.astype(np.float64), rows.astype(np.float64)
    products = c @ x.T  # of whole numbers whose sums stay below 2**53: exact in any order
    if metric == "l2_exact":
        return (np.square(c).sum(axis=1)[:, None] + np.square(x).sum(axis=1) - 2 * products).astype(np.float32)
    start = offsets[:, None] if norms2 is None else offsets[:, None] + norms2[None, :]
    rounded = products.astype(np.float32)
    return start + factors[:, None] * (rounded if scales is None else scales * rounded)


@once
def canonical_adc(tables: F32, codes: Array) -> F32:
    """(Q, N) sums of table entries; codes (N, M), one entry a code."""
    out = tables[:, 0][:, codes[:, 0]]
    for m in range(1, codes.shape[1]):
        out = out + tables[:, m][:, codes[:, m]]
    return out


@once
def canonical_scaled(sums: F32, scaling: Scaling, scales: F32, terms: F32 | None, largest: bool) -> F32:
    """Scores of rows with scales, from sums of table entries (Q, N)."""
    offset, base, step, weight = (values[:, None] for values in scaling)
    scaled = scales.astype(np.float64) * (base + step * sums.astype(np.float64))
    start = offset if terms is None else offset + weight * terms.astype(np.float64)
    with np.errstate(over="ignore"):
        return (start + scaled if largest else start - scaled).astype(np.float32) + np.float32(-0.0 if largest else 0.0)


@once
def canonical_tables(queries: F32, codebooks: F32, squared: bool) -> F32:
    subspaces, count, dims = codebooks.shape
    q = np.pad(queries, ((0, 0), (0, subspaces * dims - queries.shape[1]))).reshape(-1, subspaces, dims)
    out = np.zeros((len(q), subspaces, count), np.float32)
    for s in range(dims):
        part, word = q[:, :, s, None], codebooks[None, :, :, s]
        out += (part - word) * (part - word) if squared else part * word
    return out


@once
def whole_tables(tables: F32) -> F32:
    """Of tables (Q, M, K), as `Backend.pq_whole` rounds them."""
    lows = tables.min(axis=2, keepdims=True)
    with np.errstate(over="ignore"):
        widest = (tables - lows).max(axis=(1, 2), keepdims=True)
        usable = (widest > np.float32(1e-30)) & (widest < np.float32(1e37))
        inverse = np.float32(1) / np.where(usable, widest / np.float32(63), np.float32(1))
        whole = np.minimum(np.trunc((tables - lows) * inverse + np.float32(0.5)), np.float32(63))
    out: F32 = np.where(usable, whole, np.float32(0)).astype(np.float32)
    return out


# --- top-k --------------------------------------------------------------------------------------------------------------
@once
def best(scores: Array, k: int, *, ids: Array | None = None, largest: bool = True, allowed: Array | None = None) -> tuple[F32, I64]:
    """Scores and row numbers of the k best, ties to the smaller id; NaN and -1 beyond the rows there are.

    A NaN, from finite terms whose sum overflows both ways, counts as the worst score there is, so that a NaN always means "no row".
    """
    scores = np.where(np.isnan(scores), np.float32(-np.inf if largest else np.inf), scores.astype(np.float32))
    count, n = scores.shape
    names = np.arange(n) if ids is None else ids
    permitted = np.ones((count, n), bool) if allowed is None else np.broadcast_to(allowed, (count, n))
    found = np.full((count, k), -1, np.int64)
    top = np.full((count, k), np.nan, np.float32)
    for query in range(count):
        rows = np.flatnonzero(permitted[query])
        key = -scores[query, rows] if largest else scores[query, rows]
        order = rows[np.lexsort((names[rows], key))][:k]
        found[query, : len(order)] = order
        top[query, : len(order)] = scores[query, order]
    return top, found
