"""Stateless search over numpy arrays: products, distances, exact top-k and rescoring.

Rows of float32, float16, bfloat16 and int8 are used where they are, row-strided views, read-only and memory-mapped arrays included.
Scores of `top_k`, `hamming_top_k` and `rescore` are the same to the bit on every backend, in every batch and on any number of threads;
ties go to the smaller row number.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import flat
from .arrays import Matrix, block_rows, ranges
from .backends import current
from .backends.protocol import IntegerMetric, Rows
from .execution import queries_at_once, run_ranges
from .flat import DenseFamily, Family, HammingFamily, IntegerFamily
from .types import F32, I32, I64, Array, Metric, Neighbors
from .validation import (
    as_batch,
    as_bits,
    as_candidates,
    as_code_batch,
    as_codes,
    as_dims,
    as_float32,
    as_k,
    as_mask,
    as_metric,
    as_rows,
    as_threads,
)

VISIT_ROWS = 4096


def _compared(queries: Any, rows: Any, dims: Any) -> tuple[Array, Matrix, bool]:
    """Queries (Q, D) and rows (N, D), both cut to the dims to compare, and whether it was a single query."""
    batch, single = as_batch(queries)
    matrix = as_rows(rows)
    width = as_dims(dims, batch.shape[1], matrix.dim)
    return batch[:, :width], matrix.prefix(width), single


def _dense_family(queries: Any, rows: Any, dims: Any, metric: Metric) -> tuple[DenseFamily | IntegerFamily, bool]:
    batch, matrix, single = _compared(queries, rows, dims)
    if batch.dtype == np.int8 and matrix.kind == "int8" and metric != "cosine":
        ones = np.ones(len(batch), np.float32)
        codes = np.ascontiguousarray(batch)
        exact: IntegerMetric = "l2_exact" if metric == "l2" else "ip"
        return IntegerFamily(current(), matrix, codes, ones, np.zeros_like(ones), exact), single
    return DenseFamily(current(), matrix, as_float32(batch), metric), single


def hamming_family(queries: Any, codes: Any, bits: Any) -> tuple[HammingFamily, bool]:
    """Packed queries and codes, checked and cut to the bits to compare, and whether it was a single query."""
    batch, single = as_code_batch(queries)
    rows = as_codes(codes, "codes")
    count = as_bits(bits, batch.shape[1], rows.shape[1])
    width = -(-count // 8)
    return HammingFamily(current(), rows[:, :width], np.ascontiguousarray(batch[:, :width]), count), single


def plain_threads(threads: Any) -> bool:
    """Small work is done by the calling thread, whatever number of them is allowed."""
    return threads is None or (type(threads) is int and threads >= 1)


def squeezed(found: Neighbors, single: bool) -> Neighbors:
    """(k,) arrays for a single query."""
    return Neighbors(found.ids[0], found.scores[0]) if single else found


def dot(queries: Any, rows: Any, *, dims: int | None = None, threads: int | None = None) -> F32:
    """Inner products of all queries with all rows.

    Parameters
    ----------
    queries : array_like, shape (Q, D) or (D,)
        Floats, or int8.
    rows : array_like, shape (N, D)
        float32, float16, bfloat16 or int8, used in place; other floats are converted block by block.
    dims : int, optional
        Compare only the first ``dims`` dims of both.
    threads : int, optional
        At most this many threads; by default see `set_threads`.

    Returns
    -------
    ndarray of float32, shape (Q, N) or (N,)
        Each within ``2 (D + 8) 2**-24 |q| |x|`` of the exact product, bfloat16 rows included. Unlike the scores of `top_k`, the last
        bits depend on the backend.

    Raises
    ------
    TypeError, ValueError
        An argument is of another type or shape, or holds NaN or infinity.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> asx.dot(np.float32([[1, 2]]), np.float32([[3, 4], [5, 6]]))
    array([[11., 17.]], dtype=float32)
    """
    batch, matrix, single = _compared(queries, rows, dims)
    return all_pairs(DenseFamily(current(), matrix, as_float32(batch), "ip"), np.float32, threads, single)


def hamming(queries: Any, codes: Any, *, bits: int | None = None, threads: int | None = None) -> I32:
    """Hamming distances of all packed queries to all packed rows.

    Parameters
    ----------
    queries : array_like of uint8, shape (Q, B) or (B,)
        Bits packed as by ``np.packbits(bits, axis=1)``.
    codes : array_like of uint8, shape (N, B)
        Used in place.
    bits : int, optional
        Compare only the first ``bits`` bits; by default all of the bytes.
    threads : int, optional
        At most this many threads; by default see `set_threads`.

    Returns
    -------
    ndarray of int32, shape (Q, N) or (N,)

    Raises
    ------
    TypeError, ValueError
        An argument is of another type or shape.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> asx.hamming(np.uint8([0b1111_0000]), np.uint8([[0b1111_0000], [0b1010_0001]]))
    array([0, 3], dtype=int32)
    """
    family, single = hamming_family(queries, codes, bits)
    return all_pairs(family, np.int32, threads, single)


def all_pairs(family: DenseFamily | HammingFamily, dtype: type[np.generic], threads: Any, single: bool) -> Array:
    """Products, distances or what else a family fills in: (Q, N), or (N,) for a single query."""
    threads = as_threads(threads)
    out = np.empty((family.queries, family.rows), dtype)
    for first, last in family.blocks():
        rows = family.open(first, last)
        whole = last - first == family.rows
        # The first range touches new pages of every one of these rows of the output, which must not take long (Ctrl-C).
        for start, stop in ranges(family.queries, min(128, queries_at_once(family.width))):
            part = out[start:stop] if whole else np.empty((stop - start, last - first), dtype)
            bad: list[int] = []

            def work(begin: int, end: int, rows: Rows = rows, start: int = start, part: Array = part, bad: list[int] = bad) -> None:
                bad.append(family.fill(rows, start, start + len(part), part, begin, end))

            run_ranges(work, last - first, threads=threads, grain=VISIT_ROWS)
            if max(bad, default=-1) >= 0:
                family.check_rows(first, last, None)
            if not whole:
                out[start:stop, first:last] = part
    return out[0] if single else out


def top_k(
    queries: Any, rows: Any, k: int, *, metric: Metric = "ip", dims: int | None = None, mask: Any = None, threads: int | None = None
) -> Neighbors:
    """The k best rows of every query, exactly.

    Parameters
    ----------
    queries : array_like, shape (Q, D) or (D,)
        Floats, or int8. int8 queries against int8 rows score as exact integers (ip, l2).
    rows : array_like, shape (N, D)
        float32, float16, bfloat16 or int8, used in place; other floats are converted block by block.
    k : int
        At least 1; may exceed the number of rows.
    metric : {"ip", "cosine", "l2"}
        Inner product, cosine (0 with a zero vector), or squared Euclidean distance.
    dims : int, optional
        Compare only the first ``dims`` dims of both; their cosine is that of the truncated vectors.
    mask : array_like of bool, shape (N,) or (Q, N), optional
        Which rows may be found. Rows that no query may find are not checked for NaN and infinity.
    threads : int, optional
        At most this many threads; by default see `set_threads`.

    Returns
    -------
    Neighbors
        Row numbers and scores, best first, ties by row number: (Q, min(k, m)) where m is the largest number of rows that a
        query may find; (min(k, m),) for a single query. A query with fewer ends in id -1 and score NaN.

    Raises
    ------
    TypeError, ValueError
        An argument is of another type or shape, out of range, or holds NaN or infinity.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> rows = np.float32([[1, 0], [0, 1], [0.6, 0.8]])
    >>> asx.top_k(np.float32([1, 0]), rows, k=2)
    Neighbors(ids=array([0, 2]), scores=array([1. , 0.6], dtype=float32))
    """
    if dims is None and mask is None and plain_threads(threads):
        plain = current().plain_top_k(queries, rows, k, metric, flat.SMALL_WORK)
        if plain is not None:
            return Neighbors._make(plain)
    family, single = _dense_family(queries, rows, dims, as_metric(metric))
    k = as_k(k)
    allowed = as_mask(mask, family.queries, family.rows)
    threads = as_threads(threads)
    found = family.at_once(k) if allowed is None and isinstance(family, DenseFamily) else None
    return squeezed(found or flat.top_k(family, k, allowed, threads), single)


def hamming_top_k(queries: Any, codes: Any, k: int, *, bits: int | None = None, mask: Any = None, threads: int | None = None) -> Neighbors:
    """The k packed rows nearest to every packed query by Hamming distance.

    Parameters
    ----------
    queries : array_like of uint8, shape (Q, B) or (B,)
        Bits packed as by ``np.packbits(bits, axis=1)``.
    codes : array_like of uint8, shape (N, B)
        Used in place.
    k : int
        At least 1; may exceed the number of rows.
    bits : int, optional
        Compare only the first ``bits`` bits; by default all of the bytes.
    mask : array_like of bool, shape (N,) or (Q, N), optional
        Which rows may be found.
    threads : int, optional
        At most this many threads; by default see `set_threads`.

    Returns
    -------
    Neighbors
        As for `top_k`; scores are distances, smallest first.

    Raises
    ------
    TypeError, ValueError
        An argument is of another type or shape, or out of range.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> asx.hamming_top_k(np.uint8([0]), np.uint8([[7], [1], [2]]), k=2)
    Neighbors(ids=array([1, 2]), scores=array([1., 1.], dtype=float32))
    """
    if bits is None and mask is None and plain_threads(threads):
        plain = current().plain_hamming_top_k(queries, codes, k, flat.SMALL_WORK)
        if plain is not None:
            return Neighbors._make(plain)
    family, single = hamming_family(queries, codes, bits)
    return best_rows(family, k, mask, threads, single)


def best_rows(family: Family, k: Any, mask: Any, threads: Any, single: bool) -> Neighbors:
    """The k best rows of a family for every query, or for a single one; of arguments as users give them."""
    k = as_k(k)
    allowed = as_mask(mask, family.queries, family.rows)
    return squeezed(flat.top_k(family, k, allowed, as_threads(threads)), single)


def rescore(
    queries: Any, rows: Any, candidates: Any, k: int, *, metric: Metric = "ip", dims: int | None = None, threads: int | None = None
) -> Neighbors:
    """The k best among given candidates of every query, with exact scores.

    Parameters
    ----------
    queries : array_like, shape (Q, D) or (D,)
        As for `top_k`.
    rows : array_like, shape (N, D)
        As for `top_k`; only candidates are read.
    candidates : array_like of int64, shape (Q, C) or (C,)
        Row numbers; -1 is none, and a row that is named twice counts once.
    k : int
        At least 1; may exceed the number of candidates.
    metric, dims, threads
        As for `top_k`.

    Returns
    -------
    Neighbors
        As for `top_k`, m being the largest number of candidates that a query has.

    Raises
    ------
    TypeError, ValueError
        An argument is of another type or shape, out of range, or holds NaN or infinity.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> rows = np.float32([[1, 0], [0, 1], [0.6, 0.8]])
    >>> asx.rescore(np.float32([1, 0]), rows, [2, -1, 1, 2], k=3)
    Neighbors(ids=array([2, 1]), scores=array([0.6, 0. ], dtype=float32))
    """
    family, single = _dense_family(queries, rows, dims, as_metric(metric))
    k = as_k(k)
    lists = as_candidates(candidates, family.queries, family.rows, single)
    ids = np.full((family.queries, min(k, lists.shape[1])), -1, np.int64)
    scores = np.full(ids.shape, np.nan, np.float32)
    whole = family.open(0, family.rows) if family.matrix.in_place else None
    bad: list[int] = []

    def work(first: int, last: int) -> None:
        found, met = _rescored(family, whole, first, last, lists[first:last], ids.shape[1])
        ids[first:last], scores[first:last] = found
        bad.extend(met)

    threads = as_threads(threads)
    if ids.size:
        run_ranges(work, family.queries, threads=threads)
    if bad:
        raise family.matrix.bad_row_error(min(bad))
    width = int((ids >= 0).sum(axis=1).max(initial=0))
    return squeezed(Neighbors(ids[:, :width], scores[:, :width]), single)


def _rescored(
    family: DenseFamily | IntegerFamily, whole: Rows | None, first: int, last: int, lists: I64, k: int
) -> tuple[Neighbors, list[int]]:
    """Candidate lists of queries first..last scored on the rows in place, or on converted copies of those rows alone; and bad rows."""
    if whole is not None:
        scores, ids, met = family.rescore(whole, first, last, lists, k)
        return Neighbors(ids, scores), [met] if met >= 0 else []
    named = np.unique(lists)
    named = named[named >= 0]
    best = Neighbors(np.full((last - first, k), -1, np.int64), np.full((last - first, k), np.nan, np.float32))
    bad: list[int] = []
    for start, stop in ranges(len(named), block_rows(4 * family.matrix.dim)):
        part = named[start:stop]
        # Numbers within the part rise with the row numbers, so ties stay as they are.
        local = np.searchsorted(part, lists)
        local[part[np.minimum(local, len(part) - 1)] != lists] = -1
        scores, ids, met = family.rescore(family.bind(family.matrix.convert(family.matrix.array[part])), first, last, local, k)
        if met >= 0:
            bad.append(int(part[met]))
        best = flat.merged(best, Neighbors(np.where(ids >= 0, part[ids], -1), scores), k, family.largest)
    return best, bad
