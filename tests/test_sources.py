"""Small searches whose queries are made ready in the backend: the same answers, to the bit, as by way of Python."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_cases import prepared

import adaptive_search as asx
from adaptive_search.backends.protocol import Backend
from adaptive_search.calibration import Calibration
from adaptive_search.margins import ErrorModel
from adaptive_search.running import OPENINGS, Opening
from adaptive_search.searching import Way

DIM = 20
STAGES: list[list[Any]] = [
    [asx.PQ(5, 4), asx.Int8()],
    [asx.PQ(6, 4, dims=13, rotation="pca"), asx.Int8(11, bounded=True)],
    [asx.PQ(4, 4, rotation="opq"), asx.Int8(bounded=True)],
    [asx.PQ(4, 4), asx.Int8(13, bounded=True, bound_dims=6)],
    [asx.PQ(7)],
    [asx.Int8(9, rotation="random"), asx.PQ(3, dims=10)],
    [asx.Int8(7)],
    [asx.PQ(5, 4), asx.Int8(9, bounded=True, rotation="pca")],
    [asx.Lists(9), asx.PQ(5, 4), asx.Int8()],
    [asx.Lists(9), asx.PQ(5, 4, dims=7, rotation="random")],
]


def tuned(metric: Any, stages: list[Any], rows: Any, margins: float, dtype: Any = "float32") -> asx.Index:
    """As if tuned: with errors that leave some rows to the stages that follow."""
    index = asx.Index(DIM, metric, dtype, cascade=asx.Cascade([*stages, asx.Full()]), fit_rows=len(rows))
    index.add(rows, np.random.default_rng(5).permutation(3 * len(rows))[: len(rows)])
    models = (*(ErrorModel(0.01, 0.9, 0.2) for _ in stages), None)
    index._tuned = Calibration(0.9, 10, models, Opening(), (margins,), (0.0,), 100, True, 1.0)
    return index


def collection(count: int, seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32) * np.linspace(2, 0.3, DIM, dtype=np.float32)


@cache
def tuned_once(metric: Any, stages: tuple[Any, ...]) -> asx.Index:
    """For searches alone, which run on every backend."""
    with asx.use_backend(asx.backends()[0]):
        return tuned(metric, list(stages), collection(1_500, 0), 0.5)


def ordinary() -> asx.Index:
    return tuned_once("cosine", tuple(STAGES[2]))


def general(index: asx.Index, queries: Any, k: int) -> asx.Neighbors:
    """By way of Python, as counters are asked for."""
    return index.search(queries, k, stats=True)[0]


def assert_same(found: asx.Neighbors, expected: asx.Neighbors) -> None:
    np.testing.assert_array_equal(found.ids, expected.ids)
    assert found.scores.tobytes() == expected.scores.tobytes()


@pytest.fixture
def used(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many searches went that way."""
    calls: list[Any] = []
    way = Way.at_once

    def counted(self: Way, *arguments: Any) -> Any:
        found = way(self, *arguments)
        calls.append(found)
        return found

    monkeypatch.setattr(Way, "at_once", counted)
    return lambda: sum(found is not None for found in calls)


@pytest.mark.parametrize("stages", STAGES, ids=str)
@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
def test_small_searches_answer_as_others(metric: Any, stages: list[Any], backend: Backend, used: Callable[[], int]) -> None:
    index = tuned(metric, stages, collection(1_500, 0), 0.5)
    queries = collection(7, 1)
    queries[3] = 0
    queries[4, 1:] = 0
    everything = general(index, queries, 10)
    for opening in (*OPENINGS[1:], Opening(8, 2), Opening()):
        index._tuned = replace(index._tuned, opening=opening)  # type: ignore[type-var]
        assert_same(index.search(queries, 10), everything)
    for query, ids, scores in zip(queries, everything.ids, everything.scores, strict=True):
        assert_same(index.search(query, 10), asx.Neighbors(ids, scores))
    assert_same(index.search(queries, 3), asx.Neighbors(everything.ids[:, :3], everything.scores[:, :3]))
    index.remove(index.ids[::3])
    assert_same(index.search(queries, 10), general(index, queries, 10))
    # The plan's k is 10: more of them, and more than there are.
    with pytest.warns(UserWarning, match="plan is for up to 10"):
        assert_same(index.search(queries[:2], 40), general(index, queries[:2], 40))
    assert_same(index.search(queries[:2], 1_500), general(index, queries[:2], 1_500))
    general_way = backend.name == "numba" or metric == "l2" or asx.Int8(9, bounded=True, rotation="pca") in stages
    if isinstance(stages[0], asx.Lists) and not general_way:
        assert used() > 0  # lists that leave too much are given up
    else:
        assert used() == (0 if general_way else 16)


@pytest.mark.parametrize(
    ("queries", "k"),
    [
        (collection(3, 1).astype(np.float64), 10),
        (collection(3, 1).astype(np.float16), 10),
        (np.asfortranarray(collection(3, 1)), 10),
        (collection(6, 1)[::2], 10),
        (collection(3, 1).view(np.recarray), 10),
        (collection(3, 1).tolist(), 10),
        (collection(3, 1).astype(">f4"), 10),
        (collection(3, 1)[:0], 10),
        (collection(200, 1), 10),
        (collection(3, 1), np.int64(10)),
    ],
)
def test_what_is_out_of_the_ordinary_is_no_other_search(queries: Any, k: Any, backend: Backend) -> None:
    index = ordinary()
    assert index._at_once(queries, k) is None
    assert_same(index.search(queries, k), general(index, queries, 10))


@pytest.mark.filterwarnings("ignore:k. the plan is for up to 10")
@pytest.mark.parametrize("k", [1_499, 1_500, 2**63 - 1, 2**63, 2**70])
def test_neighbors_without_end(k: int, backend: Backend) -> None:
    index = ordinary()
    assert_same(index.search(collection(2, 1), k), general(index, collection(2, 1), k))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_wrong_is_not_searched(wrong: float, backend: Backend) -> None:
    index = ordinary()
    queries = collection(3, 1)
    queries[1, DIM - 1] = wrong
    with pytest.raises(ValueError, match="queries: row 1 holds NaN or infinity"):
        index.search(queries)
    with pytest.raises(ValueError, match=f"queries: expected {DIM} dims"):
        index.search(queries[0, :-1].copy())
    for k in (0, -3):
        with pytest.raises(ValueError, match="k: expected"):
            index.search(queries[0], k)
    with pytest.raises(TypeError, match="k: expected"):
        index.search(queries[0], True)


@pytest.mark.parametrize("stages", STAGES, ids=str)
@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_queries_of_any_length(metric: Any, stages: list[Any], backend: Backend) -> None:
    """What is too large for float32 is the same error."""
    index = tuned_once(metric, tuple(stages))
    for query in np.concatenate([(np.float32(scale) * collection(4, 2)).clip(-3e38, 3e38) for scale in (1e-30, 1e30, 3e37)]):
        try:
            expected = general(index, query, 10)
        except ValueError as error:
            said = str(error)
        else:
            assert_same(index.search(query, 10), expected)
            continue
        with pytest.raises(ValueError, match=re.escape(said)):
            index.search(query, 10)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_other_kinds_of_rows_added_later_and_mapped(dtype: Any, backend: Backend, used: Callable[[], int], tmp_path: Path) -> None:
    rows = collection(1_500, 0)
    if dtype == "int8":
        rows = np.clip(20 * rows, -127, 127).astype(np.int8)
    index = tuned("cosine", STAGES[2], rows, 0.5, dtype)
    queries = collection(5, 1)
    index.add(rows[:100])
    assert_same(index.search(queries, 10), general(index, queries, 10))
    index.remove(index.ids[5:300])
    expected = general(index, queries, 10)
    index.save(tmp_path / "index")
    opened = asx.Index.open(tmp_path / "index", mmap=True)
    del index
    gc.collect()
    assert_same(opened.search(queries, 10), expected)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: opened.search(queries, 10, threads=1), range(20)):
            assert_same(found, expected)
    assert used() == (0 if backend.name == "numba" else 22)


def test_sources_check_what_they_are_given(backend: Backend) -> None:
    if backend.name == "numba":
        pytest.skip("has none")
    index = tuned("cosine", [asx.PQ(5, 4), asx.Int8()], collection(1_500, 0), 0.5)
    stages = prepared(index, backend)
    quantizer = stages[0].representation._quantizer  # type: ignore[attr-defined]
    first = backend.pq_source(stages[0].rows, "cosine", DIM, DIM, None, 0.0, 1.0, quantizer.codebooks, None)
    last = backend.full_source(stages[2].rows, "cosine")
    other = tuned("cosine", [asx.PQ(5, 4), asx.Int8()], collection(1_400, 0), 0.5)
    fewer = backend.full_source(prepared(other, backend)[2].rows, "cosine")
    assert first is not None
    assert last is not None
    assert fewer is not None
    queries = collection(2, 1)
    searcher = backend.searcher([first, last], 1, 15, 0)
    assert searcher is not None
    assert searcher.search(queries, 5, 1, 1_500, None, 2) is not None
    assert searcher.search(queries, 5, 1, 1_500, None, 1) is None
    with pytest.raises(ValueError, match="sources: expected at least two"):
        backend.searcher([last], 1, 15, 0)
    with pytest.raises(ValueError, match="sources: expected the same rows"):
        backend.searcher([first, fewer], 1, 15, 0)
    with pytest.raises(ValueError, match="spare"):
        backend.searcher([first, last], 1, -1, 0)
    for share, guess in ((0, 0), (1, -1)):
        with pytest.raises(ValueError, match="share"):
            backend.searcher([first, last], share, 15, guess)
    levels = [stage.level(backend, queries, scan=True)[0] for stage in stages]
    with pytest.raises(ValueError, match="k: expected at least one row"):
        backend.cascade_top_k(levels[:-1], levels[-1], 0, 20, 1, 0, None)
    # The same one first and last.
    itself = backend.searcher([last, last], 1, 15, 0)
    assert itself is not None
    twice = itself.search(queries, 5, 1, 1_500, None, 64)
    assert twice is not None
    exact = backend.dense_top_k("float32", collection(1_500, 0), queries, 5, "cosine")
    np.testing.assert_array_equal(twice[0], index.ids[exact[1]])
    with pytest.raises(ValueError, match="dims"):
        backend.pq_source(stages[0].rows, "cosine", DIM, DIM + 1, None, 0.0, 1.0, quantizer.codebooks, None)
    with pytest.raises(ValueError, match="codebooks"):
        backend.pq_source(stages[0].rows, "cosine", DIM, DIM, None, 0.0, 1.0, quantizer.codebooks[1:], None)
    with pytest.raises(ValueError, match="scales"):
        backend.integer_source(stages[1].rows, "cosine", DIM, None, False, 0.0, 1.0, np.ones(DIM - 1, np.float32))
    with pytest.raises(ValueError, match="directions"):
        backend.integer_source(stages[1].rows, "cosine", DIM, np.eye(DIM, dtype=np.float32)[1:], False, 0.0, 1.0, np.ones(DIM, np.float32))
    with pytest.raises(ValueError, match="rotation"):
        backend.pq_source(stages[0].rows, "cosine", DIM, DIM, None, 0.0, 1.0, quantizer.codebooks, np.eye(DIM, dtype=np.float32)[1:])
    for wrong in ("l2", "hamming"):
        with pytest.raises(ValueError, match="metric"):
            backend.integer_source(stages[1].rows, wrong, DIM, None, False, 0.0, 1.0, np.ones(DIM, np.float32))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="metric"):
            backend.pq_source(stages[0].rows, wrong, DIM, DIM, None, 0.0, 1.0, quantizer.codebooks, None)  # type: ignore[arg-type]
