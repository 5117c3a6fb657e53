"""How work scales from one thread to two: as two independent loops of what limits it do. And that many callers at once lose nothing.

On a shared machine a pair of rounds says little when others want the cores, so that rounds are taken again until nobody did
(`contest.undisturbed`); where somebody always does, figures are those of a crowd.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import faiss
import numpy as np
import pytest

import adaptive_search as asx
from adaptive_search.types import Array

from ..contest import LONELY, Contender, Contest, Search, Target, asking, contenders, numbered
from ..data import Collection
from ..limits import Floor, floor
from ..peers import faiss_flat, faiss_scalar, faiss_search
from ..settings import SETTINGS
from .test_hamming import sign_codes
from .test_narrow import as_int8
from .test_pq import SUBSPACES, codebooks

DIMS = 256
BITS = 768
BATCH = 200
CALLERS = 8

ONE, TWO = (f"{asx.backend()}, {numbered(threads)}" for threads in (1, 2))
ALONE, MANY = (f"{asx.backend()}, {callers}" for callers in ("1 caller", f"{CALLERS} callers"))


class Work(NamedTuple):
    """What is searched, by the best that faiss has, and by the library; the operations of ``kind`` for a query."""

    title: str
    queries: Array
    peer: Search
    search: Callable[..., asx.Neighbors]
    kind: str
    operations: int
    unit: str
    k: int = 10


def work(kind: str, collection: Collection) -> Work:
    if kind == "bits":
        codes, asked = (sign_codes(vectors, BITS) for vectors in collection)
        index = faiss.IndexBinaryFlat(BITS)
        index.add(codes)

        def nearest(queries: Array, k: int, threads: int) -> asx.Neighbors:
            return asx.hamming_top_k(queries, codes, k, threads=threads)

        return Work(f"Hamming, {len(codes):,} x {BITS} bits", asked[:BATCH], faiss_search(index), nearest, kind, codes.size, "GB/s")
    if kind == "nibbles":
        rows, queries = collection
        index = faiss.IndexPQ(rows.shape[1], SUBSPACES[4], 4, faiss.METRIC_INNER_PRODUCT)
        index.train(np.ascontiguousarray(rows[:: -(-len(rows) // SETTINGS.training)]))
        quantizer = asx.ProductQuantizer.from_state({"codebooks": codebooks(index), "dim": np.array([rows.shape[1]], np.int64)}, "ip")
        packed = quantizer.pack(quantizer.encode(rows))
        index.add_sa_codes(quantizer.encode(rows))

        def estimated(queries: Array, k: int, threads: int) -> asx.Neighbors:
            return quantizer.top_k(queries, packed, k, threads=threads)

        title = f"PQ {quantizer.subspaces} x 4 bits, {len(rows):,} rows"
        peer = faiss_search(faiss.IndexPQFastScan(index))
        return Work(title, queries[:BATCH], peer, estimated, kind, len(rows) * quantizer.subspaces, "G lookups/s")
    rows, queries = (np.ascontiguousarray(vectors[:, :DIMS]) for vectors in collection)
    if kind == "float32":
        peer, k, unit = faiss_flat(rows)["faiss BLAS"], 32, "GFLOP/s"
    else:
        rows, queries = as_int8(rows, 127), as_int8(queries[:BATCH], 127)
        direct = faiss_scalar(rows.astype(np.float32), faiss.ScalarQuantizer.QT_8bit_direct_signed)
        peer, k, unit = lambda batch, k: direct(batch.astype(np.float32), k), 10, "GOP/s"

    def best(queries: Array, k: int, threads: int) -> asx.Neighbors:
        return asx.top_k(queries, rows, k, threads=threads)

    return Work(f"{kind}, {len(rows):,} x {DIMS}", queries, peer, best, kind, 2 * rows.size, unit, k)


@contenders("faiss", backends=[ONE, TWO])
@pytest.mark.parametrize("kind", ["float32", "int8", "bits", "nibbles"])
def test_two_threads(hold: Callable[[Callable[[], Contest]], None], collection: Collection, kind: str) -> None:
    """The peer has two threads too."""

    def prepare() -> Contest:
        title, queries, peer, search, kind_, operations, unit, k = work(kind, collection)

        def ours(threads: int) -> Contender:
            least = floor(kind_, asx.backend(), operations, threads=threads)
            return Contender(lambda queries, k: search(queries, k, threads).ids, asx.backend(), floor=least)

        return Contest(
            f"{title}, {asking(queries, False, threads=2, k=k)}",
            {"faiss": Contender(peer), ONE: ours(1), TWO: ours(2)},
            queries,
            None,
            work=operations,
            unit=unit,
            threads=2,
            k=k,
            targets=[Target(0.9, TWO, ONE, of="scaling", row=15)],
        )

    hold(prepare)


@contenders("faiss", backends=[ONE, TWO])
def test_one_query(hold: Callable[[Callable[[], Contest]], None], first_dims: Callable[[int, int], Collection]) -> None:
    """Whoever reads rows once is as fast as memory, which two threads share."""

    def prepare() -> Contest:
        rows, queries = first_dims(SETTINGS.many, DIMS)

        def ours(threads: int) -> Contender:
            least = Floor(bytes=rows.nbytes, threads=threads)
            return Contender(lambda queries, k: asx.top_k(queries, rows, k, threads=threads).ids, asx.backend(), floor=least)

        return Contest(
            f"float32, {len(rows):,} x {DIMS}, {asking(queries, True, threads=2)}",
            {"faiss": Contender(faiss_flat(rows)["faiss loop"]), ONE: ours(1), TWO: ours(2)},
            queries[:LONELY],
            None,
            work=rows.nbytes,
            unit="GB/s",
            threads=2,
            alone=True,
            targets=[Target(0.9, TWO, ONE, of="scaling", row=15)],
        )

    hold(prepare)


@contenders(backends=[ALONE, MANY])
@pytest.mark.parametrize("count", [1000, 20_000])
def test_many_callers(hold: Callable[[Callable[[], Contest]], None], first_dims: Callable[[int, int], Collection], count: int) -> None:
    """One search a call, from one thread and from more threads than there are cores."""

    def prepare() -> Contest:
        rows, queries = first_dims(SETTINGS.rows, 384)
        rows = rows[:count]
        pool = ThreadPoolExecutor(CALLERS)

        def each(queries: Array, k: int) -> Array:
            return np.stack([asx.top_k(query, rows, k).ids for query in queries])

        def together(queries: Array, k: int) -> Array:
            return np.concatenate(list(pool.map(lambda part: each(part, k), np.array_split(queries, CALLERS))))

        return Contest(
            f"float32, {count:,} x 384, {len(queries)} searches of one query, 2 threads",
            {
                ALONE: Contender(each, asx.backend()),
                MANY: Contender(together, asx.backend()),
            },
            queries,
            None,
            work=1e6,
            unit="k queries/s",
            threads=2,
            targets=[Target(1.0, MANY, ALONE, row=15)],
        )

    hold(prepare)
