"""Collections, cascades and the expected answers that the tests of the index share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import oracles
from ml_dtypes import bfloat16

import adaptive_search as asx
from adaptive_search.backends.protocol import Backend
from adaptive_search.running import PreparedStage
from adaptive_search.searching import Way
from adaptive_search.types import F32, I64, Array
from adaptive_search.ways import Ways

METRICS = ("ip", "cosine", "l2")
KINDS = ("float32", "float16", "bfloat16", "int8")
DIM = 24


def collection(count: int, dim: int = DIM, seed: int = 0) -> Array:
    """Small integers, exact in every element kind, with many equal scores, some equal rows and a zero row."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(-4, 5, (count, dim))
    rows[rng.integers(0, count, count // 4)] = rows[rng.integers(0, count, count // 4)]
    rows[count // 2] = 0
    return rows.astype(np.int8)


def as_kind(rows: Array, kind: str) -> Array:
    return rows.astype(bfloat16 if kind == "bfloat16" else kind)


def questions(count: int, dim: int = DIM, seed: int = 1) -> F32:
    rng = np.random.default_rng(seed)
    queries = rng.integers(-4, 5, (count, dim)).astype(np.float32)
    queries[-1] = 0
    queries[: count // 2] += rng.standard_normal((count // 2, dim)).astype(np.float32)
    return queries


def shuffled_ids(count: int, seed: int = 2) -> I64:
    """Ids in no order, far apart and near the largest possible."""
    rng = np.random.default_rng(seed)
    return rng.permutation(np.append(np.arange(count - 1) * 7, np.iinfo(np.int64).max)).astype(np.int64)


def expected(metric: str, rows: Array, ids: I64, queries: F32, k: int, allowed: Array | None = None) -> tuple[I64, F32]:
    """Ids and scores of exact search, to the bit; as wide as the query with the most allowed rows."""
    scores = oracles.canonical_score(metric, queries, rows.astype(np.float32))
    most = len(rows) if allowed is None else int(allowed.sum(axis=-1).max())
    top, found = oracles.best(scores, min(k, most), ids=ids, largest=metric != "l2", allowed=allowed)
    return np.where(found >= 0, ids[found], -1), top


def assert_same(found: asx.Neighbors, ids: Array, scores: Array) -> None:
    np.testing.assert_array_equal(found.ids, ids)
    assert oracles.same_bits(found.scores, scores)


def assert_equal(found: asx.Neighbors, other: asx.Neighbors) -> None:
    assert_same(found, other.ids, other.scores)


def cascades(keep: int) -> list[asx.Cascade]:
    """One of each kind of stage, in several orders, all fit for `DIM` dims."""
    return [
        asx.Cascade(stages)
        for stages in (
            [asx.Prefix(5, keep=keep), asx.Full()],
            [asx.Prefix(8, keep=keep, renormalize=False), asx.Prefix(16, keep=keep), asx.Full()],
            [asx.Binary(keep=keep), asx.Int8(keep=keep), asx.Full()],
            [asx.PQ(5, bits=4, keep=keep), asx.Binary(bits=9, keep=keep), asx.Prefix(23, keep=keep), asx.Full()],
            [asx.Binary(keep=keep, rotation="itq"), asx.Binary(9, keep, "random"), asx.Full()],
            [asx.Int8(dims=7, keep=keep, rotation="pca"), asx.PQ(6, keep=keep), asx.Full()],
            [asx.PQ(5, bits=4, keep=keep, dims=11), asx.PQ(6, keep=keep, rotation="pca"), asx.Full()],
            [asx.PQ(5, bits=4, keep=keep, dims=11, rotation="opq"), asx.Full()],
            [asx.RaBit(keep=keep), asx.RaBit(4, keep=keep, dims=9), asx.RaBit(2, keep=keep, dims=7, rotation="pca"), asx.Full()],
        )
    ]


def filled(
    rows: Array, metric: str, kind: str = "float32", cascade: asx.Cascade | None = None, ids: Sequence[int] | I64 | None = None
) -> asx.Index:
    """An index of these rows, its cascade fitted to all of them."""
    index = asx.Index(rows.shape[1], metric, kind, cascade, fit_rows=max(len(rows), 1))
    index.add(as_kind(rows, kind), ids)
    return index


def ways(index: asx.Index) -> Ways:
    """Stages over the rows of an index as its searches prepare them, anew."""
    return Ways(index._store, index._exact)


def prepared(index: asx.Index, backend: Backend) -> tuple[PreparedStage, ...]:
    """The stages of an index, without margins, and the vectors at last."""
    made = ways(index)
    stages = [made.stage(backend, number, index._installed) for number in range(len(index._stages))]
    return (*stages, *([] if index._stages[-1] == asx.Full() else [made.full(backend)]))


def way_of(index: asx.Index, backend: Backend, recall: float | None = None) -> Way:
    """How a search goes."""
    return ways(index).way(backend, recall, index._installed)


def assert_one_whole_bar(reports: Sequence[tuple[int, int]]) -> None:
    """It never goes back, and ends with all done."""
    done, totals = zip(*reports, strict=True)
    assert len(set(totals)) == 1
    assert list(done) == sorted(done)
    assert done[-1] == totals[0]
