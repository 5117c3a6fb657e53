"""How batches scale from one thread to two: as two independent loops of the instruction that limits them do."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import faiss
import numpy as np
import pytest

import adaptive_search as asx
from adaptive_search.types import Array

from ..contest import Contender, Contest, Search, Target, asking, contenders, numbered
from ..data import Collection
from ..limits import floor
from ..peers import faiss_flat, faiss_scalar, faiss_search
from .test_hamming import sign_codes
from .test_narrow import as_int8

DIMS = 256
BITS = 768
BATCH = 200

ONE, TWO = (f"{asx.backend()}, {numbered(threads)}" for threads in (1, 2))


class Work(NamedTuple):
    """What is searched, by the best that faiss has, and by the library; the operations for a query."""

    rows: Array
    queries: Array
    peer: Search
    search: Callable[..., asx.Neighbors]
    operations: int
    unit: str


def work(kind: str, collection: Collection) -> Work:
    if kind == "bits":
        codes, asked = (sign_codes(vectors, BITS) for vectors in collection)
        index = faiss.IndexBinaryFlat(BITS)
        index.add(codes)
        return Work(codes, asked, faiss_search(index), asx.hamming_top_k, codes.size, "GB/s")
    rows, queries = (np.ascontiguousarray(vectors[:, :DIMS]) for vectors in collection)
    if kind == "float32":
        return Work(rows, queries, faiss_flat(rows)["faiss BLAS"], asx.top_k, 2 * rows.size, "GFLOP/s")
    codes, asked = as_int8(rows, 127), as_int8(queries, 127)
    direct = faiss_scalar(codes.astype(np.float32), faiss.ScalarQuantizer.QT_8bit_direct_signed)
    return Work(codes, asked, lambda batch, k: direct(batch.astype(np.float32), k), asx.top_k, 2 * codes.size, "GOP/s")


@contenders("faiss", backends=[ONE, TWO])
@pytest.mark.parametrize("kind", ["float32", "int8", "bits"])
def test_two_threads(hold: Callable[[Callable[[], Contest]], None], collection: Collection, kind: str) -> None:
    def prepare() -> Contest:
        rows, queries, peer, search, operations, unit = work(kind, collection)
        queries = queries[:BATCH]

        def ours(threads: int) -> Contender:
            least = floor(kind, asx.backend(), operations, threads=threads)
            return Contender(lambda queries, k: search(queries, rows, k, threads=threads).ids, asx.backend(), floor=least)

        what = f"Hamming, {len(rows):,} x {BITS} bits" if kind == "bits" else f"{kind}, {len(rows):,} x {DIMS}"
        return Contest(
            f"{what}, {asking(queries, False, threads=2)}",
            {"faiss": Contender(peer), ONE: ours(1), TWO: ours(2)},
            queries,
            None,
            work=operations,
            unit=unit,
            threads=2,
            targets=[Target(0.9, TWO, ONE, of="scaling", row=15)],
        )

    hold(prepare)
