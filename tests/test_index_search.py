"""Searches: exact ones against the canonical oracle, cascades against what they must equal, and the rules that hold everywhere."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from index_cases import (
    DIM,
    KINDS,
    METRICS,
    as_kind,
    assert_equal,
    assert_same,
    cascades,
    collection,
    expected,
    filled,
    questions,
    shuffled_ids,
    ways,
)

import adaptive_search as asx
from adaptive_search import searching
from adaptive_search.backends.protocol import Backend
from adaptive_search.types import Array

pytestmark = pytest.mark.usefixtures("backend")

ROWS = 700


# --- exact search --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
def test_exact_search_is_canonical_with_ties_by_id(metric: str, kind: str) -> None:
    rows, ids, queries = collection(ROWS), shuffled_ids(ROWS), questions(9)
    index = filled(rows, metric, kind, ids=ids)
    assert_same(index.search(queries, 30), *expected(metric, rows, ids, queries, 30))


@pytest.mark.parametrize("scale", [1e-41, 1e-39, 1e-20, 1e10])
@pytest.mark.parametrize("metric", METRICS)
def test_exact_search_of_rows_of_any_length(metric: str, scale: float) -> None:
    """Subnormal rows with long queries: products are normal numbers, and sums differ by the order of their terms."""
    random = np.random.default_rng(3)
    rows, ids = (scale * random.standard_normal((ROWS, 33))).astype(np.float32), shuffled_ids(ROWS)
    queries = (1e7 * random.standard_normal((40, 33))).astype(np.float32)
    answer = expected(metric, rows, ids, queries, 10)
    index = filled(rows, metric, cascade=asx.Cascade([asx.Prefix(9, keep=ROWS), asx.Full()]), ids=ids)
    for count in (40, 1):
        assert_same(index.search(queries[:count]), answer[0][:count], answer[1][:count])
    assert_same(index.search(queries, recall=1.0), *answer)
    if metric == "ip":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("adaptive_search.ways.LEAST_ROWS", 1)
            patch.setattr("adaptive_search.running.SMALL", 0)
            bounded = filled(rows, metric, cascade=asx.Cascade([asx.Int8(bounded=True), asx.Full()]), ids=ids)
            assert_same(bounded.search(queries, recall=1.0), *answer)


@pytest.mark.parametrize("dim", [1, 7, 33, 200])
@pytest.mark.parametrize("metric", METRICS)
def test_awkward_dims_cut_at_awkward_places(metric: str, dim: int) -> None:
    rows, ids, queries = collection(130, dim), shuffled_ids(130), questions(4, dim)
    prefixes = sorted({1, 3, dim // 2 + 1, dim})
    stages = [asx.Prefix(dims, keep=1000) for dims in prefixes if dims <= dim]
    index = filled(rows, metric, "float16", asx.Cascade(stages), ids)
    assert_same(index.search(queries, 20), *expected(metric, rows, ids, queries, 20))
    assert_same(index.search(queries, 20, recall=1.0), *expected(metric, rows, ids, queries, 20))


def test_more_prefixes_than_slabs() -> None:
    rows, ids, queries = collection(90), shuffled_ids(90), questions(3)
    index = filled(rows, "cosine", cascade=asx.Cascade([asx.Prefix(dims, keep=90) for dims in range(1, 21)]), ids=ids)
    assert_same(index.search(queries, 90), *expected("cosine", rows, ids, queries, 90))


@pytest.mark.unemulated
def test_rows_beyond_one_chunk() -> None:
    rows = np.random.default_rng(0).integers(-9, 10, (70_000, 3)).astype(np.int8)
    queries = questions(2, 3)
    ids = np.random.default_rng(1).permutation(70_000)
    index = asx.Index(3, "l2", "int8", asx.Cascade([asx.PQ(3, bits=4, keep=70_000), asx.Full()]))
    index.add(rows[:66_000], ids[:66_000])
    index.add(rows[66_000:], ids[66_000:])
    gone = ids[::3]
    index.remove(gone)
    kept = np.setdiff1d(np.arange(70_000), np.arange(70_000)[::3])
    np.testing.assert_array_equal(index.ids, ids[kept])
    answer = expected("l2", rows[kept], ids[kept], queries, 50)
    assert_same(index.search(queries, 50), *answer)
    assert_same(index.search(queries, 50, recall=1.0), *answer)


def test_recall_of_one_is_exact_whatever_the_cascade() -> None:
    rows, ids, queries = collection(ROWS), shuffled_ids(ROWS), questions(5)
    index = filled(rows, "cosine", cascade=asx.Cascade([asx.Binary(bits=2, keep=10), asx.Full()]), ids=ids)
    answer = expected("cosine", rows, ids, queries, 10)
    assert_same(index.search(queries, recall=1.0), *answer)
    assert not np.array_equal(index.search(queries).ids, answer[0])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_exact_search_of_any_shape(data: st.DataObject) -> None:
    """Any number of rows, dims, slabs and neighbors, some rows removed, a filter: through every stage and without any."""
    kind, metric = data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from(METRICS))
    count, dim = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 70))
    rows, queries = collection(count, dim, seed=data.draw(st.integers(0, 99))), questions(data.draw(st.integers(1, 5)), dim)
    ids = shuffled_ids(count)
    stages = st.one_of(
        st.builds(asx.Prefix, st.integers(1, dim), keep=st.just(150), renormalize=st.booleans()),
        st.builds(asx.Int8, st.integers(1, dim), keep=st.just(150), rotation=st.sampled_from([None, "pca", "learned", "random"])),
        st.builds(asx.Binary, st.integers(1, dim), keep=st.just(150), rotation=st.sampled_from([None, "itq", "random"])),
        st.builds(asx.PQ, st.integers(1, dim), bits=st.just(4), keep=st.just(150)),
    )
    cascade = data.draw(st.one_of(st.none(), st.builds(asx.Cascade, st.lists(stages, min_size=1, max_size=4))))
    index = filled(rows, metric, kind, cascade, ids)
    left = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    index.remove(ids[~left])
    rows, ids = rows[left], ids[left]
    allowed = np.random.default_rng(0).random((len(queries), len(ids))) < data.draw(st.sampled_from([0.1, 0.9]))
    k = data.draw(st.integers(1, 160))
    if len(ids):
        assert_same(index.search(queries, k), *expected(metric, rows, ids, queries, k))
    if allowed.any():
        assert_same(index.search(queries, k, filter=allowed), *expected(metric, rows, ids, queries, k, allowed))


# --- cascades ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cascade", cascades(keep=ROWS), ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_keeping_all_rows_is_exact(metric: str, cascade: asx.Cascade) -> None:
    rows, ids, queries = collection(ROWS), shuffled_ids(ROWS), questions(6)
    for kind in ("float32", "bfloat16"):
        index = filled(rows, metric, kind, cascade, ids)
        assert index.fitted
        assert_same(index.search(queries, 40), *expected(metric, rows, ids, queries, 40))


@pytest.mark.unemulated
@pytest.mark.parametrize("metric", METRICS)
def test_a_cascade_is_what_its_stages_are_one_by_one(metric: str) -> None:
    rows, queries = collection(ROWS).astype(np.float32), questions(8)
    index = filled(rows, metric, cascade=asx.Cascade([asx.Prefix(8, keep=60), asx.Binary(keep=30), asx.PQ(6, keep=12), asx.Full()]))
    first = asx.top_k(queries, rows, 60, metric=metric, dims=8).ids
    binary = asx.BinaryQuantizer(metric=metric).fit(rows)
    product = asx.ProductQuantizer(6, metric=metric).fit(rows)
    for query, candidates, found in zip(queries, first, index.search(queries, 10).ids, strict=True):
        # Ties go to the smaller id, which a search over the candidates alone keeps if they are sorted.
        left = np.sort(candidates)
        left = np.sort(left[binary.top_k(query, binary.encode(rows[left]), 30).ids])
        left = np.sort(left[product.top_k(query, product.encode(rows[left]), 12).ids])
        np.testing.assert_array_equal(found, left[asx.top_k(query, rows[left], 10, metric=metric).ids])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("stage", [asx.Binary(bits=20), asx.RaBit(), asx.RaBit(4), asx.Int8(), asx.PQ(5), asx.Prefix(8)], ids=str)
def test_a_last_stage_without_keep_answers_with_its_estimates(metric: str, stage: Any) -> None:
    rows, queries = collection(ROWS).astype(np.float32), questions(5)
    found = filled(rows, metric, cascade=asx.Cascade([stage])).search(queries, 15)
    if isinstance(stage, asx.Prefix):
        alone = asx.top_k(queries, rows, 15, metric=metric, dims=8)
    else:
        made: dict[Any, Callable[[], Any]] = {
            asx.Binary: lambda: asx.BinaryQuantizer(20, metric),
            asx.Int8: lambda: asx.Int8Quantizer(metric),
            asx.PQ: lambda: asx.ProductQuantizer(5, metric=metric),
            asx.RaBit: lambda: asx.RaBitQuantizer(stage.bits, metric),
        }
        quantizer = made[type(stage)]().fit(rows)
        alone = quantizer.top_k(queries, quantizer.encode(rows), 15)
    assert_equal(found, alone)


def test_a_prefix_is_renormalised_unless_told_otherwise() -> None:
    rows = np.float32([[3, 0, 0, 4], [1, 1, 0, 0], [0, 0, 0, 2]])
    query = np.float32([1, 0, 0, 0.75])
    renormalised = filled(rows, "cosine", cascade=asx.Cascade([asx.Prefix(2)])).search(query, 3)
    np.testing.assert_array_equal(renormalised.ids, [0, 1, 2])
    np.testing.assert_allclose(renormalised.scores, [1, np.sqrt(0.5), 0], rtol=1e-6)
    plain = filled(rows, "cosine", cascade=asx.Cascade([asx.Prefix(2, renormalize=False)])).search(query, 3)
    np.testing.assert_array_equal(plain.ids, [1, 0, 2])
    np.testing.assert_allclose(plain.scores, [0.8 * np.sqrt(0.5), 0.8 * 0.6, 0], rtol=1e-6)


@pytest.mark.parametrize("cascade", [None, *cascades(keep=40)], ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_answers_depend_on_nothing_but_query_and_rows(metric: str, cascade: asx.Cascade | None) -> None:
    """Not on the batch, the threads, k as long as no shortlist is shorter, nor on how the rows came in."""
    rows, ids, queries = collection(ROWS), shuffled_ids(ROWS), questions(40)
    index = filled(rows, metric, "float16", cascade, ids)
    answer = index.search(queries, 25, threads=1)
    assert_equal(index.search(queries, 25, threads=3), answer)
    for first, last in ((0, 1), (7, 8), (3, 20)):
        assert_same(index.search(queries[first:last], 25), answer.ids[first:last], answer.scores[first:last])
    single = index.search(queries[5], 25)
    assert_same(single, answer.ids[5], answer.scores[5])
    assert_same(index.search(queries, 10), answer.ids[:, :10], answer.scores[:, :10])

    again = asx.Index(DIM, metric, "float16", cascade, fit_rows=10**6)
    for first, last in ((0, 1), (1, 2), (2, 200), (200, ROWS)):
        again.add(as_kind(rows, "float16")[first:last], ids[first:last])
    again.fit()
    assert_equal(again.search(queries, 25), answer)


@pytest.mark.parametrize(
    "stage", [asx.Prefix(3), asx.Prefix(3, renormalize=False), asx.Binary(10), asx.RaBit(), asx.Int8(4), asx.PQ(2, bits=4)], ids=str
)
@pytest.mark.parametrize("metric", METRICS)
def test_ties_go_to_the_smaller_id_at_every_cut(metric: str, stage: Any) -> None:
    """So the order in which rows were added does not matter, also where a shortlist ends between equals."""
    rows, ids, queries = np.sign(collection(ROWS)), shuffled_ids(ROWS), questions(8)
    order = np.argsort(ids)
    shortlist = replace(stage, keep=50)
    for stages in ([stage], [shortlist, asx.Full()], [asx.Prefix(DIM, keep=ROWS), shortlist, asx.Full()]):
        answers = []
        for places in (np.arange(ROWS), order):
            index = asx.Index(DIM, metric, cascade=asx.Cascade(stages))
            index.fit(rows.astype(np.float32))
            index.add(rows[places].astype(np.float32), ids[places])
            answers.append(index.search(queries, 40))
        assert_equal(*answers)


def test_every_backend_gives_the_same_bits() -> None:
    rows, ids, queries = collection(ROWS), shuffled_ids(ROWS), questions(6)
    for metric in METRICS:
        index = filled(rows, metric, "float16", cascades(keep=50)[3], ids)
        here = index.search(queries, 20)
        with asx.use_backend(asx.backends()[-1]):
            assert_equal(index.search(queries, 20), here)


@pytest.mark.unemulated
def test_searches_may_run_side_by_side() -> None:
    rows, ids, queries = collection(ROWS), shuffled_ids(ROWS), questions(30)
    for cascade in (None, cascades(keep=50)[2]):
        index = filled(rows, "cosine", cascade=cascade, ids=ids)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(partial(index.search, k=10, filter=ids), queries))
        np.testing.assert_array_equal(np.stack([one.ids for one in found]), index.search(queries, 10).ids)


# --- shapes --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cascade", [None, *cascades(keep=3)], ids=str)
def test_shapes(cascade: asx.Cascade | None) -> None:
    empty = asx.Index(DIM, cascade=cascade)
    found = empty.search(questions(4), 10)
    assert found.ids.shape == found.scores.shape == (4, 0)
    assert empty.search(questions(4)[0], 10).ids.shape == (0,)
    assert (found.ids.dtype, found.scores.dtype) == (np.int64, np.float32)

    index = filled(collection(20), "cosine", cascade=cascade)
    assert index.search(questions(4), 50).ids.shape == (4, 20)
    assert index.search(questions(4)[1], 50).ids.shape == (20,)
    assert index.search(np.empty((0, DIM), np.float32), 5).ids.shape == (0, 5)
    assert (np.sort(index.search(questions(4), 50).ids, axis=1) == np.arange(20)).all()
    index.remove(index.ids)
    assert index.search(questions(4), 10).ids.shape == (4, 0)


@pytest.mark.parametrize("cascade", [None, cascades(keep=30)[2]], ids=str)
def test_a_query_whose_filter_leaves_fewer_rows_ends_in_nothing(cascade: asx.Cascade | None) -> None:
    rows, queries = collection(200), questions(3)
    found = filled(rows, "cosine", cascade=cascade).search(queries, 5, filter=[[3, 4], [], [7, 8, 9]])
    assert found.ids.shape == (3, 3)
    np.testing.assert_array_equal(found.ids < 0, [[False, False, True], [True] * 3, [False] * 3])
    np.testing.assert_array_equal(np.isnan(found.scores), found.ids < 0)
    once = filled(rows, "cosine", cascade=cascade).search(queries, 5, filter=[3, 4, 3, 3])
    assert once.ids.shape == (3, 2)
    nothing = filled(rows, "cosine", cascade=cascade).search(queries, 5, filter=[[], [], []])
    assert nothing.ids.shape == (3, 0)


# --- filters -------------------------------------------------------------------------------------------------------------
def as_filter(form: str, allowed: Array, ids: Array) -> Any:
    """The same allowed rows in different words."""
    return {
        "bool": allowed,
        "list of bool": allowed.tolist(),
        "ids": ids[allowed],
        "ids with strangers, twice": np.concatenate([ids[allowed], [5, 6], ids[allowed]]),
        "one bool each": [allowed] * 4,
        "one list each": [ids[allowed].tolist()] * 4,
        "matrix": np.stack([allowed] * 4),
    }[form]


@pytest.mark.parametrize("direct", [1, 10_000], ids=["through the cascade", "directly"])
@pytest.mark.parametrize("form", ["bool", "list of bool", "ids", "ids with strangers, twice", "one bool each", "one list each", "matrix"])
@pytest.mark.parametrize("cascade", [None, *cascades(keep=ROWS)[2:4]], ids=str)
def test_a_filter_searches_the_allowed_rows(cascade: asx.Cascade | None, form: str, direct: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "DIRECT_ROWS", direct)
    rows, ids, queries = collection(ROWS), shuffled_ids(ROWS), questions(4)
    index = filled(rows, "cosine", cascade=cascade, ids=ids)
    index.remove(ids[10:60])
    rows, ids = np.delete(rows, slice(10, 60), 0), np.delete(ids, slice(10, 60))
    allowed = np.random.default_rng(0).random(len(ids)) < 0.4
    found = index.search(queries, 30, filter=as_filter(form, allowed, ids))
    assert_same(found, *expected("cosine", rows, ids, queries, 30, np.stack([allowed] * 4)))


def test_a_filter_for_every_query(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "DIRECT_ROWS", 20)
    monkeypatch.setattr(searching, "MASK_BYTES", 3 * ROWS)
    rows, ids, queries = collection(ROWS), shuffled_ids(ROWS), questions(12)
    index = filled(rows, "l2", cascade=asx.Cascade([asx.Prefix(8, keep=ROWS), asx.Full()]), ids=ids)
    allowed = np.random.default_rng(0).random((12, ROWS)) < np.linspace(0, 1, 12)[:, None] ** 4
    allowed[-1] = True
    found = index.search(queries, 40, filter=[ids[own] if number % 2 else own for number, own in enumerate(allowed)])
    assert_same(found, *expected("l2", rows, ids, queries, 40, allowed))


def test_few_allowed_rows_are_not_lost_by_the_cascade() -> None:
    rows, ids, queries = collection(ROWS), shuffled_ids(ROWS), questions(4)
    index = filled(rows, "cosine", cascade=asx.Cascade([asx.Binary(bits=1, keep=3), asx.Full()]), ids=ids)
    allowed = np.zeros((4, ROWS), bool)
    allowed[:, ::100] = True
    found, stats = index.search(queries, 5, filter=allowed[0], stats=True)
    assert_same(found, *expected("cosine", rows, ids, queries, 5, allowed))
    np.testing.assert_array_equal([stage.scored for stage in stats.stages], [[0] * 4, [7] * 4])


# --- counters, audit -------------------------------------------------------------------------------------------------------
def test_stats_count_rows_of_every_stage() -> None:
    rows, queries = collection(ROWS), questions(5)
    index = filled(rows, "cosine", cascade=asx.Cascade([asx.Binary(keep=100), asx.Int8(keep=8), asx.Full()]))
    found, stats = index.search(queries, 20, stats=True)
    assert_equal(found, index.search(queries, 20))
    assert [stage.stage for stage in stats.stages] == ["Binary(keep=100)", "Int8(keep=8)", "Full()"]
    np.testing.assert_array_equal([stage.scored for stage in stats.stages], [[ROWS] * 5, [100] * 5, [20] * 5])
    np.testing.assert_array_equal([stage.survivors for stage in stats.stages], [[100] * 5, [20] * 5, [20] * 5])
    index.remove(index.ids[:100])
    _, stats = index.search(queries, 20, recall=1.0, stats=True)
    assert [(stage.stage, stage.scored.tolist()) for stage in stats.stages] == [("Full()", [600] * 5)]


def test_an_audit_compares_with_exact_search() -> None:
    rows, ids, queries = collection(ROWS), shuffled_ids(ROWS), questions(30)
    index = filled(rows, "cosine", cascade=asx.Cascade([asx.Prefix(6, keep=30), asx.Full()]), ids=ids)
    truth, _ = expected("cosine", rows, ids, queries, 10)
    shares = [len(set(mine) & set(best)) / 10 for mine, best in zip(index.search(queries, 10).ids, truth, strict=True)]
    audit = index.audit(queries, 10)
    assert 0 < audit.low < audit.recall < audit.high < 1
    assert audit.recall == pytest.approx(np.mean(shares))
    assert audit.n == 30
    assert filled(rows, "cosine").audit(queries[0]).recall == 1.0
    with pytest.raises(ValueError, match="at least one query"):
        index.audit(queries[:0])
    with pytest.raises(ValueError, match="one row"):
        asx.Index(DIM).audit(queries)


# --- errors ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"queries": np.zeros((2, DIM + 1), np.float32)}, ValueError, f"queries: expected {DIM} dims"),
        ({"queries": np.zeros((2, 2, DIM), np.float32)}, ValueError, "queries"),
        ({"queries": np.full((2, DIM), np.nan, np.float32)}, ValueError, "queries: row 0 holds NaN"),
        ({"queries": np.zeros((2, DIM), complex)}, TypeError, "queries"),
        ({"k": 0}, ValueError, "k: expected at least 1"),
        ({"k": 2.0}, TypeError, "k: expected an integer"),
        ({"recall": 0.9}, ValueError, "recall: without a plan"),
        ({"recall": 1.5}, ValueError, "recall"),
        ({"recall": "all"}, TypeError, "recall"),
        ({"threads": 0}, ValueError, "threads"),
        ({"filter": np.ones(19, bool)}, ValueError, r"filter: expected ids, or shape \(20,\)"),
        ({"filter": np.ones((3, 20), bool)}, ValueError, "filter: expected one filter for each of 2 queries, got 3"),
        ({"filter": [[1], [2], [3]]}, ValueError, "filter: expected one filter for each of 2 queries, got 3"),
        ({"filter": [[1], [True]]}, ValueError, r"filter\[1\]"),
        ({"filter": [0.5]}, TypeError, "filter"),
        ({"filter": "abc"}, TypeError, "filter"),
    ],
)
def test_bad_searches(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    index = filled(collection(20), "cosine")
    with pytest.raises(error, match=words):
        index.search(**{"queries": questions(2), **arguments})


def test_a_stage_without_keep_needs_calibration() -> None:
    index = asx.Index(DIM, cascade=asx.Cascade([asx.Binary(), asx.Full()]))
    index.add(collection(30).astype(np.float32))
    with pytest.raises(ValueError, match=r"keep.*tune"):
        index.search(questions(2))
    assert index.search(questions(2), recall=1.0).ids.shape == (2, 10)


def test_an_empty_index_finds_nothing_without_calibration() -> None:
    index = asx.Index(DIM, cascade=asx.Cascade([asx.Binary(), asx.Full()]))
    for _ in range(2):
        found, stats = index.search(questions(3), stats=True)
        assert found.ids.shape == found.scores.shape == (3, 0)
        assert len(stats.stages) == 1
        assert index.search(questions(3)[0]).ids.shape == (0,)
        with pytest.raises(ValueError, match="recall: without a plan"):
            index.search(questions(3), recall=0.9)
        index.fit(collection(40).astype(np.float32))


def test_what_a_backend_prepared_is_used_until_rows_change(backend: Backend) -> None:
    index = filled(collection(50), "cosine", cascade=cascades(keep=9)[0])
    made, stages = ways(index), range(len(index.plan.stages))
    before = [made.stage(backend, number, index._installed) for number in stages]
    index.remove(3)
    assert all(made.stage(backend, number, index._installed) is before[number] for number in stages)
    index.add(collection(1).astype(np.float32))
    assert not any(made.stage(backend, number, index._installed) is before[number] for number in stages)


@pytest.mark.parametrize("value", [True, "1.0", None.__class__, 1j])
def test_recall_is_a_number(value: Any) -> None:
    index = asx.Index(4)
    with pytest.raises(TypeError, match="recall: expected a number"):
        index.search(np.zeros(4), recall=value)


@pytest.mark.parametrize("value", [np.ma.masked_array([1, 2], mask=[0, 1]), [[1, [2]], [3]]])
def test_filters_that_would_lose_something_are_refused(value: Any) -> None:
    index = asx.Index(4)
    index.add(np.eye(4))
    with pytest.raises((TypeError, ValueError), match=r"filter(\[0\])?: expected an array"):
        index.search(np.ones((2, 4)), 2, filter=value)
