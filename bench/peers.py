"""The peers as contenders, each with its own best way of doing a thing, and everybody's number of threads."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
from threadpoolctl import threadpool_limits
from usearch.index import MetricKind, ScalarKind, search as usearch_search

import adaptive_search as asx
from adaptive_search.types import F32, I64, U8, Array

OPTIONAL = ("numkong", "scann", "turbovec")
"""Peers without a package for every platform."""

MISSING: dict[str, str] = {}
"""Those of them that are not here, and why."""


def _optional(name: str) -> Any:
    """A peer's module, or None: then it takes part in no contest."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        MISSING[name] = str(error)
        return None


# turbovec has no other way to limit its threads, and reads this when it is first used.
os.environ.setdefault("RAYON_NUM_THREADS", "1")
numkong, scann, turbovec = map(_optional, OPTIONAL)

SCORES = 1 << 26
"""Most scores that NumPy and numkong compute at a time: 256 MB of them."""

GROUPS = 64
"""Columns that `best_of` first looks at together."""

LOOP, BLAS = 1 << 30, 1
"""Values of faiss's threshold that force one of its two paths of flat search; which one wins depends on dims and queries."""


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Everybody's threads: the library's, BLAS's, OpenMP's. usearch takes a number per call; the optional peers use one thread."""
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
    """Columns of the k largest scores of every row, best first.

    They lie in the k groups of columns with the largest maxima; a partition of whole rows takes several times as long as their maxima.
    """
    count = scores.shape[1]
    width = count // GROUPS
    if width > 4 * k:
        maxima = scores[:, : GROUPS * width].reshape(len(scores), GROUPS, width).max(axis=1)
        groups = np.argpartition(maxima, width - k, axis=1)[:, width - k :]
        members = (groups[:, :, None] + width * np.arange(GROUPS)).reshape(len(scores), -1)
        rest = np.broadcast_to(np.arange(GROUPS * width, count), (len(scores), count - GROUPS * width))
        columns = np.concatenate([members, rest], axis=1)
    else:
        columns = np.broadcast_to(np.arange(count), scores.shape)
    taken = np.take_along_axis(scores, columns, axis=1)
    found = np.argpartition(taken, taken.shape[1] - k, axis=1)[:, taken.shape[1] - k :]
    order = np.argsort(np.take_along_axis(taken, found, axis=1), axis=1, kind="stable")[:, ::-1]
    return np.take_along_axis(columns, np.take_along_axis(found, order, axis=1), axis=1)


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


def numpy_jaccard(codes: U8) -> Callable[[Array, int], Array]:
    """Counts of common bits in 64-bit words, one query after the other."""
    words = codes.view(np.uint64)
    sizes = np.bitwise_count(words).sum(axis=1, dtype=np.int32)

    def search(queries: Array, k: int) -> Array:
        found = np.empty((len(queries), k), np.int64)
        for number, query in enumerate(queries.view(np.uint64)):
            common = np.bitwise_count(words & query).sum(axis=1, dtype=np.int32)
            either = sizes + np.bitwise_count(query).sum(dtype=np.int32) - common
            found[number] = best_of((common / np.maximum(either, 1))[np.newaxis], k)[0]
        return found

    return search


def faiss_search(index: Any) -> Callable[[Array, int], Array]:
    """An index of faiss."""

    def search(queries: Array, k: int) -> Array:
        ids: Array = index.search(queries, k)[1]
        return ids

    return search


def faiss_flat(rows: F32) -> dict[str, Callable[[Array, int], Array]]:
    """Both paths of flat search, by name; on the rows themselves, as its index searches its copy of them."""

    def path(threshold: int) -> Callable[[Array, int], Array]:
        def search(queries: Array, k: int) -> Array:
            faiss.cvar.distance_compute_blas_threshold = threshold
            ids: Array = faiss.knn(queries, rows, k, faiss.METRIC_INNER_PRODUCT)[1]
            return ids

        return search

    return {"faiss loop": path(LOOP), "faiss BLAS": path(BLAS)}


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


def numkong_dense(rows: Array) -> dict[str, Callable[[Array, int], Array]]:
    """All products of packed queries, for types that numkong multiplies as they are."""

    def search(queries: Array, k: int) -> Array:
        return _numkong_best(numkong.dots_packed, numkong.dots_pack, rows, queries, k)

    return {"numkong": search} if numkong else {}


def numkong_hamming(codes: U8) -> dict[str, Callable[[Array, int], Array]]:
    """All distances of packed queries; turned over, because the smallest are wanted."""

    def distances(codes: Array, packed: Any) -> Array:
        counts = np.asarray(numkong.hammings_packed(codes, packed))
        return np.invert(counts, out=counts)

    def search(queries: Array, k: int) -> Array:
        return _numkong_best(distances, numkong.hammings_pack, codes, queries, k)

    return {"numkong": search} if numkong else {}


def numkong_jaccard(codes: U8) -> dict[str, Callable[[Array, int], Array]]:
    """All distances of packed queries; negative, because the smallest are wanted."""

    def search(queries: Array, k: int) -> Array:
        return _numkong_best(
            lambda rows, packed: -np.asarray(numkong.jaccards_packed(rows, packed)), numkong.hammings_pack, codes, queries, k
        )

    return {"numkong": search} if numkong else {}


def _numkong_best(compare: Callable[[Array, Any], Any], pack: Callable[[Array], Any], rows: Array, queries: Array, k: int) -> Array:
    # Packing the queries rather than the rows is the faster way round.
    step = max(1, SCORES // len(rows))
    batches = [queries[first : first + step] for first in range(0, len(queries), step)]
    return np.concatenate([best_of(np.asarray(compare(rows, pack(batch))).T, k) for batch in batches])


def scann_searcher(rows: F32, configure: Callable[[Any], Any]) -> Any:
    """A searcher of scann on one thread, made by `configure` from its builder; ImportError where there is no scann."""
    if not scann:
        raise ImportError(MISSING["scann"])
    searcher = configure(scann.scann_ops_pybind.builder(rows, 10, "dot_product").set_n_training_threads(1)).build()
    searcher.set_num_threads(1)
    return searcher


def scann_search(name: str, rows: F32, configure: Callable[[Any], Any]) -> dict[str, Callable[[Array, int], Array]]:
    """Its search, if there is scann."""
    if not scann:
        return {}
    searcher = scann_searcher(rows, configure)

    def search(queries: Array, k: int) -> Array:
        return np.asarray(searcher.search_batched(queries, k)[0]).astype(np.int64)

    return {name: search}


def scann_brute_force(name: str, rows: F32, kind: str) -> dict[str, Callable[[Array, int], Array]]:
    """Flat search of scann over rows of another type: the name of a ``ReorderType``."""
    return scann_search(name, rows, lambda builder: builder.score_brute_force(getattr(scann.ReorderType, kind)))


def turbovec_index(rows: F32, bits: int) -> Any:
    """So many bits for each of the dims there are; ImportError where there is no turbovec."""
    if not turbovec:
        raise ImportError(MISSING["turbovec"])
    index = turbovec.TurboQuantIndex(rows.shape[1], bits)
    index.calibrate(np.ascontiguousarray(rows[:: max(1, len(rows) // 4096)]))
    index.add(rows)
    index.prepare()
    return index


def turbovec_search(name: str, rows: F32, bits: int) -> dict[str, Callable[[Array, int], Array]]:
    """Its search, if there is turbovec."""
    if not turbovec:
        return {}
    dims = rows.shape[1]
    index = turbovec_index(rows, bits)

    def search(queries: Array, k: int) -> Array:
        return np.asarray(index.search(np.ascontiguousarray(queries[:, :dims]), k)[1])

    return {name: search}
