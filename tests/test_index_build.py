"""What `Index.build` picks, and what it says of it."""

from __future__ import annotations

import numpy as np
import pytest
from index_cases import KINDS, as_kind, assert_same, collection, expected, questions, shuffled_ids
from ml_dtypes import bfloat16

import adaptive_search as asx


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_collection_is_searched_exactly(kind: str) -> None:
    rows, ids, queries = collection(300), shuffled_ids(300), questions(5)
    index = asx.Index.build(as_kind(rows, kind), ids, "l2", recall=0.9, k=7, queries=questions(20))
    assert index.dtype == kind
    assert (index.plan.stages, index.plan.recall, index.plan.k, index.plan.certified) == ((asx.Full(),), 1.0, 7, False)
    assert_same(index.search(queries, 7), *expected("l2", rows, ids, queries, 7))


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
        ({"queries": np.zeros((30, 4))}, "queries: expected 3 dims"),
        ({"queries": np.zeros((1, 3))}, "at least 19"),
        ({"metric": "hamming"}, "metric"),
        ({"ids": [0, 0, 1]}, "ids"),
    ):
        with pytest.raises(ValueError, match=words):
            asx.Index.build(np.eye(3, dtype=np.float32), **arguments)
