"""NumPy, faiss and usearch as contenders, each with its own best way of doing a thing, and everybody's number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
from threadpoolctl import threadpool_limits
from usearch.index import MetricKind, ScalarKind, search as usearch_search

import adaptive_search as asx
from adaptive_search.types import F32, I64, U8, Array

SCORES = 1 << 26
"""Most scores that NumPy computes at a time: 256 MB of them."""

LOOP, BLAS = 1 << 30, 1
"""Values of faiss's threshold that force one of its two paths of flat search; which one wins depends on dims and queries."""


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Everybody's threads: the library's, BLAS's, OpenMP's. usearch takes a number per call."""
    before = asx.get_threads(), faiss.omp_get_max_threads()
    asx.set_threads(threads)
    faiss.omp_set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        asx.set_threads(before[0])
        faiss.omp_set_num_threads(before[1])


def best_of(scores: Array, k: int) -> I64:
    """Columns of the k largest scores of every row, best first."""
    count = scores.shape[1]
    found = np.argpartition(scores, count - k, axis=1)[:, count - k :]
    order = np.argsort(-np.take_along_axis(scores, found, axis=1), axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)


def numpy_dense(rows: Array) -> Callable[[Array, int], Array]:
    """One matrix product and a partition, for as many queries at a time as memory allows."""
    step = max(1, SCORES // len(rows))
    # NumPy multiplies only floats through BLAS: other rows are widened a block at a time.
    block = len(rows) if rows.dtype == np.float32 else 16_384

    def search(queries: Array, k: int) -> Array:
        found = []
        for first in range(0, len(queries), step):
            batch = queries[first : first + step].astype(np.float32, copy=False)
            scores = [batch @ rows[start : start + block].astype(np.float32, copy=False).T for start in range(0, len(rows), block)]
            found.append(best_of(scores[0] if len(scores) == 1 else np.concatenate(scores, axis=1), k))
        return np.concatenate(found)

    return search


def numpy_hamming(codes: U8) -> Callable[[Array, int], Array]:
    """Counts of differing bits in 64-bit words, one query after the other."""
    words = codes.view(np.uint64)

    def search(queries: Array, k: int) -> Array:
        # uint16 holds any distance; differences stay in the cache when taken word by word.
        found = np.empty((len(queries), k), np.int64)
        for number, query in enumerate(queries.view(np.uint64)):
            distances = np.bitwise_count(words ^ query).sum(axis=1, dtype=np.uint16)
            nearest = np.argpartition(distances, k - 1)[:k]
            found[number] = nearest[np.argsort(distances[nearest], kind="stable")]
        return found

    return search


def faiss_search(index: Any, threshold: int | None = None) -> Callable[[Array, int], Array]:
    """An index of faiss; ``threshold`` is `LOOP` or `BLAS` for flat ones."""

    def search(queries: Array, k: int) -> Array:
        if threshold is not None:
            faiss.cvar.distance_compute_blas_threshold = threshold
        ids: Array = index.search(queries, k)[1]
        return ids

    return search


def faiss_flat(rows: F32) -> dict[str, Callable[[Array, int], Array]]:
    """Both paths of flat search, by name."""
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    return {"faiss loop": faiss_search(index, LOOP), "faiss BLAS": faiss_search(index, BLAS)}


def faiss_scalar(rows: F32, kind: int) -> Callable[[Array, int], Array]:
    """Flat search over rows of another type: a ``faiss.ScalarQuantizer.QT_...``."""
    index = faiss.IndexScalarQuantizer(rows.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    return faiss_search(index)


def usearch_exact(
    rows: Array, threads: int, metric: MetricKind = MetricKind.IP, dtype: ScalarKind | None = None
) -> Callable[[Array, int], Array]:
    """Exhaustive search; ``dtype`` says what uint16 rows and queries are."""

    def search(queries: Array, k: int) -> Array:
        keys: Array = usearch_search(rows, queries, k, metric, exact=True, threads=threads, dtype=dtype).keys
        return keys.reshape(len(queries), -1).astype(np.int64)

    return search
