"""Inverted lists: what is found is a function of the stages' bounds, whichever lists are looked at, and in which order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from index_cases import way_of
from lists_cases import DIM, STAGES, as_if_tuned, asked, collection, expected, pairs, tuned
from pairwise import pairwise

import adaptive_search as asx
from adaptive_search.backends.protocol import Backend


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_codes_of_which_the_first_matter_most(metric: Any, backend: Backend) -> None:
    """Scans round entries of the first subspaces to coarser steps."""
    wide = np.repeat([8, 1], 8).astype(np.float32)
    index = tuned(metric, [asx.Lists(9), asx.PQ(16, 8)], collection(1_200) * wide, 0.0)
    queries = asked(12) * wide
    for margins in (-2.0, 0.0, 1.0):
        as_if_tuned(index, margins)
        assert pairs(index.search(queries, 10)) == expected(index, backend, queries, 10, True)


@pytest.mark.parametrize(("metric", "stages", "tried"), pairwise(["ip", "cosine", "l2"], STAGES, [(-2.0, 1.0), (0.0, 6.0)]), ids=str)
def test_what_bounds_allow_is_found(metric: Any, stages: Any, tried: tuple[float, ...], backend: Backend) -> None:
    index = tuned(metric, stages, collection(1_200), 0.0)
    queries = asked(12)
    for margins in tried:
        as_if_tuned(index, margins)
        wanted = expected(index, backend, queries, 10, True)
        assert pairs(index.search(queries, 10)) == wanted
        assert pairs(index.search(queries, 3)) == [best[:3] for best in wanted]
        assert [pairs(index.search(query[None], 10))[0] for query in queries] == wanted
        assert pairs(index.search(queries, 10, threads=3)) == wanted


@pytest.mark.parametrize("stages", STAGES[:2], ids=str)
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_filters_and_removed_rows(metric: Any, stages: Any, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptive_search.searching.DIRECT_ROWS", 1)
    index = tuned(metric, stages, collection(1_200), 1.0)
    index.remove(index.ids[::7])
    as_if_tuned(index, 1.0)
    alive = index._store._alive[: index._store.total]
    queries, random = asked(9), np.random.default_rng(3)
    assert pairs(index.search(queries, 10)) == expected(index, backend, queries, 10, alive)
    shared = random.random(len(index)) < 0.1
    masks = random.random((len(queries), len(index))) < 0.05
    masks[2], masks[3, 5:] = False, False
    for filter_, may in ((shared, shared), (list(masks), masks)):
        allowed = np.zeros((*may.shape[:-1], len(alive)), np.bool_)
        allowed[..., alive] = may
        assert pairs(index.search(queries, 10, filter=filter_)) == expected(index, backend, queries, 10, allowed)


@pytest.mark.long
def test_tuning_finds_margins(backend: Backend) -> None:
    index = asx.Index(DIM, "cosine", cascade=asx.Cascade([*STAGES[0], asx.Full()]), fit_rows=1_500)
    index.add(collection(1_500))
    plan = index.tune(asked(300), recall=0.9)
    assert plan.certified
    assert index.audit(asked(300, 2)).recall > 0.85


@pytest.mark.long
def test_rows_that_come_and_go_are_found_as_if_all_were_listed_anew(backend: Backend) -> None:
    index = tuned("cosine", STAGES[0], collection(66_000), 1.0)
    queries = asked(4)
    changes = (
        lambda: None,
        lambda: index.add(collection(3, 9)),
        lambda: index.add(collection(700, 8)),
        lambda: index.remove(index.ids[:40_000]),
        lambda: index.add(collection(26_000, 7)),
    )
    for change in changes:
        change()
        as_if_tuned(index, 1.0)
        found = pairs(index.search(queries, 10))
        assert found == expected(index, backend, queries, 10, index._store._alive[: index._store.total])
        found_anew = way_of(index, backend).over_all(queries, 10, index._store.alive, np.full(len(queries), len(index)), None)
        np.testing.assert_array_equal(index._store.ids[found_anew.positions], [[id_ for id_, _ in best] for best in found])


@pytest.mark.parametrize("count", [1, 2, 70])
def test_few_rows_and_lists_without_any(count: int, backend: Backend) -> None:
    index = tuned("l2", [asx.Lists(64), asx.PQ(4, 4)], collection(count), 1.0)
    queries = asked(5)
    assert pairs(index.search(queries, 10)) == expected(index, backend, queries, 10, True)


def test_exact_search_does_without(backend: Backend) -> None:
    rows = collection(5_000)
    index = tuned("cosine", [asx.Lists(20), asx.PQ(4, 4), asx.Int8(bounded=True)], rows, -3.0)
    queries = asked(20)
    exact = asx.top_k(queries, rows, 10, metric="cosine")
    found, stats = index.search(queries, 10, recall=1.0, stats=True)
    np.testing.assert_array_equal(np.sort(found.scores), np.sort(exact.scores))
    assert [stage.stage for stage in stats.stages] == ["Int8(bounded=True), bound", "Full()"]


@pytest.mark.parametrize("probes", [True, False], ids=["by the plan", "by a sample"])
@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
def test_exact_search_takes_thresholds_from_a_plan(metric: Any, probes: bool, backend: Backend) -> None:
    """Of codes much shorter than the bounds, and not of others. Ids are those of a flat search, whatever the plan misses."""
    stages = [asx.Lists(20), asx.PQ(4, 4), asx.Int8(bounded=True)] if probes else [asx.Int8(bounded=True)]
    rows = collection(5_000)
    index = tuned(metric, stages, rows, -3.0)
    flat = asx.Index(DIM, metric)
    flat.add(rows, index.ids)
    queries, allowed = asked(20), np.random.default_rng(1).random((20, 5_000)) < 0.4
    allowed[3, 7:] = False
    assert (way_of(index, backend, 1.0).plan is not None) == probes
    for filter_ in (None, allowed[0], list(allowed)):
        found, expected = index.search(queries, 10, recall=1.0, filter=filter_), flat.search(queries, 10, filter=filter_)
        np.testing.assert_array_equal(found.ids, expected.ids)
        assert found.scores.tobytes() == expected.scores.tobytes()


def test_thresholds_need_not_come_from_all_of_the_best_rows(backend: Backend) -> None:
    """They come from the margin for a recall of 0.8, or for the plan's own if that is lower."""
    index = tuned("cosine", [asx.PQ(4, 4), asx.Int8(bounded=True)], collection(5_000), 1.0)
    assert index._tuned is not None
    grid = replace(index._tuned, margins=(-4.0, -3.0, -2.0, 1.0), losses=(0.5, 0.15, 0.04, 0.0))
    queries, flat = asked(20), asx.Index(DIM, "cosine")
    flat.add(collection(5_000), index.ids)
    for recall, margins in ((0.99, -3.0), (0.9, -3.0), (0.8, -3.0), (0.4, -4.0)):
        index._tuned = replace(grid, recall=recall)
        plan = way_of(index, backend, 1.0).plan
        assert plan is not None
        assert plan.margins == margins
        np.testing.assert_array_equal(index.search(queries, 10, recall=1.0).ids, flat.search(queries, 10).ids)


def test_a_plan_that_only_exact_search_keeps_gives_no_thresholds(backend: Backend) -> None:
    """Infinite margins would score every row."""
    index = tuned("cosine", [asx.PQ(4, 4), asx.Int8(bounded=True)], collection(5_000), 1.0)
    index._tuned = replace(index._tuned, losses=(0.5,))  # type: ignore[type-var]
    found, stats = index.search(asked(20), 10, stats=True)
    assert way_of(index, backend).plan is None
    np.testing.assert_array_equal(found.ids, index.search(asked(20), 10, recall=1.0).ids)
    assert len(stats.stages) == 2


def test_lists_that_cannot_matter_are_passed_by(backend: Backend) -> None:
    index = tuned("cosine", STAGES[0], collection(3_000), 0.5)
    queries = asked(30)[:20]
    _, stats = index.search(queries, 10, stats=True)
    lists, codes, ints, full = stats.stages
    assert (lists.scored == 3_000).all()
    assert (lists.bytes == 0).all()
    if backend.name == "numba":
        assert (codes.scored >= 3_000).all()
    else:
        assert codes.scored.mean() < 1_000
        np.testing.assert_array_equal(lists.survivors, codes.scored)
    assert (codes.scored >= ints.scored).all()
    assert (full.survivors == 10).all()


def test_a_row_is_explained_by_its_list(backend: Backend) -> None:
    index = tuned("cosine", STAGES[0], collection(2_000), -1.5)
    query = asked(30)[4]
    best = index.search(query, 10, recall=1.0).ids
    found = set(index.search(query, 10).ids.tolist())
    told = [index.explain(query, row) for row in best.tolist()]
    assert [one.found for one in told] == [row in found for row in best.tolist()]
    assert all(one.stages[0].stage == "Lists(lists=13)" for one in told)
