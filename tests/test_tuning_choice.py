"""What tune() tries, what it compares and chooses, and how far it says it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from index_cases import assert_one_whole_bar, prepared, way_of
from test_tuning import clustered

import adaptive_search as asx
from adaptive_search import candidates, families, tuning, tuning_queries
from adaptive_search.backends import current
from adaptive_search.backends.protocol import Backend
from adaptive_search.representations import lists
from adaptive_search.representations.lists import ListRows


@pytest.mark.parametrize("by_lists", [False, True], ids=["codes", "lists"])
def test_what_takes_too_long_is_left_aside_early(by_lists: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes whose scan alone takes as long as the best cascade so far are not tuned; lists are, but for a look with a small margin."""
    rows, queries = clustered()
    index = asx.Index(rows.shape[1])
    index.add(rows[:2_000])
    ground = tuning_queries.Ground(current(), index._store, index._slabs, "cosine", prepared(index, current())[-1])
    codes: list[Any] = [asx.PQ(8, 4), asx.Full()]
    candidate = candidates.Bench(ground, lambda: rows[:2_000]).prepare(asx.Cascade([asx.Lists(8), *codes] if by_lists else codes))
    if by_lists:  # as backends without listings would have it
        stages = list(candidate.stages)
        stages[1] = replace(stages[1], listing=SimpleNamespace())
        candidate = replace(candidate, stages=tuple(stages))
    asked = ground.queries(queries[:20], 10, None)
    looks: list[int] = []
    fits: list[int] = []

    def seconds(ground: Any, way: Any, *_: Any) -> tuning.Cost:
        looks.append(len(way.stages))
        return tuning.Cost(1.0, 1.0)

    def fit_models(ground: Any, candidate: Any, *_: Any) -> Any:
        fits.append(1)
        return candidate

    def curve(*_: Any) -> tuning.Curve:
        return tuning.Curve((0.0, 1.0), (0.5, 0.0))

    def way_through(_: Any, stages: Any, *__: Any) -> SimpleNamespace:
        return SimpleNamespace(stages=stages)

    for name, fake in (("seconds", seconds), ("fit_models", fit_models), ("curve", curve), ("way_through", way_through)):
        monkeypatch.setattr(tuning, name, fake)
    assert tuning.measure(ground, candidate, asked, 10, 0.9, limit=1.0) is None
    assert (looks, len(fits)) == (([3], 1) if by_lists else ([1], 0))
    assert tuning.measure(ground, candidate, asked, 10, 0.9, limit=1.1) is not None


def test_progress_moves_while_lists_are_learned(monkeypatch: pytest.MonkeyPatch, reports: list[tuple[int, int]]) -> None:
    if not current().passes_by:
        pytest.skip("lists spare it nothing")
    monkeypatch.setattr(families, "LISTED_ROWS", 1_000)
    meanwhile: list[int] = []
    learn = lists.clustered

    def noted(*arguments: Any) -> Any:
        before = len(reports)
        found = learn(*arguments)
        meanwhile.append(len(set(reports[before:])))
        return found

    monkeypatch.setattr(lists, "clustered", noted)
    random = np.random.default_rng(0)
    index = asx.Index(96)
    index.add(random.standard_normal((60, 96))[random.integers(0, 60, 2_000)] + 0.5 * random.standard_normal((2_000, 96)))
    reports.clear()
    index.tune(recall=0.8, progress=True)
    assert len(meanwhile) == 2
    assert min(meanwhile) > 5
    assert_one_whole_bar(reports)


@pytest.mark.parametrize(
    ("cascade", "recall"), [(None, 1.0), ([asx.Int8(keep=50), asx.Full()], 0.9), ([asx.Int8(bounded=True), asx.Full()], 1.0)], ids=str
)
def test_progress_ends_with_all_done(cascade: list[Any] | None, recall: float, reports: list[tuple[int, int]]) -> None:
    index = asx.Index(24, cascade=None if cascade is None else asx.Cascade(cascade), fit_rows=500)
    index.add(np.random.default_rng(0).standard_normal((500, 24)))
    reports.clear()
    index.tune(np.random.default_rng(1).standard_normal((300, 24)), recall=recall, progress=True)
    assert_one_whole_bar(reports)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[asx.Cascade]:
    """What `tune` tries, lists from 1,000 rows on."""
    found: list[asx.Cascade] = []
    prepare = candidates.Bench.prepare

    def noted(self: Any, cascade: asx.Cascade, progress: Any = None) -> Any:
        found.append(cascade)
        return prepare(self, cascade, progress)

    monkeypatch.setattr(candidates.Bench, "prepare", noted)
    monkeypatch.setattr(families, "LISTED_ROWS", 1_000)
    return found


@pytest.mark.long
def test_lists_are_tried_where_they_spare_rows(backend: Backend, tried: list[asx.Cascade]) -> None:
    """With the best codes alone, and not by backends that scan all rows in any case."""
    random = np.random.default_rng(0)
    clumps = random.standard_normal((60, 96))
    rows = clumps[random.integers(0, 60, 2_150)] + 0.5 * random.standard_normal((2_150, 96))
    index = asx.Index(96)
    index.add(rows[:2_000].astype(np.float32))
    index.tune(rows[2_000:].astype(np.float32), recall=0.9)
    heads = [cascade.stages for cascade in tried if isinstance(cascade.stages[0], asx.Lists)]
    if not backend.passes_by:
        assert heads == []
        return
    assert [stages[0] for stages in heads] == [asx.Lists(16), asx.Lists(64)]
    assert len({stages[1:] for stages in heads}) == 1
    assert heads[0][1:] in [cascade.stages for cascade in tried]


@pytest.mark.long
def test_where_lists_help_longer_codes_are_tried(backend: Backend, tried: list[asx.Cascade], monkeypatch: pytest.MonkeyPatch) -> None:
    """Few of them are read then, so that they may take less time than those that are best without lists."""

    def seconds(_: Any, way: Any, *__: Any) -> tuning.Cost:
        taken = 1.0 if isinstance(way.stages[0].representation, ListRows) and helpful else len(way.stages) % 3 + 2.0
        return tuning.Cost(taken, taken)

    monkeypatch.setattr(tuning, "seconds", seconds)
    random = np.random.default_rng(0)
    rows = (random.standard_normal((1_650, 192)) / (1 + np.arange(192) / 8)).astype(np.float32)
    for helpful in (True, False):
        tried.clear()
        index = asx.Index(192)
        index.add(rows[:1_500])
        index.tune(rows[1_500:], recall=0.9)
        codes = [cascade.stages[1] for cascade in tried if isinstance(cascade.stages[0], asx.Lists)]
        short, long = (asx.PQ(pairs, 4, dims=2 * pairs, anisotropy=families.WEIGHT) for pairs in (32, 64))
        assert codes == ([] if not backend.passes_by else [short, short, long] if helpful else [short, short])


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_the_best_cascade_is_tried_with_longer_int8_codes(kind: str, tried: list[asx.Cascade], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where these are a quarter of the vectors, not half."""
    monkeypatch.setattr(tuning, "seconds", lambda _, way, *__: tuning.Cost(*[1.0 if len(way.stages) > 2 else 2.0] * 2))
    random = np.random.default_rng(0)
    rows = (random.standard_normal((1_100, 300)) / (1 + np.arange(300) / 8)).astype(kind)
    index = asx.Index(300, "ip", kind)
    index.add(rows[:900])
    index.tune(rows[900:], recall=0.8)
    long, short = (
        [cascade.stages[:-2] for cascade in tried if len(cascade.stages) > 2 and cascade.stages[-2] == codes]
        for codes in (asx.Int8(bounded=True, bound_dims=256), asx.Int8(256, bounded=True))
    )
    assert len(long) == (kind == "float32")
    assert set(long) < set(short)


def test_cascades_that_come_close_are_measured_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first look is not trusted, but for what was far behind, which is not looked at again."""

    unused: Any = None
    tried = [
        tuning.Measured(unused, name, tuning.Cost(cost, cost))  # type: ignore[arg-type]
        for name, cost in (("lucky", 1.0), ("steady", 1.2), ("slow", 9.0))
    ]
    # By then the first is 1.36 times as slow, which is too much after four turns, and was not after three.
    again = {"lucky": [2.5, 1.5, 4.0, 6.0], "steady": [1.3, 3.0, 1.1, 8.0]}

    def seconds(_: Any, way: Any, *__: Any) -> tuning.Cost:
        cost = again[way].pop(0)
        return tuning.Cost(cost, cost)

    monkeypatch.setattr(tuning, "seconds", seconds)
    best = tuning.contest(unused, tried, np.zeros((4, 2), np.float32), 10)
    assert best.way is tried[1].way
    assert best.cost == tuning.Cost(1.1, 1.1)
    assert again == {"lucky": [], "steady": []}
    assert tuning.contest(unused, tried[::2], np.zeros((4, 2), np.float32), 10) is tried[0]


def test_exact_search_has_codes_before_its_bounds_where_they_pay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They find its thresholds. The index is exact, and lower recalls may be asked for as of any plan."""
    monkeypatch.setattr(tuning, "seconds", lambda _, way, *__: tuning.Cost(*[1.0 if way.plan else 2.0 if way.bounds else 3.0] * 2))
    random = np.random.default_rng(0)
    scale = 1 / np.sqrt(1 + np.arange(128) / 8)
    clumps = random.standard_normal((60, 128))
    rows, queries = (
        ((clumps[random.integers(0, 60, count)] + random.standard_normal((count, 128))) * scale).astype(np.float32)
        for count in (5_000, 500)
    )
    index = asx.Index(128, "ip")
    index.add(rows)
    plan = index.tune(queries[:300], recall=1.0)
    codes, bound, last = plan.stages
    assert isinstance(codes, asx.PQ)
    assert isinstance(bound, asx.Int8)
    assert bound.bounded
    assert last == asx.Full()
    assert (plan.recall, plan.certified, plan.interval) == (1.0, False, (1.0, 1.0))
    exact = asx.top_k(queries[300:], rows, 10)
    index.save(tmp_path / "index")
    for one in (index, asx.Index.open(tmp_path / "index")):
        assert one.plan == plan
        found, stats = one.search(queries[300:], stats=True)
        np.testing.assert_array_equal(found.ids, exact.ids)
        assert [stage.stage for stage in stats.stages] == [f"{bound!r}, bound", "Full()"]
        few = one.search(queries[300:], recall=0.8).ids
        assert 0.7 < (few[:, :, None] == exact.ids[:, None, :]).any(axis=1).mean() < 1.0
        # More than its plan was calibrated for.
        np.testing.assert_array_equal(one.search(queries[300:], recall=0.9999).ids, exact.ids)
    # Too few queries to calibrate with: there is no plan then.
    assert isinstance(index.tune(queries[:3], recall=1.0).stages[0], asx.Int8)


@pytest.mark.parametrize(
    ("stages", "probed"),
    [
        ([asx.PQ(12, 4), asx.Int8(bounded=True), asx.Full()], True),
        ([asx.PQ(12, 4, keep=200), asx.Int8(bounded=True), asx.Full()], True),
        ([asx.PQ(12, 4, keep=200), asx.Int8(bounded=True, keep=50), asx.Full()], False),
        ([asx.PQ(12, 4), asx.Int8(bounded=True)], False),
    ],
    ids=str,
)
def test_exact_search_is_measured_as_it_will_be_done(stages: list[Any], probed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans that could find its thresholds, and no others, are what its time is told of."""
    monkeypatch.setattr(tuning, "seconds", lambda _, way, *__: tuning.Cost(*[1.0 if way.plan else 2.0] * 2))
    rows, queries = clustered()
    index = asx.Index(rows.shape[1], "ip", cascade=asx.Cascade(stages), fit_rows=1_000)
    index.add(rows)
    plan = index.tune(queries[:300], recall=1.0)
    assert (way_of(index, current()).plan is not None) == probed
    assert plan.cost_us == (1e6 if probed else 2e6)


def test_a_plan_that_calibration_rejects_finds_no_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact search then goes the fastest way without it, and its time is told."""
    monkeypatch.setattr(tuning, "seconds", lambda _, way, *__: tuning.Cost(*[1.0 if way.plan else 3.0 - way.opening.share / 32] * 2))
    monkeypatch.setattr(tuning, "never_rising", np.ones_like)
    rows, queries = clustered()
    cascade = asx.Cascade([asx.PQ(12, 4), asx.Int8(bounded=True), asx.Full()])
    index = asx.Index(rows.shape[1], "ip", cascade=cascade, fit_rows=1_000)
    index.add(rows)
    plan = index.tune(queries[:300], recall=1.0)
    assert (plan.n_queries, plan.cost_us) == (0, 2e6)
    way = way_of(index, current())
    assert way.plan is None
    assert way.opening.share == 32
    np.testing.assert_array_equal(index.search(queries[300:320]).ids, asx.top_k(queries[300:320], rows, 10).ids)


def test_exact_search_without_bounds_is_a_scan_of_the_vectors(tried: list[asx.Cascade]) -> None:
    """Codes before it would be learned for nothing."""
    rows = np.random.default_rng(0).standard_normal((5_000, 96), dtype=np.float32)
    rows[7] *= np.float32(1e17)
    index = asx.Index(96, "ip")
    index.add(rows)
    assert index.tune(rows[:50], recall=1.0).stages == (asx.Full(),)
    assert not any(isinstance(cascade.stages[0], asx.PQ) for cascade in tried)
