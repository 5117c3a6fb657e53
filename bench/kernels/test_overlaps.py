"""The rows that have the largest share in common with a query, among sparse binary codes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from usearch.index import MetricKind

import adaptive_search as asx
from adaptive_search.types import U8, Array

from ..contest import EXACT, LONELY, Contender, Contest, asking, best_backends, contenders, on_backends
from ..data import Collection
from ..peers import numkong_jaccard, numpy_jaccard, usearch_exact
from ..truth import jaccard_recall

Hold = Callable[[Callable[[], Contest]], None]


def sparse_codes(vectors: Array, bits: int) -> U8:
    """The tenth of the dims that is largest, about."""
    some = vectors[:, :bits]
    return np.packbits(some > 1.3 * some.std(axis=1, keepdims=True), axis=1)


@contenders("NumPy", "usearch", "numkong", backends=best_backends())
@pytest.mark.parametrize("batch", [1, 200])
@pytest.mark.parametrize("bits", [256, 768])
def test_jaccard(hold: Hold, collection: Collection, bits: int, batch: int) -> None:
    def prepare() -> Contest:
        codes, queries = (sparse_codes(vectors, bits) for vectors in collection)
        alone = batch == 1
        asked = queries[: LONELY if alone else batch]
        peers = {"NumPy": numpy_jaccard(codes), "usearch": usearch_exact(codes, 1, MetricKind.Tanimoto), **numkong_jaccard(codes)}
        return Contest(
            f"Jaccard, {len(codes):,} x {bits} bits, {asking(asked, alone, k=10)}",
            {name: Contender(peer) for name, peer in peers.items()}
            | on_backends(lambda queries, k: asx.jaccard_top_k(queries, codes, k).ids, best_backends()),
            asked,
            jaccard_recall(codes, asked[:EXACT], 10),
            work=len(codes),
            unit="G rows/s",
            alone=alone,
            judged=EXACT,
        )

    hold(prepare)
