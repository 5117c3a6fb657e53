"""How batches scale from one thread to two: as two independent loops of the instruction that limits them do."""

from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np
import pytest

import adaptive_search as asx
from adaptive_search.types import Array

from ..contest import Contender, Contest, Search, Target, contenders, numbered
from ..data import Collection
from ..limits import floor
from ..peers import faiss_flat, faiss_scalar, faiss_search
from ..settings import SETTINGS
from .test_hamming import sign_codes
from .test_narrow import as_int8

DIMS = 256
BITS = 768
BATCH = 200

ONE, TWO = (f"{asx.backend()}, {numbered(threads)}" for threads in (1, 2))


def prepared(kind: str, collection: Collection) -> tuple[Array, Array, Search, Callable[[Array, int, int], Array]]:
    """Rows, queries, the best that faiss has, and the library's search with a number of threads."""
    rows: Array
    if kind == "bits":
        rows, queries = (sign_codes(vectors, BITS) for vectors in collection)
        index = faiss.IndexBinaryFlat(BITS)
        index.add(rows)
        return rows, queries, faiss_search(index), lambda queries, k, threads: asx.hamming_top_k(queries, rows, k, threads=threads).ids
    rows, queries = (np.ascontiguousarray(vectors[:, :DIMS]) for vectors in collection)
    if kind == "float32":
        peer = faiss_flat(rows)["faiss BLAS"]
    else:
        rows, queries = as_int8(rows, 127), as_int8(queries, 127)
        direct = faiss_scalar(rows.astype(np.float32), faiss.ScalarQuantizer.QT_8bit_direct_signed)
        peer = lambda queries, k: direct(queries.astype(np.float32), k)  # noqa: E731
    return rows, queries, peer, lambda queries, k, threads: asx.top_k(queries, rows, k, threads=threads).ids


@contenders("faiss", backends=[ONE, TWO])
@pytest.mark.parametrize("kind", ["float32", "int8", "bits"])
def test_two_threads(hold: Callable[[Callable[[], Contest]], None], collection: Collection, kind: str) -> None:
    def prepare() -> Contest:
        rows, queries, peer, search = prepared(kind, collection)
        work = rows.size * (1 if kind == "bits" else 2)

        def ours(threads: int) -> Contender:
            least = floor(kind, asx.backend(), work, threads=threads)
            return Contender(lambda queries, k: search(queries, k, threads), asx.backend(), floor=least)

        return Contest(
            f"{'Hamming' if kind == 'bits' else kind}, {len(rows):,} x {f'{BITS} bits' if kind == 'bits' else DIMS}, {BATCH} queries, 2 threads",
            {"faiss": Contender(peer), ONE: ours(1), TWO: ours(2)},
            queries[:BATCH],
            None,
            work=work,
            unit="GB/s" if kind == "bits" else "GOP/s",
            threads=2,
            targets=[Target(0.9, TWO, ONE, of="scaling", row=15)],
        )

    hold(prepare)
