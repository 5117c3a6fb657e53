"""What `Index.build` picks, and what it says of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from index_cases import KINDS, as_kind, assert_same, collection, expected, questions, shuffled_ids
from ml_dtypes import bfloat16

import adaptive_search as asx
from adaptive_search import defaults


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_collection_is_searched_exactly(kind: str) -> None:
    rows, ids, queries = collection(300), shuffled_ids(300), questions(5)
    index = asx.Index.build(as_kind(rows, kind), ids, "l2", recall=0.9, k=7, queries=queries)
    assert index.dtype == kind
    assert (index.plan.stages, index.plan.recall, index.plan.k, index.plan.certified) == ((asx.Full(),), 1.0, 7, False)
    assert_same(index.search(queries, 7), *expected("l2", rows, ids, queries, 7))


@pytest.mark.parametrize("recall", [0.9, 0.95])
def test_a_large_collection_goes_through_a_cascade(recall: float) -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((200, 256), dtype=np.float32)
    rows, queries = (centres[rng.integers(0, 200, count)] + rng.standard_normal((count, 256), dtype=np.float32) for count in (10_000, 50))
    index = asx.Index.build(rows, recall=recall)
    assert len(index.plan.stages) == 2
    assert index.fitted
    assert (index.plan.recall, index.plan.k, index.plan.certified) == (recall, 10, False)
    assert "not calibrated" in index.plan.why
    assert index.audit(queries).recall >= recall
    np.testing.assert_array_equal(index.search(queries, recall=1.0).ids, asx.top_k(queries, rows, 10, metric="cosine").ids)


def test_the_table_is_used_where_it_was_measured() -> None:
    signs, bytes_ = asx.Cascade([asx.Binary(keep=300), asx.Full()]), asx.Cascade([asx.Int8(keep=28), asx.Full()])

    def picked(rows: int = 50_000, dim: int = 384, dtype: Any = "float32", metric: Any = "cosine", recall: float = 0.9, k: int = 10) -> Any:
        return defaults.cascade(rows, dim, dtype, metric, recall, k)

    assert picked() == picked(dtype="bfloat16") == signs
    assert picked(metric="ip") == picked(metric="l2") == picked(recall=0.95) == picked(dim=255) == picked(recall=0.99) == bytes_
    assert picked(k=11) == asx.Cascade([asx.Int8(keep=30), asx.Full()])
    for exact in (picked(rows=9_999), picked(dim=31), picked(dtype="int8"), picked(recall=0.995), picked(recall=1.0), picked(k=1_001)):
        assert exact is None


def test_build_takes_what_add_takes() -> None:
    assert asx.Index.build(np.eye(3)).dtype == "float32"
    assert asx.Index.build(np.eye(3).astype(bfloat16)).dtype == "bfloat16"
    assert len(asx.Index.build(np.empty((0, 5), np.float32))) == 0
    with pytest.raises(TypeError, match="vectors"):
        asx.Index.build(np.eye(3, dtype=int))
    for arguments, words in (
        ({"recall": 0}, "recall"),
        ({"recall": 1.1}, "recall"),
        ({"k": 0}, "k: "),
        ({"queries": np.zeros((1, 4))}, "queries: expected 3 dims"),
        ({"metric": "hamming"}, "metric"),
        ({"ids": [0, 0, 1]}, "ids"),
    ):
        with pytest.raises(ValueError, match=words):
            asx.Index.build(np.eye(3, dtype=np.float32), **arguments)
