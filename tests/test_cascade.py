"""What a cascade may be made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import oracles
import pytest
from index_cases import METRICS, assert_same, collection, expected, filled, prepared, questions, shuffled_ids
from pairwise import pairwise

import adaptive_search as asx
from adaptive_search.backends.protocol import Backend
from adaptive_search.margins import ErrorModel
from adaptive_search.representations import STAGES, stage_of
from adaptive_search.running import GROUP_BYTES, OPENINGS, Opening, PreparedStage, run


def test_stages_are_as_they_are_written() -> None:
    stages = [
        asx.Binary(keep=1000),
        asx.RaBit(keep=500),
        asx.PQ(48, bits=4, keep=200),
        asx.Int8(dims=64, keep=50),
        asx.Prefix(128, keep=20),
        asx.Full(),
    ]
    cascade = asx.Cascade(stages)
    text = (
        "Binary(keep=1000), RaBit(keep=500), PQ(subspaces=48, bits=4, keep=200), Int8(dims=64, keep=50), Prefix(dims=128, keep=20), Full()"
    )
    assert repr(cascade) == f"Cascade([{text}])"
    assert eval(repr(cascade), {name: getattr(asx, name) for name in ("Cascade", *STAGES)}) == cascade
    assert repr(asx.Prefix(3, renormalize=False)) == "Prefix(dims=3, renormalize=False)"
    assert len({cascade, asx.Cascade(cascade.stages), asx.Cascade([asx.Full()])}) == 2
    assert cascade != list(cascade.stages)


def test_stages_survive_being_plain_values() -> None:
    for stage in (
        asx.Binary(9, 8),
        asx.Binary(9, 8, "itq"),
        asx.PQ(3, 4, 7),
        asx.RaBit(2, 7, 5, "pca"),
        asx.Int8(None, 5),
        asx.Int8(3, 5, rotation="pca"),
        asx.Int8(3, 5, rotation="learned"),
        asx.PQ(3, 4, 7, 9, "random"),
        asx.Prefix(6, 5, False),
        asx.Full(),
    ):
        assert stage_of(stage.spec()) == stage


def test_sign_bits_of_dims_are_written_as_before_there_were_rotations() -> None:
    assert asx.Binary(9, 8).spec() == {"stage": "Binary", "bits": 9, "keep": 8}


def test_a_shortlist_at_the_end_is_for_the_full_vectors() -> None:
    assert asx.Cascade([asx.Binary(keep=9)]) == asx.Cascade([asx.Binary(keep=9), asx.Full()])
    assert asx.Cascade([asx.Binary()]).stages == (asx.Binary(),)
    assert not asx.Cascade([asx.Binary()]).needs_calibration
    assert asx.Cascade([asx.Binary(), asx.Full()]).needs_calibration


@pytest.mark.parametrize(
    ("stages", "error", "words"),
    [
        ([], ValueError, "at least one"),
        ([asx.Full(), asx.Full()], ValueError, "only as the last"),
        ([asx.Full(), asx.Binary(keep=5)], ValueError, "only as the last"),
        ([asx.Binary(keep=5), "Full"], TypeError, "stages: expected Lists, Binary, RaBit, PQ"),
        ([asx.Full], TypeError, "stages: expected Lists, Binary, RaBit, PQ"),
        (asx.Full(), TypeError, "stages: expected a list"),
        (None, TypeError, "stages: expected a list"),
    ],
)
def test_bad_lists_of_stages(stages: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        asx.Cascade(stages)


@pytest.mark.parametrize(
    ("stage", "arguments", "error", "words"),
    [
        (asx.Binary, {"keep": 0}, ValueError, "keep: expected at least 1"),
        (asx.Binary, {"keep": 2.5}, TypeError, "keep: expected an integer"),
        (asx.Binary, {"keep": True}, TypeError, "keep: expected an integer"),
        (asx.Binary, {"bits": 0}, ValueError, "bits"),
        (asx.Binary, {"rotation": "pca"}, ValueError, "rotation"),
        (asx.PQ, {"subspaces": 0}, ValueError, "subspaces"),
        (asx.PQ, {"subspaces": None}, TypeError, "subspaces"),
        (asx.PQ, {"subspaces": 4, "bits": 5}, ValueError, "bits: expected 4 or 8, got 5"),
        (asx.PQ, {"subspaces": 4, "bits": None}, TypeError, "bits"),
        (asx.Int8, {"dims": -3}, ValueError, "dims"),
        (asx.Int8, {"rotation": "itq"}, ValueError, "rotation: expected 'pca', 'learned', 'random' or None, got 'itq'"),
        (asx.Int8, {"rotation": "opq"}, ValueError, "rotation: expected 'pca', 'learned', 'random' or None, got 'opq'"),
        (
            asx.PQ,
            {"subspaces": 4, "rotation": "itq"},
            ValueError,
            "rotation: expected 'pca', 'learned', 'random', 'opq' or None, got 'itq'",
        ),
        (asx.PQ, {"subspaces": 4, "dims": 0}, ValueError, "dims"),
        (asx.Prefix, {"dims": 0}, ValueError, "dims"),
        (asx.Prefix, {"dims": None}, TypeError, "dims"),
        (asx.Prefix, {"dims": 4, "renormalize": 1}, TypeError, "renormalize: expected True or False"),
    ],
)
def test_bad_stages(stage: Any, arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        stage(**arguments)


def test_numpy_integers_are_integers() -> None:
    assert asx.Prefix(np.int64(5), keep=np.uint8(9)) == asx.Prefix(5, keep=9)


def test_many_queries_with_long_shortlists_go_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates of all queries at once would be as large as queries times rows."""
    assert GROUP_BYTES == 64 << 20
    rows, ids, queries = collection(300), shuffled_ids(300), questions(50)
    index = filled(rows, "cosine", cascade=asx.Cascade([asx.Prefix(5, keep=300), asx.Prefix(9, keep=200), asx.Full()]), ids=ids)
    answer, allowed = index.search(queries, 10), np.random.default_rng(0).random((50, 300)) < 0.5
    lengths = []
    run_rows = asx.running.run_rows

    def counting(scan: Any, visits: int, queries: int, **options: Any) -> Any:
        lengths.append(queries)
        return run_rows(scan, visits, queries, **options)

    monkeypatch.setattr("adaptive_search.running.GROUP_BYTES", 7 * 16 * (2 * 300 + 64))
    monkeypatch.setattr("adaptive_search.running.run_rows", counting)
    monkeypatch.setattr("adaptive_search.searching.DIRECT_ROWS", 1)
    assert_same(index.search(queries, 10, threads=1), answer.ids, answer.scores)
    assert lengths == [7] * 7 + [1]
    exact = filled(rows, "cosine", ids=ids)
    assert_same(exact.search(queries, 10, filter=list(allowed)), *expected("cosine", rows, ids, queries, 10, allowed))


def clustered(count: int, dim: int, alike: int) -> Any:
    """Rows in groups of so many that are alike and lie together: samples of whole blocks would miss most groups."""
    random = np.random.default_rng(4)
    centres = random.standard_normal((-(-count // alike), dim)).repeat(alike, axis=0)[:count]
    return (centres + 0.2 * random.standard_normal((count, dim))).astype(np.float32)


@pytest.mark.parametrize(
    ("metric", "stages", "few"),
    pairwise(METRICS, [[asx.PQ(6, 4)], [asx.PQ(6), asx.Int8()], [asx.Int8(5)], [asx.Prefix(6)], [asx.Binary()]], [1, 40]),
    ids=str,
)
def test_openings_change_no_answer(metric: Any, stages: list[Any], few: int, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds from all rows, from samples, or guessed; with filters that leave samples nothing; margins from none to generous."""
    monkeypatch.setattr("adaptive_search.running.SMALL", few)
    rows = clustered(5_000, 12, 25)
    queries = rows[np.random.default_rng(0).choice(5_000, 12, replace=False)] + np.float32(0.01)
    index = filled(rows, metric, cascade=asx.Cascade([*stages, asx.Full()]), ids=shuffled_ids(5_000))
    *kept, full = prepared(index, backend)
    sparse = np.random.default_rng(1).random(5_000) < 0.02
    own = np.random.default_rng(2).random((12, 5_000)) < np.linspace(0.0005, 0.9, 12)[:, None]
    for margins in (0.0, 2.0):
        models = [replace(stage, model=ErrorModel(0.0, 1.0, 0.3), margins=margins) for stage in kept]
        for allowed in (None, sparse, own):
            counts = np.full(12, 5_000) if allowed is None else np.broadcast_to(allowed.sum(axis=-1), 12)
            k = min(10, int(counts.max()))
            first = run(backend, [*models, full], queries, k, allowed, counts)
            for opening in (*OPENINGS[1:], Opening(7, 300), Opening(spare=5_000)):
                found = run(backend, [*models, full], queries, k, allowed, counts, opening=opening)
                np.testing.assert_array_equal(found.positions, first.positions)
                assert oracles.same_bits(found.scores, first.scores)


def test_a_good_guess_saves_the_second_scan(backend: Backend) -> None:
    """Of rows in no order, with margins that leave less than a list holds: hardly any query is scanned again."""
    rows = np.random.default_rng(0).standard_normal((20_000, 16)).astype(np.float32)
    queries = np.random.default_rng(1).standard_normal((64, 16)).astype(np.float32)
    index = filled(rows, "ip", cascade=asx.Cascade([asx.Int8(), asx.Full()]))
    stage, full = prepared(index, backend)
    models = [PreparedStage(stage.representation, stage.rows, None, ErrorModel(0.0, 1.0, 0.15), 2.0), full]
    counts = np.full(64, 20_000)
    openings = Opening(), Opening(spare=112)
    scored = [run(backend, models, queries, 10, None, counts, opening=opening).scored[0].mean() for opening in openings]
    assert scored[1] < 1.2 * 20_000 < scored[0]


@pytest.mark.parametrize("opening", [one for one in OPENINGS if one.share == 1], ids=str)
def test_small_searches_count_what_others_do(opening: Opening, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that the first stage looks at: of a sample for a guess, once, and once more for some queries."""
    rows = np.random.default_rng(0).standard_normal((5_000, 16)).astype(np.float32)
    queries = np.random.default_rng(1).standard_normal((20, 16)).astype(np.float32)
    index = filled(rows, "ip", cascade=asx.Cascade([asx.Int8(), asx.Full()]))
    stage, full = prepared(index, backend)
    models = [PreparedStage(stage.representation, stage.rows, None, ErrorModel(0.0, 1.0, 0.15), 2.0), full]
    scored = []
    for most in (0, 1_000):
        monkeypatch.setattr("adaptive_search.running.SMALL", most)
        scored.append(run(backend, models, queries, 10, None, np.full(20, 5_000), opening=opening).scored[0])
    once = 5_000 + (5_000 // opening.guess if opening.guess else 0)
    assert set(scored[0]) <= {once, once + 5_000}
    np.testing.assert_array_equal(scored[1], scored[0])


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_scans_of_samples_and_from_floors(metric: Any, backend: Backend) -> None:
    rows = np.random.default_rng(0).standard_normal((9_000, 7)).astype(np.float32)
    queries = np.random.default_rng(1).standard_normal((5, 7)).astype(np.float32)
    index = filled(rows, metric)
    full = prepared(index, backend)[-1]
    level, visits = full.level(backend, queries, True)[0], full.rows.visits

    def found(k: int, **options: Any) -> Any:
        scan = backend.level_scan(level, k, None, **options)
        other = scan.fork()
        scan.run(0, visits // 2)
        other.run(visits // 2, visits)
        scan.merge(other)
        return scan.finish()

    scores, positions = found(9_000)
    # Runs of 64 rows, spread over all blocks, one of five of them.
    some, places = found(9_000, share=5)
    taken = np.sort(places[0][places[0] >= 0])
    assert 0.15 * 9_000 < len(taken) < 0.25 * 9_000
    assert set(np.unique(taken // 64, return_counts=True)[1]) <= {64, 9_000 % 64, 4_096 % 64, 40}
    assert len(np.unique(taken // 4_096)) == 3
    for query in range(5):
        mine = places[query][places[query] >= 0]
        np.testing.assert_array_equal(mine, positions[query][np.isin(positions[query], taken)])
        assert oracles.same_bits(some[query, : len(mine)], scores[query][np.isin(positions[query], taken)])
    # Rows that are as good as the floor are wanted; NaN wants all.
    floors = np.ascontiguousarray(scores[:, 20])
    floors[3] = np.nan
    best, there = found(50, floors=floors)
    for query in range(5):
        width = 50 if query == 3 else 21
        np.testing.assert_array_equal(there[query], np.append(positions[query, :width], np.full(50 - width, -1)))
        assert oracles.same_bits(best[query, :width], scores[query, :width])


def test_codes_in_blocks_may_decide(backend: Backend) -> None:
    """Margins leave every row in, so that the last stage decides alone; without thresholds, and whole as the first does not help."""
    rows, queries = collection(5_000), questions(9)
    index = filled(rows, "ip", cascade=asx.Cascade([asx.Prefix(2), asx.PQ(6)]), ids=shuffled_ids(5_000))
    first, last = prepared(index, backend)[:2]
    counts = np.full(9, 5_000)
    alone = run(backend, [last], queries, 300, None, counts)
    both = [replace(first, model=ErrorModel(0.0, 1.0, 1.0), margins=1e6), last]
    for opening in (Opening(), Opening(share=32)):
        found = run(backend, both, queries, 300, None, counts, opening=opening)
        np.testing.assert_array_equal(found.positions, alone.positions)
        assert oracles.same_bits(found.scores, alone.scores)


@pytest.mark.parametrize("few", [1, 64], ids=["steps", "one call"])
def test_lists_of_rows_that_scans_know_little_of(few: int, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums near the limits of float32, of which scans return more than was asked for: what fills a list is then below its guessed floor."""
    monkeypatch.setattr("adaptive_search.running.SMALL", few)
    rows, queries = (1e19 * np.random.default_rng(seed).standard_normal((n, 7), np.float32) for seed, n in ((2, 4_096), (3, 12)))
    index = filled(rows, "ip", cascade=asx.Cascade([asx.Prefix(4), asx.Full()]))
    first, full = prepared(index, backend)
    stages = [replace(first, model=ErrorModel(0.0, 1.0, 3e18), margins=-1.0), full]
    counts = np.full(12, 4_096)
    first, second = (run(backend, stages, queries, 1_000, None, counts, opening=opening) for opening in (Opening(), Opening(spare=112)))
    np.testing.assert_array_equal(second.positions, first.positions)


@pytest.mark.parametrize("few", [1, 64], ids=["steps", "one call"])
def test_first_keys_of_minus_infinity(few: int, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are the worst there are to the first stage, so that the next one decides among all, not among those that were listed."""
    monkeypatch.setattr("adaptive_search.running.SMALL", few)
    random = np.random.default_rng(0)
    rows, queries = random.standard_normal((300, 5), np.float32), random.standard_normal((4, 5), np.float32)
    rows[:, 0], queries[:, 0] = -1e30, 1e30
    index = filled(rows, "ip", cascade=asx.Cascade([asx.Prefix(1), asx.Binary()]), ids=shuffled_ids(300))
    first, last = prepared(index, backend)[:2]
    counts = np.full(4, 300)
    found = run(backend, [replace(first, model=ErrorModel(0.0, 1.0, 1.0)), last], queries, 10, None, counts)
    np.testing.assert_array_equal(found.positions, run(backend, [last], queries, 10, None, counts).positions)


def test_a_row_of_the_largest_id_on_the_floor_is_wanted(backend: Backend) -> None:
    index = filled(np.arange(9, dtype=np.float32)[:, np.newaxis], "ip", ids=[*range(5), np.iinfo(np.int64).max, 6, 7, 8])
    full, queries = prepared(index, backend)[-1], np.ones((1, 1), np.float32)
    scan = backend.level_scan(full.level(backend, queries, True)[0], 5, None, np.float32([5.0]))
    scan.run(0, full.rows.visits)
    assert scan.finish()[1].tolist() == [[8, 7, 6, 5, -1]]


@pytest.mark.parametrize("few", [1, 64], ids=["steps", "one call"])
def test_groups_of_queries_without_rows(few: int, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptive_search.running.SMALL", few)
    index = filled(collection(300), "ip", cascade=asx.Cascade([asx.Prefix(5), asx.Full()]))
    first, full = prepared(index, backend)
    stages = [replace(first, model=ErrorModel(0.0, 1.0, 1.0)), full]
    allowed = np.zeros((2, 300), np.bool_)
    for opening in OPENINGS:
        found = run(backend, stages, questions(2), 3, allowed, np.zeros(2, np.int64), opening=opening)
        assert (found.positions == -1).all()
        assert np.isnan(found.scores).all()


@pytest.mark.parametrize("few", [1, 64], ids=["steps", "one call"])
@pytest.mark.parametrize("stages", [[asx.Binary(), asx.Full()], [asx.Prefix(2), asx.Prefix(4)]], ids=str)
@pytest.mark.parametrize("scale", [1e-25, 10])
def test_queries_whose_length_is_beyond_float32(
    scale: float, stages: list[Any], few: int, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounds say nothing then; nor do values, infinite or not known, which do not tell rows apart. The last stage decides."""
    monkeypatch.setattr("adaptive_search.running.SMALL", few)
    rows = np.float32(scale) * np.random.default_rng(0).standard_normal((300, 6), np.float32)
    queries = np.float32(3e38) * np.sign(np.random.default_rng(1).standard_normal((4, 6), np.float32))
    index = filled(rows, "ip", cascade=asx.Cascade(stages))
    first, last = prepared(index, backend)[:2]
    counts = np.full(4, 300)
    alone = run(backend, [last], queries, 5, None, counts)
    for opening in (*OPENINGS, Opening(spare=300)):
        found = run(backend, [replace(first, model=ErrorModel(0.0, 1.0, 1.0)), last], queries, 5, None, counts, opening=opening)
        np.testing.assert_array_equal(found.positions, alone.positions)
