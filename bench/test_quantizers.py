"""Int8Quantizer beside the peers' 8-bit scalar quantization of the same floats."""

from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np
import pytest

import adaptive_search as asx

from .contest import Contender, Contest, asking, contenders, on_backends
from .data import Collection
from .peers import faiss_scalar
from .truth import nearest, set_recall


@contenders("faiss SQ8")
@pytest.mark.parametrize("batch", [1, 100])
def test_int8(hold: Callable[[Callable[[], Contest]], None], collection: Collection, batch: int) -> None:
    def prepare() -> Contest:
        rows, queries = (np.ascontiguousarray(vectors[:, :256]) for vectors in collection)
        queries = queries[: max(batch, 50)]
        quantizer = asx.Int8Quantizer().fit(rows)
        codes = quantizer.encode(rows)
        alone = batch == 1
        return Contest(
            f"Int8Quantizer, {len(rows):,} x {rows.shape[1]}, {asking(queries, alone)}",
            {
                "faiss SQ8": Contender(faiss_scalar(rows, faiss.ScalarQuantizer.QT_8bit)),
                **on_backends(lambda queries, k: quantizer.top_k(queries, codes, k).ids),
            },
            queries,
            set_recall(nearest(rows, queries, 10)),
            work=codes.size * (1 if alone else 2),
            unit="GB/s" if alone else "GOP/s",
            alone=alone,
            depth=100,
            judged_by="true 10 in the first 100",
        )

    hold(prepare)
