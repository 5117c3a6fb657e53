"""The nearest 10 by Hamming distance among sign codes."""

from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np
import pytest
from usearch.index import MetricKind

import adaptive_search as asx

from ..contest import NUMBA_TARGET, Contender, Contest, Target, contenders, numbered, on_every_backend
from ..data import Collection
from ..peers import faiss_search, numpy_hamming, usearch_exact
from ..truth import hamming_recall


@contenders("NumPy", "faiss", "usearch")
@pytest.mark.parametrize(("bits", "batch", "threads"), [(768, 1, 1), (768, 1, 2), (768, 200, 1), (768, 200, 2), (256, 200, 1)])
def test_hamming(hold: Callable[[Callable[[], Contest]], None], collection: Collection, bits: int, batch: int, threads: int) -> None:
    def prepare() -> Contest:
        codes, queries = (np.packbits(vectors[:, :bits] > 0, axis=1) for vectors in collection)
        queries = queries[: max(batch, 50)]
        index = faiss.IndexBinaryFlat(bits)
        index.add(codes)
        alone = batch == 1
        targets = {(1, 1): [Target(1.0), NUMBA_TARGET], (200, 1): [Target(1.5), NUMBA_TARGET]}.get((batch, threads), [])
        return Contest(
            f"Hamming, {len(codes):,} x {bits} bits, {'one query' if alone else f'{len(queries)} queries'}, {numbered(threads)}",
            {
                "NumPy": Contender(numpy_hamming(codes)),
                "faiss": Contender(faiss_search(index)),
                "usearch": Contender(usearch_exact(codes, threads, MetricKind.Hamming)),
                **on_every_backend(lambda queries, k: asx.hamming_top_k(queries, codes, k).ids),
            },
            queries,
            hamming_recall(codes, queries, 10),
            work=codes.size if alone else len(codes),
            unit="GB/s" if alone else "G rows/s",
            threads=threads,
            alone=alone,
            targets=targets if bits == 768 else [],
        )

    hold(prepare)
