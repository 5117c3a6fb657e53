"""Scans of product-quantization codes of 48 bytes, and encoding. Everybody has the codebooks that faiss has trained."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import faiss
import numpy as np
import pytest

import adaptive_search as asx
from adaptive_search.types import F32, I64, Array

from ..contest import Contender, Contest, Search, Target, contenders, numbered, on_every_backend
from ..data import Collection
from ..peers import best_of, faiss_search
from ..settings import SETTINGS
from ..truth import nearest, set_recall

Hold = Callable[[Callable[[], Contest]], None]

DIM = 768
SUBSPACES = {8: 48, 4: 96}


class Coded(NamedTuple):
    """The rows as codes: faiss's index, the same codebooks and codes in the library's quantizer, the true neighbours."""

    index: Any
    quantizer: asx.ProductQuantizer
    codes: Array
    truth: I64


@pytest.fixture(scope="module")
def coded(collection: Collection) -> Callable[[int], Coded]:
    truth = nearest(*collection, 10)

    @cache
    def code(bits: int) -> Coded:
        index = faiss.IndexPQ(DIM, SUBSPACES[bits], bits, faiss.METRIC_INNER_PRODUCT)
        index.train(collection.rows[:: len(collection.rows) // SETTINGS.training])
        index.add(collection.rows)
        quantizer = asx.ProductQuantizer.from_state(
            {
                "codebooks": faiss.vector_to_array(index.pq.centroids).reshape(SUBSPACES[bits], 2**bits, -1),
                "dim": np.array([DIM], np.int64),
            },
            "ip",
        )
        codes = faiss.vector_to_array(index.codes).reshape(index.ntotal, -1)
        return Coded(index, quantizer, codes, truth)

    return code


def numpy_pq(quantizer: asx.ProductQuantizer, codes: Array) -> Search:
    """A lookup per code and a sum, one query after the other."""
    places = codes.astype(np.intp) + 256 * np.arange(quantizer.subspaces)

    def search(queries: Array, k: int) -> Array:
        tables = np.einsum("mks,qms->qmk", quantizer.codebooks, queries.reshape(len(queries), quantizer.subspaces, -1))
        return np.concatenate([best_of(table.ravel().take(places).sum(axis=1)[None], k) for table in tables])

    return search


def scan_contest(coded: Coded, peers: dict[str, Search], queries: F32, batch: int, threads: int, *targets: Target) -> Contest:
    quantizer, packed = coded.quantizer, coded.quantizer.pack(coded.codes)
    alone = batch == 1
    asked = queries[: 200 if alone else batch]
    return Contest(
        f"PQ {quantizer.subspaces} x {quantizer.bits} bits, {len(packed):,} rows, "
        f"{'one query' if alone else f'{len(asked)} queries'}, {numbered(threads)}",
        {name: Contender(peer) for name, peer in peers.items()}
        | on_every_backend(lambda queries, k: quantizer.top_k(queries, packed, k).ids),
        asked,
        set_recall(coded.truth),
        work=len(packed),
        unit="G rows/s",
        threads=threads,
        alone=alone,
        depth=100,
        targets=targets,
        judged_by="true 10 in the first 100",
    )


@contenders("NumPy", "faiss IndexPQ")
@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (100, 1), (100, 2)])
def test_eight_bits(hold: Hold, collection: Collection, coded: Callable[[int], Coded], batch: int, threads: int) -> None:
    def prepare() -> Contest:
        data = coded(8)
        peers = {"NumPy": numpy_pq(data.quantizer, data.codes), "faiss IndexPQ": faiss_search(data.index)}
        targets = [Target(3.0)] if threads == 1 else []
        return scan_contest(data, peers, collection.queries, batch, threads, *targets)

    hold(prepare)


@contenders("faiss FastScan")
@pytest.mark.parametrize("batch", [1, 100])
def test_four_bits(hold: Hold, collection: Collection, coded: Callable[[int], Coded], batch: int) -> None:
    def prepare() -> Contest:
        data = coded(4)
        fast = faiss_search(faiss.IndexPQFastScan(data.index))
        return scan_contest(data, {"faiss FastScan": fast}, collection.queries, batch, 1)

    hold(prepare)


@contenders("faiss IndexPQ")
def test_encode(hold: Hold, collection: Collection, coded: Callable[[int], Coded]) -> None:
    def prepare() -> Contest:
        data = coded(8)
        vectors = collection.rows[:2000]
        return Contest(
            f"PQ encoding, {data.quantizer.subspaces} x 8 bits of {DIM} dims, {len(vectors):,} rows, 1 thread",
            {
                "faiss IndexPQ": Contender(lambda rows, _: data.index.sa_encode(rows)),
                **on_every_backend(lambda rows, _: data.quantizer.encode(rows)),
            },
            vectors,
            lambda codes: float((codes == data.codes[: len(codes)]).mean()),
            work=1e6,
            unit="k rows/s",
            judged_by="same codes",
            note="Seconds are per row.",
        )

    hold(prepare)
