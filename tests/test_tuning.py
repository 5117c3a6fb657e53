"""Plans: what tune() installs, what it promises, and that searches keep to it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_cases import assert_equal, way_of, ways
from test_calibration import simulated

import adaptive_search as asx
from adaptive_search import families, tuning, tuning_queries
from adaptive_search.backends import current
from adaptive_search.calibration import Calibration
from adaptive_search.margins import ErrorModel
from adaptive_search.representations.int8 import Int8Rows
from adaptive_search.representations.pq import PQRows
from adaptive_search.running import Opening
from adaptive_search.types import F32, I64

DIM = 48
ROWS = 5_000


@cache
def clustered() -> tuple[F32, F32]:
    """Rows and queries around common centres, their variance falling over the dims."""
    rng = np.random.default_rng(5)
    scale = (1 / np.sqrt(1 + np.arange(DIM) / 8)).astype(np.float32)
    centres = rng.standard_normal((120, DIM), dtype=np.float32)

    def draw(count: int) -> F32:
        noise = rng.standard_normal((count, DIM), dtype=np.float32)
        return (0.8 * centres[rng.integers(0, 120, count)] + 0.75 * noise) * scale

    return draw(ROWS), draw(1_200)


CASCADES = [
    [asx.Int8(24), asx.Full()],
    [asx.Prefix(12), asx.Prefix(24), asx.Full()],
    [asx.Binary(), asx.Int8(), asx.Full()],
    [asx.Binary(rotation="itq"), asx.Int8(), asx.Full()],
    [asx.PQ(12, bits=4, dims=32), asx.Int8(), asx.Full()],
    [asx.PQ(12), asx.Full()],
    [asx.Lists(16), asx.PQ(12, bits=4), asx.Full()],
    [asx.RaBit(), asx.Int8(), asx.Full()],
    [asx.RaBit(2, dims=32), asx.Full()],
    [asx.PQ(12, bits=4, dims=24, rotation="pca"), asx.Full()],
    [asx.Int8(16, rotation="pca"), asx.Int8(), asx.Full()],
]
MIXED = [
    [asx.Binary(), asx.Int8(keep=40), asx.Full()],
    [asx.Binary(keep=600), asx.Prefix(24), asx.Full()],
    [asx.Prefix(16, keep=100), asx.Full()],
]


def tuned(
    stages: Any = None, metric: Any = "cosine", recall: float = 0.9, k: int = 10, count: int = 400, dtype: Any = "float32"
) -> asx.Index:
    rows, queries = clustered()
    index = asx.Index(DIM, metric, dtype, None if stages is None else asx.Cascade(stages))
    index.fit_rows = 1_000
    index.add(rows)
    index.tune(queries[:count], k=k, recall=recall)
    return index


@cache
def tuned_once(stages: tuple[Any, ...], metric: Any, recall: float = 0.9) -> asx.Index:
    """For tests of searching alone, which run on every backend: plans do not depend on it. The best one is the fastest."""
    with asx.use_backend(asx.backends()[0]):
        return tuned(stages, metric, recall, count=120)


def recall_of(index: asx.Index, queries: F32, k: int, **options: Any) -> float:
    found, true = index.search(queries, k, **options).ids, index.search(queries, k, recall=1.0).ids
    return float((found[:, :, None] == true[:, None, :]).any(axis=1).mean())


@pytest.mark.long
@pytest.mark.parametrize(("stages", "metric"), list(zip(CASCADES, cycle(["ip", "cosine", "l2"]), strict=False)), ids=str)
def test_a_given_cascade_is_calibrated(stages: list[Any], metric: Any) -> None:
    index = tuned(stages, metric)
    plan = index.plan
    assert plan.stages == tuple(stages)
    assert (plan.recall, plan.k, plan.certified, plan.why, plan.n_queries) == (0.9, 10, True, "", 267)
    assert plan.interval is not None
    assert plan.interval[0] < 0.95
    assert plan.cost_us is not None
    fresh = clustered()[1][400:]
    # The mean recall of one plan lies around 0.9 by about 0.01.
    assert 0.87 < recall_of(index, fresh, 10) < 0.97


@pytest.mark.parametrize("stages", CASCADES + MIXED, ids=str)
def test_answers_are_those_of_every_backend_batch_and_thread(stages: list[Any], backend: Any) -> None:
    index = tuned_once(tuple(stages), "ip")
    queries = clustered()[1][400:450]
    with asx.use_backend(asx.backends()[0]):
        expected = index.search(queries)
    found = index.search(queries, threads=2)
    assert_equal(found, expected)
    for number in (0, 17):
        assert_equal(index.search(queries[number]), asx.Neighbors(expected.ids[number], expected.scores[number]))
    odd = np.array([3, 40, 41, 7])
    assert_equal(index.search(queries[odd]), asx.Neighbors(expected.ids[odd], expected.scores[odd]))
    smaller = index.search(queries, 4)
    assert_equal(smaller, asx.Neighbors(expected.ids[:, :4], expected.scores[:, :4]))


@pytest.mark.long
@pytest.mark.parametrize("stages", [CASCADES[1], *CASCADES[3:5]], ids=str)
def test_searches_in_one_call_are_like_others(stages: list[Any], backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    index, queries = tuned_once(tuple(stages), "l2"), clustered()[1][400:408]
    masks = [None, np.arange(ROWS) % 3 > 0]
    found = [index.search(queries, recall=recall, filter=mask, stats=True, threads=1) for mask in masks for recall in (None, 1.0)]
    monkeypatch.setattr("adaptive_search.running.SMALL", 0)
    again = [index.search(queries, recall=recall, filter=mask, stats=True, threads=1) for mask in masks for recall in (None, 1.0)]
    for (one, stats), (other, counted) in zip(found, again, strict=True):
        assert_equal(one, other)
        # When survivors are looked at, and so how many, depends on how a scan is cut into ranges.
        assert min(stats.stages[-1].scored.min(), counted.stages[-1].scored.min()) >= 10


def by_definition(index: asx.Index, queries: F32) -> I64:
    """The 10 rows of the best (value, score, id), the value being the least of the score and all upper bounds; from all rows' keys."""
    way = way_of(index, current())
    everything = np.tile(np.arange(ROWS), (len(queries), 1))
    values = np.full((len(queries), ROWS), np.inf)
    for stage in way.stages:
        raw, places = stage.representation.rescore(current(), stage.rows, queries, everything, ROWS)
        keys = np.take_along_axis(raw, np.argsort(places, axis=1), axis=1).astype(np.float64)
        _, bound = stage.level(current(), queries)
        scores = bound.of(keys if stage.representation.largest else -keys)
        values = np.minimum(values, scores)
    best = np.lexsort((everything, -scores, -values), axis=1)[:, :10]
    order = np.lexsort((best, -np.take_along_axis(scores, best, axis=1)), axis=1)
    return np.take_along_axis(best, order, axis=1)


@pytest.mark.parametrize("stages", CASCADES[:4], ids=str)
def test_answers_are_those_of_the_definition(stages: list[Any], backend: Any) -> None:
    index = tuned_once(tuple(stages), "cosine", recall=0.8)
    queries = clustered()[1][400:420]
    np.testing.assert_array_equal(index.search(queries).ids, by_definition(index, queries))


@pytest.mark.parametrize("keep", [5, 700])
def test_queries_so_far_away_that_all_estimates_are_equal(keep: int, backend: Any) -> None:
    """Fewer bits still decide, as they do without a margin."""
    rows, queries = clustered()
    index = asx.Index(DIM, "l2", cascade=asx.Cascade([asx.Binary(), asx.Binary(keep=keep), asx.Full()]), fit_rows=1)
    index.add(rows)
    index._tuned = Calibration(0.9, 10, (ErrorModel(0.0, 1.0, 1.0), None, None), Opening(), (9.0,), (0.0,), 100, True, 1.0)
    plain = asx.Index(DIM, "l2", cascade=asx.Cascade([asx.Binary(keep=keep), asx.Full()]), fit_rows=1)
    plain.add(rows)
    asked = np.float32(1e29) * queries[400:440]
    assert_equal(index.search(asked), plain.search(asked))
    assert_equal(index.search(asked[0]), plain.search(asked[0]))


@pytest.mark.parametrize("in_one_call", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1e-13])
@pytest.mark.parametrize("stages", [[asx.Int8(3), asx.Full()], [asx.Binary(), asx.PQ(2, bits=4, dims=3), asx.Full()]], ids=str)
def test_rows_are_not_lost_to_the_rounding_of_bounds(
    stages: list[Any], scale: float, in_one_call: bool, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounds far below what they are made of, or far above: what keys must reach is then known no better than that."""
    monkeypatch.setattr("adaptive_search.running.SMALL", 32 if in_one_call else 0)
    rows, queries = clustered()
    index = asx.Index(DIM, "l2", cascade=asx.Cascade(stages), fit_rows=1)
    index.add(rows * np.float32(scale))
    for intercepts in ((-7.0, 9.0), (9.0, -7.0), (1e3, 0.0)):
        models = (*(ErrorModel(intercept, 1e-6, 1e-7) for intercept in intercepts[: len(stages) - 1]), None)
        index._tuned = Calibration(0.9, 10, models, Opening(), (0.0,), (0.0,), 100, True, 1.0)
        asked = queries[400:404] * np.float32(scale)
        np.testing.assert_array_equal(index.search(asked).ids, by_definition(index, asked))


@pytest.mark.long
def test_scores_beyond_float32(tmp_path: Path) -> None:
    """Distances that are infinite say nothing of a stage's errors."""
    rows, queries = clustered()
    index = asx.Index(DIM, "l2", cascade=asx.Cascade(CASCADES[1]), fit_rows=1)
    index.add(np.concatenate([1e-3 * rows[:100], 3e19 * rows]))
    index.tune(np.concatenate([1e-3 * queries[:30], 3e19 * queries[30:60]]), recall=0.8)
    index.save(tmp_path / "index")
    assert_equal(asx.Index.open(tmp_path / "index").search(queries), index.search(queries))


@pytest.mark.long
@pytest.mark.parametrize("stages", [*CASCADES[1:3], [asx.Binary(), asx.Int8()]], ids=str)
def test_the_promise_over_many_draws(stages: list[Any]) -> None:
    """Mean recall of fresh queries over draws of calibration queries, with the stages' real losses; k is that of the plan or smaller."""
    index = tuned(stages, count=100)
    queries = clustered()[1][100:700]
    margins = np.linspace(-2, 5, 29)
    true = index.search(queries, 10, recall=1.0).ids
    losses = {10: np.empty((len(queries), len(margins))), 4: np.empty((len(queries), len(margins)))}
    for number, margin in enumerate(margins):
        way = ways(index).at(current(), float(margin), index._installed)
        found = tuning.run(current(), way.stages, queries, 10, None, np.full(len(queries), ROWS)).positions
        for k, lost in losses.items():
            lost[:, number] = tuning_queries.losses(found[:, :k], true[:, :k])
    for recall, k in ((0.8, 10), (0.95, 10), (0.9, 4)):
        mean, error = simulated(losses[k], recall, 150, 200)
        assert mean >= recall - 3 * error
        assert mean <= recall + 0.04


def test_codes_are_rotated_where_first_dims_tell_no_more_than_others() -> None:
    random = np.random.default_rng(0)
    falling = (random.standard_normal((2_000, 256)) / (1 + np.arange(256) / 8)).astype(np.float32)
    mixed = (falling @ np.linalg.qr(random.standard_normal((256, 256)))[0]).astype(np.float32)
    for rows, uneven in ((falling, True), (mixed, False), (falling[:0], True), (falling[:, :1], True)):
        assert families.is_uneven(rows) == uneven
    stages = [stage for cascade in families.family(256, "cosine", False, 5_000) for stage in cascade.stages]
    assert asx.Int8(64, rotation="pca") in stages
    assert asx.Int8(64) in [stage for cascade in families.family(256, "cosine", True, 5_000) for stage in cascade.stages]
    codes = {metric: families.family(256, metric, False, 50_000)[0].stages[0] for metric in ("ip", "cosine", "l2")}
    assert [stage.anisotropy for stage in codes.values() if isinstance(stage, asx.PQ)] == [families.WEIGHT, families.WEIGHT, 1.0]
    bounds = asx.Cascade([asx.Int8(192, bounded=True, rotation="pca"), asx.Full()])
    assert [bounds in families.exact_family(256, uneven) for uneven in (False, True)] == [True, False]


@pytest.mark.long
def test_what_is_not_certified() -> None:
    rows, queries = clustered()
    index = tuned(CASCADES[0])
    assert index.plan.certified
    index.add(rows[:3] + 1)
    assert not index.plan.certified
    assert "3 rows" in index.plan.why
    index.remove([0, 1])
    assert "5 rows" in index.plan.why
    index.tune(queries[:300], recall=0.9)
    assert index.plan.certified
    index.tune(recall=0.9)
    assert not index.plan.certified
    assert "stored rows" in index.plan.why
    assert recall_of(index, queries, 10) > 0.8
    for stages in MIXED:
        plan = tuned_once(tuple(stages), "ip").plan
        assert not plan.certified
        assert "fixed keep" in plan.why
        assert plan.interval is not None
    assert "estimates" in tuned([asx.Binary(), asx.Int8()]).plan.why


@pytest.mark.long
def test_stages_in_use_are_not_learned_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the same rows that would give the same; other rows are learned from."""
    rows, queries = clustered()
    cascade = asx.Cascade([asx.PQ(12, bits=4), asx.Int8(24, rotation="pca"), asx.Int8(24, rotation="pca"), asx.Full()])
    index, other = (asx.Index(DIM, cascade=cascade, fit_rows=10_000) for _ in range(2))
    for one in (index, other):
        one.add(rows)
    index.tune(queries[:300], recall=0.8)
    learned: list[Any] = []
    for kind in (PQRows, Int8Rows):
        fit = kind.fit
        monkeypatch.setattr(kind, "fit", lambda self, *asked, fit=fit: learned.append(self) or fit(self, *asked))
    plan = index.tune(queries[300:600], recall=0.9)
    assert not learned
    assert plan == replace(other.tune(queries[300:600], recall=0.9), cost_us=plan.cost_us)
    assert len(learned) == 3
    assert_equal(index.search(queries[600:640]), other.search(queries[600:640]))
    index.add(rows[:10] + 0.01)
    index.tune(queries[:300], recall=0.8)
    assert len(learned) == 6


def test_k_beyond_the_plan_warns_once() -> None:
    index = tuned(CASCADES[0], k=5)
    queries = clustered()[1][400:500]
    with pytest.warns(UserWarning, match="up to 5"):
        found = index.search(queries, 12)
    assert found.ids.shape == (100, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index.search(queries, 12)
        index.search(queries, 12, recall=1.0)
        index.search(queries, 5)


@pytest.mark.long
def test_other_recalls_take_other_margins() -> None:
    index = tuned(CASCADES[0], count=1_000)
    fresh = clustered()[1][1_000:]
    found = [recall_of(index, fresh, 10, recall=recall) for recall in (0.7, 0.9, 0.99)]
    assert found == sorted(found)
    assert found[0] < 0.85
    assert found[2] > 0.97
    with pytest.raises(ValueError, match="999 calibration queries"):
        index.search(fresh, recall=0.999)
    flat = asx.Index(DIM)
    flat.add(clustered()[0])
    assert_equal(index.search(fresh, recall=1.0), flat.search(fresh))


@pytest.mark.long
def test_too_few_queries() -> None:
    rows, queries = clustered()
    index = asx.Index(DIM, cascade=asx.Cascade(CASCADES[0]))
    with pytest.raises(ValueError, match="empty"):
        index.tune(queries)
    index.add(rows)
    with pytest.raises(ValueError, match=r"tune\(\).*keep"):
        index.search(queries)
    for few, recall, needed in ((queries[0], 0.95, 19), (queries[:1], 0.9, 9), (queries[:98], 0.99, 99), (queries[:0], 0.5, 1)):
        with pytest.raises(ValueError, match=f"queries: .* at least {needed} calibration queries"):
            index.tune(few, recall=recall)
        with pytest.raises(ValueError, match=f"at least {needed}"):
            asx.Index.build(rows, queries=few, recall=recall)
    # Just enough: stored rows tune.
    plan = index.tune(queries[:19], recall=0.95)
    assert (plan.n_queries, plan.certified) == (19, True)
    for arguments in ({"k": 0}, {"recall": 0}, {"recall": True}, {"memory": 0}, {"queries": queries[:, :5]}):
        with pytest.raises((TypeError, ValueError), match=next(iter(arguments))):
            index.tune(**{"queries": queries} | arguments)
    assert index.plan == plan


def test_too_few_stored_rows_to_stand_for_queries() -> None:
    rows, queries = clustered()
    index = asx.Index(DIM, cascade=asx.Cascade(CASCADES[0]), fit_rows=1)
    index.add(rows[:300])
    before = index.tune(queries[:100], recall=0.9)
    for recall, needed in ((0.999, 999), (0.9999, 9_999)):
        with pytest.raises(ValueError, match=f"queries: .* at least {needed} calibration queries.*{2 * needed}, there are 300"):
            index.tune(recall=recall)
    with pytest.raises(ValueError, match=r"queries: .* at least one"):
        index.tune(queries[:0], recall=1.0)
    assert index.plan == before
    assert index.search(queries).ids.shape == (1_200, 10)
    index.remove(index.ids[1:])
    with pytest.raises(ValueError, match=r"at least 19 .*38, there are 1"):
        index.tune()
    # Where tune() may choose, it chooses exact search.
    for count in (1, 37, 300):
        free = asx.Index(DIM)
        free.add(rows[:count])
        plan = free.tune(recall=0.999 if count == 300 else 0.95)
        assert (plan.stages, plan.recall) == ((asx.Full(),), 1.0)


@pytest.mark.long
def test_a_recall_that_needs_more_queries_than_are_usual() -> None:
    index = asx.Index(DIM, cascade=asx.Cascade(CASCADES[0]), fit_rows=1)
    index.add(clustered()[0][:500])
    plan = index.tune(np.concatenate([clustered()[0], clustered()[1]]), recall=0.9996)
    assert (plan.n_queries, plan.certified) == (2_499, True)
    index.search(clustered()[1])


def test_a_plan_of_exact_search_reaches_every_recall() -> None:
    rows, queries = clustered()
    index = asx.Index.build(rows[:500])
    exact = index.search(queries)
    for recall in (0.5, 0.99, 1.0):
        assert_equal(index.search(queries, recall=recall), exact)
    tuned_exactly = tuned(recall=1.0)
    assert_equal(tuned_exactly.search(queries, recall=0.7), tuned_exactly.search(queries))


@pytest.mark.long
@pytest.mark.parametrize(
    "stages", [[asx.Int8(keep=100), asx.Int8(keep=20), asx.Full()], [asx.Binary(), asx.PQ(6, bits=4), asx.Binary()]], ids=str
)
def test_a_stage_may_be_there_twice(stages: list[Any]) -> None:
    rows, queries = clustered()
    index = asx.Index(DIM, cascade=asx.Cascade(stages), fit_rows=1_000)
    index.add(rows[:1_000])
    assert index.tune(queries[:40]).stages == tuple(stages)
    index.add(rows[:10] + 1)
    assert index.search(queries).ids.shape == (1_200, 10)


def test_losses_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    found, truth = (np.argsort(rng.random((50, 30)), axis=1)[:, :7] for _ in range(2))
    truth[::5, 4:] = -1
    expected = [1 - len(set(mine) & set(true) - {-1}) / (true >= 0).sum() for mine, true in zip(found, truth, strict=True)]
    for pairs in (1, 49 * 7, 1 << 24):
        monkeypatch.setattr(tuning_queries, "PAIRS", pairs)
        np.testing.assert_allclose(tuning_queries.losses(found, truth), expected)


@pytest.mark.long
def test_a_built_index_is_tuned() -> None:
    rng = np.random.default_rng(0)
    scale = 1 / np.sqrt(1 + np.arange(128) / 24)
    centres = rng.standard_normal((100, 128))
    rows, queries = (
        ((centres[rng.integers(0, 100, count)] + rng.standard_normal((count, 128))) * scale).astype(np.float32) for count in (5_000, 900)
    )
    exact = asx.top_k(queries[600:], rows, 10, metric="cosine")
    index = asx.Index.build(rows, recall=0.95, queries=queries[:600])
    assert (index.plan.recall, index.plan.k) in ((0.95, 10), (1.0, 10))
    assert index.audit(queries[600:]).recall > 0.92
    np.testing.assert_array_equal(index.search(queries[600:], recall=1.0).ids, exact.ids)
    whole = asx.Index.build(rows, recall=1.0)
    assert whole.plan.recall == 1.0
    np.testing.assert_array_equal(whole.search(queries[600:]).ids, exact.ids)
    index.tune(queries[:600], memory=128 * 4 + 30)
    assert index.plan.bytes_per_row <= 128 * 4 + 30


@pytest.mark.parametrize("recall", [0.9, 1.0])
def test_a_plan_is_saved(tmp_path: Path, recall: float) -> None:
    rows, queries = clustered()
    index = tuned(None, recall=recall)
    index.save(tmp_path / "index")
    again = asx.Index.open(tmp_path / "index")
    assert again.plan == index.plan
    assert_equal(again.search(queries[400:]), index.search(queries[400:]))
    again.add(rows[:2] + 1)
    again.save(tmp_path / "index")
    if again.plan.stages != (asx.Full(),) and recall < 1:
        assert "2 rows" in asx.Index.open(tmp_path / "index").plan.why
    again.tune(queries[:300], recall=0.8)
    again.save(tmp_path / "index")
    assert asx.Index.open(tmp_path / "index", mmap=False).plan == again.plan


def test_stats_count_what_each_stage_did() -> None:
    index = tuned([asx.Int8(32), asx.Int8(), asx.Full()])
    # One query: in a batch, scanning such short rows whole takes less time than asking who survived.
    found, stats = index.search(clustered()[1][400:401], stats=True)
    first, second, last = stats.stages
    assert [stage.stage for stage in stats.stages] == ["Int8(dims=32)", "Int8()", "Full()"]
    # All of them, and a sample for the first thresholds.
    assert (first.scored >= ROWS).all()
    np.testing.assert_array_equal(first.bytes, first.scored * 32)
    np.testing.assert_array_equal(first.survivors, second.scored)
    np.testing.assert_array_equal(second.survivors, last.scored)
    np.testing.assert_array_equal(last.survivors, 10)
    assert (last.scored >= 10).all()
    assert last.scored.mean() <= second.scored.mean() < ROWS
    assert found.ids.shape == (1, 10)
    _, exact = index.search(clustered()[1][:3], recall=1.0, stats=True)
    assert [stage.stage for stage in exact.stages] == ["Full()"]


@pytest.mark.long
def test_plans_of_more_and_fewer_stages_are_saved_over_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = clustered()
    index = asx.Index(DIM)
    index.add(rows)
    monkeypatch.setattr(tuning, "seconds", lambda _, way, *others: tuning.Cost(1.0 / len(way.stages), 1.0))
    for stages in ([asx.Full()], CASCADES[2], CASCADES[0], CASCADES[3], [asx.Full()], CASCADES[3]):
        # The choice depends on times, and is made here.
        monkeypatch.setattr(tuning, "family", lambda *_, stages=stages: [asx.Cascade(stages)] if len(stages) > 1 else [])
        assert index.tune(queries[:60], recall=0.8).stages == tuple(stages)
        index.save(tmp_path / "index")
        again = asx.Index.open(tmp_path / "index")
        assert again.plan == index.plan
        assert_equal(again.search(queries), index.search(queries))


@pytest.mark.long
def test_no_stage_hands_on_more_rows_than_it_has() -> None:
    queries, allowed = clustered()[1][:40], np.arange(ROWS) % 2 == 0
    index = tuned(CASCADES[2])
    known = index._tuned
    assert known is not None
    # Where everything survives, what the first threshold was found with is scored once more, and blocks are soon scanned whole.
    for margin in (1.0, 50.0):
        index._tuned = replace(known, margins=(margin,), losses=(0.0,))
        for mask, most in ((None, ROWS), (allowed, ROWS // 2)):
            _, stats = index.search(queries, filter=mask, stats=True)
            for stage in stats.stages:
                assert (stage.survivors <= np.minimum(stage.scored, most)).all()


def edge_rows(kind: str) -> F32:
    rows = clustered()[0].copy()
    if kind == "ten":
        return rows[:10]
    if kind == "equal":
        rows[:] = rows[0]
    elif kind == "duplicates":
        rows[1::2] = rows[::2]
    elif kind == "zeros":
        rows[::3] = 0
    return rows


@cache
def odd_once(kind: str, stages: tuple[Any, ...] | None) -> asx.Index:
    """Searched on every backend, as `tuned_once`."""
    index = asx.Index(DIM, cascade=None if stages is None else asx.Cascade(stages))
    index.fit_rows = 1
    index.add(edge_rows(kind))
    with asx.use_backend(asx.backends()[0]):
        index.tune(clustered()[1][:60], k=3, recall=0.9)
    return index


@pytest.mark.parametrize("stages", [tuple(CASCADES[0]), tuple(CASCADES[2]), None], ids=str)
@pytest.mark.parametrize("kind", ["ten", "equal", "duplicates", "zeros"])
def test_odd_collections(kind: str, stages: tuple[Any, ...] | None, backend: Any) -> None:
    index, rows, queries = odd_once(kind, stages), edge_rows(kind), clustered()[1]
    asked = np.concatenate([queries[100:110], np.zeros((1, DIM), np.float32), 1e6 * queries[110:112], -queries[112:114]])
    exact = asx.top_k(asked, rows, 5, metric="cosine")
    found = index.search(asked, 3)
    assert found.ids.shape == (len(asked), 3)
    assert ((found.ids >= 0) & (found.ids < len(rows))).all()
    assert all(len(set(line)) == 3 for line in found.ids.tolist())
    # What is found has its exact score.
    np.testing.assert_array_equal(found.scores, asx.rescore(asked, rows, found.ids, 3, metric="cosine").scores)
    np.testing.assert_array_equal(index.search(asked, 5, recall=1.0).ids, exact.ids)
    few = index.search(asked, 3, filter=[3, 7, 9])
    np.testing.assert_array_equal(np.sort(few.ids, axis=1), np.tile([3, 7, 9], (len(asked), 1)))
    if len(rows) > 10:
        allowed = np.arange(len(rows)) % 2 == 1
        assert (index.search(asked, 3, filter=allowed).ids % 2 == 1).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        everything = index.search(asked, len(rows) + 5)
    assert everything.ids.shape == (len(asked), len(rows))
    np.testing.assert_array_equal(np.sort(everything.ids, axis=1), np.tile(np.arange(len(rows)), (len(asked), 1)))


def true_ranks(index: asx.Index, query: F32) -> I64:
    return index.search(query, ROWS, recall=1.0).ids


@pytest.mark.long
@pytest.mark.parametrize("stages", [CASCADES[2], MIXED[0], MIXED[1], [asx.Full()]], ids=str)
def test_explain(stages: list[Any]) -> None:
    index = tuned(stages, recall=0.8)
    query = clustered()[1][500]
    order = true_ranks(index, query)
    for k in (1, 4, 10, 15):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = index.search(query, k)
        for place in (*range(20), 200, 2_000):
            told = index.explain(query, order[place], k)
            assert told.found == (order[place] in found.ids)
            assert told.rank == (place + 1 if place < 1_000 else None)
            assert told.id == order[place]
            assert (told.lost_at is None) == told.found
            assert [trace.kept for trace in told.stages[:-1]] == [True] * (len(told.stages) - 1)
            assert told.stages[-1].kept == told.found
    assert index.explain(query, order[0]) == index.explain(query, order[0], 10)
    for arguments in ((query, 10**9), (query[:5], 0), (clustered()[1][:2], 0), (query, -1)):
        with pytest.raises(ValueError, match=r"id|quer"):
            index.explain(*arguments)


@pytest.mark.parametrize("stages", [[asx.Int8(bounded=True), asx.Full()], None], ids=str)
def test_explain_exact_searches(stages: list[Any] | None) -> None:
    index, query = tuned(stages, recall=1.0), clustered()[1][500]
    order = true_ranks(index, query)
    for k in (1, 1_000, 1_500, ROWS + 1):
        for place in (0, 1, 999, 1_000, 1_499, 1_500, ROWS - 1):
            told = index.explain(query, order[place], k)
            assert (told.found, told.rank) == (place < k, place + 1 if place < 1_000 else None)
