"""The nearest by Hamming distance among sign codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import faiss
import numpy as np
import pytest
from usearch.index import MetricKind

import adaptive_search as asx
from adaptive_search.types import U8, Array

from ..contest import EXACT, LONELY, NUMBA_TARGET, Contender, Contest, Search, Target, asking, best_backends, contenders, on_backends
from ..data import Collection
from ..limits import floor
from ..peers import faiss_search, numkong_hamming, numpy_hamming, usearch_exact
from ..truth import hamming_recall

Hold = Callable[[Callable[[], Contest]], None]

TIMES = 4
"""So many times the rows of other contests are asked one query: otherwise narrow codes nearly fit into the cache."""

WIDTHS = (256, 512, 768, 1024)
SPEEDS = {10: (3.5, 2.7, 4.5, 3.8), 100: (2.7, 2.4, 4.0, 3.6)}


def sign_codes(vectors: Array, bits: int) -> U8:
    """Signs of the dims; beyond them, signs of differences between dims."""
    extra = bits - vectors.shape[1]
    signs = vectors[:, :bits] > 0
    return np.packbits(signs if extra <= 0 else np.hstack([signs, vectors[:, :extra] > vectors[:, extra : 2 * extra]]), axis=1)


def hamming_contest(
    codes: U8, queries: U8, batch: int, k: int, targets: list[Target], backends: list[str], slow: Mapping[str, Search]
) -> Contest:
    alone = batch == 1
    asked = queries[: LONELY if alone else batch]
    bits = codes.shape[1] * 8
    index = faiss.IndexBinaryFlat(bits)
    index.add(codes)
    peers = {
        **slow,
        "faiss": faiss_search(index),
        "usearch": usearch_exact(codes, 1, MetricKind.Hamming),
        **numkong_hamming(codes),
    }
    return Contest(
        f"Hamming, {len(codes):,} x {bits} bits, {asking(asked, alone, k=k)}",
        {name: Contender(peer) for name, peer in peers.items()}
        | on_backends(
            lambda queries, k: asx.hamming_top_k(queries, codes, k).ids,
            backends,
            lambda backend: floor("bits", backend, codes.size, codes.size / batch),
        ),
        asked,
        hamming_recall(codes, asked[:EXACT], 10),
        work=codes.size if alone else len(codes),
        unit="GB/s" if alone else "G rows/s",
        alone=alone,
        k=k,
        judged=EXACT,
        targets=targets,
    )


@contenders("faiss", "usearch", "numkong", backends=best_backends())
@pytest.mark.parametrize(("bits", "k"), [(bits, k) for bits in WIDTHS for k in SPEEDS])
def test_batch(hold: Hold, large: Collection, bits: int, k: int) -> None:
    def prepare() -> Contest:
        codes, queries = (sign_codes(vectors, bits) for vectors in large)
        targets = [Target(SPEEDS[k][WIDTHS.index(bits)], row=7), Target(1.4, "avx2", row=7)]
        return hamming_contest(codes, queries, 200, k, targets, best_backends(), {})

    hold(prepare)


@contenders("faiss", "usearch", "numkong", backends=best_backends())
@pytest.mark.parametrize("bits", WIDTHS)
def test_one_query(hold: Hold, large: Collection, bits: int) -> None:
    def prepare() -> Contest:
        codes, queries = (sign_codes(vectors, bits) for vectors in large)
        # Turned by some bytes they are other codes.
        many = np.concatenate([np.roll(codes, turn, axis=1) for turn in range(TIMES)])
        targets = [Target(1.0 if bits == 256 else 1.1, row=8), Target(0.88, of="floor", row=8)]
        return hamming_contest(many, queries, 1, 10, targets, best_backends(), {})

    hold(prepare)


@contenders("NumPy", "faiss", "usearch", "numkong")
@pytest.mark.parametrize("batch", [1, 200])
def test_every_backend(hold: Hold, collection: Collection, batch: int) -> None:
    def prepare() -> Contest:
        codes, queries = (sign_codes(vectors, 768) for vectors in collection)
        return hamming_contest(codes, queries, batch, 10, [NUMBA_TARGET], asx.backends(), {"NumPy": numpy_hamming(codes)})

    hold(prepare)
