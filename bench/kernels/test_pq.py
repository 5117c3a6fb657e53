"""Scans of product-quantization codes of 48 bytes, encoding and training. In scans, faiss and the library have the same codes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import faiss
import numpy as np
import pytest

import adaptive_search as asx
from adaptive_search.types import F32, I64, Array

from ..contest import Contender, Contest, Search, Target, asking, best_backends, contenders, on_backends
from ..data import Collection
from ..limits import floor
from ..peers import faiss_search, scann_search, turbovec_search
from ..settings import RECALL_TOLERANCE, SETTINGS
from ..truth import nearest, set_recall

Hold = Callable[[Callable[[], Contest]], None]

DIM = 768
SUBSPACES = {8: 48, 4: 96}
BYTES = 48

MOST = 200
"""Queries of a batch, and of those asked alone."""

ITERATIONS = 25

JUDGED_BY = "true 10 in the first 100"

FASTSCAN = "faiss RaBitQFastScan"


class Coded(NamedTuple):
    """The rows as codes: faiss's index, the same codebooks and codes in the library's quantizer, the true neighbours."""

    index: Any
    quantizer: asx.ProductQuantizer
    codes: Array
    truth: I64


@pytest.fixture(scope="module")
def coded(large: Collection) -> Callable[[int], Coded]:
    truth = nearest(large.rows, large.queries[:MOST], 10)

    @cache
    def code(bits: int) -> Coded:
        index = faiss.IndexPQ(DIM, SUBSPACES[bits], bits, faiss.METRIC_INNER_PRODUCT)
        index.train(np.ascontiguousarray(large.rows[:: len(large.rows) // SETTINGS.training]))
        quantizer = asx.ProductQuantizer.from_state({"codebooks": codebooks(index), "dim": np.array([DIM], np.int64)}, "ip")
        # The library encodes for both: it gives the same codes, and faiss would take minutes.
        codes = quantizer.encode(large.rows)
        index.add_sa_codes(codes)
        return Coded(index, quantizer, codes, truth)

    return code


def codebooks(index: Any) -> F32:
    """What a PQ index of faiss has learnt, (M, K, S)."""
    centroids: F32 = faiss.vector_to_array(index.pq.centroids)
    return centroids.reshape(index.pq.M, index.pq.ksub, index.pq.dsub)


def scan_contest(
    title: str, peers: dict[str, Search], ours: dict[str, Contender], rows: int, queries: F32, batch: int, truth: I64, targets: list[Target]
) -> Contest:
    alone = batch == 1
    asked = queries[: MOST if alone else batch]
    return Contest(
        f"{title}, {rows:,} rows, {asking(asked, alone)}",
        {name: Contender(peer) for name, peer in peers.items()} | ours,
        asked,
        set_recall(truth),
        work=rows,
        unit="G rows/s",
        alone=alone,
        depth=100,
        equal=False,
        targets=targets,
        judged_by=JUDGED_BY,
    )


def pq_contest(coded: Coded, peers: dict[str, Search], queries: F32, batch: int, targets: list[Target]) -> Contest:
    quantizer, packed = coded.quantizer, coded.quantizer.pack(coded.codes)
    kind = "nibbles" if quantizer.bits == 4 else "bytes"
    ours = on_backends(
        lambda queries, k: quantizer.top_k(queries, packed, k).ids,
        best_backends(),
        lambda backend: floor(kind, backend, len(packed) * quantizer.subspaces, packed.data.nbytes / batch),
    )
    title = f"PQ {quantizer.subspaces} x {quantizer.bits} bits"
    return scan_contest(title, peers, ours, len(packed), queries, batch, coded.truth, targets)


@contenders("faiss IndexPQ", backends=best_backends())
@pytest.mark.parametrize("batch", [1, 20, 200])
def test_eight_bits(hold: Hold, large: Collection, coded: Callable[[int], Coded], batch: int) -> None:
    def prepare() -> Contest:
        data = coded(8)
        peer = "faiss IndexPQ"
        targets = [
            Target(8.0 if batch == 1 else 18.0, rival=peer, row=10),
            Target(3.0, "avx2", peer, row=10),
            Target(-RECALL_TOLERANCE, rival=peer, of="recall", row=10),
        ]
        return pq_contest(data, {peer: faiss_search(data.index)}, large.queries, batch, targets)

    hold(prepare)


@contenders("faiss FastScan", "scann AH", "turbovec 2 bits x 192", "turbovec 4 bits x 96", backends=best_backends())
@pytest.mark.parametrize("batch", [1, 200])
def test_four_bits(hold: Hold, large: Collection, coded: Callable[[int], Coded], rivals: dict[str, Search], batch: int) -> None:
    """scann and turbovec have as many bytes a row, of which they make something else."""

    def prepare() -> Contest:
        data = coded(4)
        peer = "faiss FastScan"
        targets = [
            Target(1.0 if batch == 1 else 1.9, rival=peer, row=9),
            Target(-RECALL_TOLERANCE, rival=peer, of="recall", row=9),
        ]
        peers = {peer: faiss_search(faiss.IndexPQFastScan(data.index)), **rivals}
        return pq_contest(data, peers, large.queries, batch, targets)

    hold(prepare)


@pytest.fixture(scope="module")
def rivals(large: Collection) -> dict[str, Search]:
    """Others that estimate products from 48 bytes a row."""
    found = scann_search(
        "scann AH",
        large.rows,
        lambda builder: builder.score_ah(
            DIM // SUBSPACES[4], anisotropic_quantization_threshold=0.2, training_sample_size=SETTINGS.training
        ),
    )
    for bits in (2, 4):
        dims = 8 * BYTES // bits
        found |= turbovec_search(f"turbovec {bits} bits x {dims}", np.array(large.rows[:, :dims]), bits)
    return found


@pytest.fixture(scope="module")
def one_bit(large: Collection) -> Callable[[], tuple[dict[str, Any], asx.RaBitQuantizer, asx.PackedCodes, I64]]:
    """Indexes of faiss, which leaves rotating to its user; the library's quantizer and codes; the true neighbours."""

    @cache
    def code() -> tuple[dict[str, Any], asx.RaBitQuantizer, asx.PackedCodes, I64]:
        sample = np.ascontiguousarray(large.rows[:: len(large.rows) // SETTINGS.training])
        plain, rotated = (faiss.IndexRaBitQFastScan(DIM, faiss.METRIC_INNER_PRODUCT) for _ in range(2))
        peers = {FASTSCAN: plain, f"{FASTSCAN}, rotated": faiss.IndexPreTransform(faiss.RandomRotationMatrix(DIM, DIM), rotated)}
        for index in peers.values():
            index.train(sample)
            index.add(large.rows)
        quantizer = asx.RaBitQuantizer(1).fit(sample)
        packed = quantizer.pack(quantizer.encode(large.rows))
        return peers, quantizer, packed, nearest(large.rows, large.queries[:MOST], 10)

    return code


@contenders(FASTSCAN, f"{FASTSCAN}, rotated", backends=best_backends())
@pytest.mark.parametrize("batch", [1, 100])
def test_one_bit(
    hold: Hold,
    large: Collection,
    one_bit: Callable[[], tuple[dict[str, Any], asx.RaBitQuantizer, asx.PackedCodes, I64]],
    batch: int,
) -> None:
    """Codes of one bit a dim with factors of each row, asked with whole queries. Which of two random rotations finds more is chance: among
    100 queries they differ by 0.01."""

    def prepare() -> Contest:
        indexes, quantizer, packed, truth = one_bit()
        read = packed.data.nbytes + (0 if packed.factors is None else packed.factors.nbytes)
        ours = on_backends(
            lambda queries, k: quantizer.top_k(queries, packed, k).ids,
            best_backends(),
            lambda backend: floor("nibbles", backend, len(packed) * packed.subspaces, read / batch),
        )
        targets = [
            Target(3.0 if batch == 1 else 4.0, rival=FASTSCAN, row=11),
            Target(-RECALL_TOLERANCE, rival=FASTSCAN, of="recall", row=11),
        ]
        peers = {name: faiss_search(index) for name, index in indexes.items()}
        return scan_contest("1 bit with factors", peers, ours, len(packed), large.queries, batch, truth, targets)

    hold(prepare)


@contenders("faiss IndexPQ", backends=best_backends())
def test_encode(hold: Hold, large: Collection, coded: Callable[[int], Coded]) -> None:
    def prepare() -> Contest:
        data = coded(8)
        vectors = np.array(large.rows[:4000])
        operations = 2 * DIM * data.quantizer.codebooks.shape[1]
        return Contest(
            f"PQ encoding, {data.quantizer.subspaces} x 8 bits of {DIM} dims, {len(vectors):,} rows, 1 thread",
            {
                "faiss IndexPQ": Contender(lambda rows, _: data.index.sa_encode(rows)),
                **on_backends(
                    lambda rows, _: data.quantizer.encode(rows),
                    best_backends(),
                    lambda backend: floor("float32", backend, operations, 4 * DIM),
                ),
            },
            vectors,
            lambda codes: float((codes == data.codes[: len(codes)]).mean()),
            work=1e6,
            unit="k rows/s",
            judged_by="same codes",
            note="Seconds are per row.",
            targets=[Target(8.0, row=13)],
        )

    hold(prepare)


@contenders("faiss IndexPQ", backends=[asx.backend()])
def test_train(hold: Hold, collection: Collection) -> None:
    def prepare() -> Contest:
        rows = collection.rows[: SETTINGS.trained]

        def by_faiss(_queries: Array, _k: int) -> Array:
            index = faiss.IndexPQ(DIM, SUBSPACES[8], 8, faiss.METRIC_INNER_PRODUCT)
            index.pq.cp.niter = ITERATIONS
            index.train(rows)
            return codebooks(index)[None]

        def ours(_queries: Array, _k: int) -> Array:
            return asx.ProductQuantizer(SUBSPACES[8], iterations=ITERATIONS).fit(rows).codebooks[None]

        def error(found: Array) -> float:
            quantizer = asx.ProductQuantizer.from_state({"codebooks": found[0], "dim": np.array([DIM], np.int64)}, "ip")
            return float(((quantizer.decode(quantizer.encode(rows)) - rows) ** 2).mean())

        reference = error(by_faiss(rows, 0))
        return Contest(
            f"PQ training, {SUBSPACES[8]} x 8 bits of {DIM} dims, {len(rows):,} rows, {ITERATIONS} rounds, 1 thread",
            {"faiss IndexPQ": Contender(by_faiss), **on_backends(ours, [asx.backend()])},
            rows[:1],
            lambda found: reference / error(found),
            work=len(rows) * 1e6,
            unit="k rows/s",
            alone=True,
            equal=False,
            judged_by="faiss's error / error",
            note="Seconds are for all rows.",
            # The error at most 1.01 times that of faiss.
            targets=[Target(1.0, rival="faiss IndexPQ", row=13), Target(1 / 1.01 - 1, rival="faiss IndexPQ", of="recall", row=13)],
        )

    hold(prepare)
