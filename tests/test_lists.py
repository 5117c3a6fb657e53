"""Inverted lists: what is found is a function of the stages' bounds, whichever lists are looked at, and in which order."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from index_cases import way_of
from pairwise import pairwise

import adaptive_search as asx
from adaptive_search import execution
from adaptive_search.backends.protocol import Backend, Bound, CodeChunk
from adaptive_search.calibration import Calibration
from adaptive_search.layout import Slabs
from adaptive_search.margins import ErrorModel
from adaptive_search.quantizers import clustering, kmeans
from adaptive_search.quantizers.clustering import clustered, far_apart
from adaptive_search.representations import linked, lists
from adaptive_search.running import Opening
from adaptive_search.storage import NewSegment, read_state, write_state

DIM = 16
STAGES: list[list[Any]] = [
    [asx.Lists(13), asx.PQ(4, 4), asx.Int8()],
    [asx.Lists(5), asx.PQ(6, 4, dims=9, rotation="pca")],
    [asx.Lists(40), asx.PQ(3, 8)],
    [asx.Lists(9), asx.PQ(4, 4, rotation="opq"), asx.Int8()],
]


def collection(count: int, seed: int = 0) -> Any:
    """In clumps, some of which are equal, with a zero row."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((24, DIM))[random.integers(0, 24, count)] + 0.4 * random.standard_normal((count, DIM))
    rows[random.integers(0, count, count // 5)] = rows[random.integers(0, count, count // 5)]
    rows[count // 2] = 0
    return rows.astype(np.float32)


def asked(count: int, seed: int = 1) -> Any:
    queries = collection(count, 0) + 0.3 * np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    queries[-1] = 0
    queries[-2] *= 40
    return queries


def tuned(metric: Any, stages: Sequence[Any], rows: Any, margins: float, dtype: Any = "float32") -> asx.Index:
    """As if tuned, with errors that leave some rows, and some lists, to the stages that follow."""
    index = asx.Index(DIM, metric, dtype, cascade=asx.Cascade([*stages, asx.Full()]), fit_rows=len(rows))
    index.add(rows, np.random.default_rng(5).permutation(3 * len(rows))[: len(rows)])
    return as_if_tuned(index, margins)


def as_if_tuned(index: asx.Index, margins: float) -> asx.Index:
    scale = {"cosine": 0.15, "ip": 0.6, "l2": 1.5}[index.metric]
    models = (*(ErrorModel(0.01, 0.9, scale) for _ in index.plan.stages[:-1]), None)
    index._tuned = Calibration(0.9, 10, models, Opening(), (margins,), (0.0,), 100, True, 1.0)
    return index


def expected(index: asx.Index, backend: Backend, queries: Any, k: int, allowed: Any) -> list[list[tuple[int, float]]]:
    """Ids and scores of the k rows of the best (value, score, smallest id), in the order of scores: a value is the least of the score and
    of all upper bounds. Every row is looked at."""
    stages = way_of(index, backend).stages
    count = index._store.total
    everything = np.tile(np.arange(count), (len(queries), 1))
    values = np.full((len(queries), count), np.inf)
    for stage in stages:
        raw, rows = stage.representation.rescore(backend, stage.rows, queries, everything, count)
        keys = np.take_along_axis(raw, np.argsort(rows, axis=1), axis=1).astype(np.float64)
        if not stage.representation.largest:
            keys = -keys
        if stage.adaptive:
            uppers = stage.bounding(stage.representation.units(backend, queries)).of(keys)
            values = np.minimum(values, np.where(np.isnan(uppers), np.inf, uppers))
    values = np.minimum(values, keys)
    ids = index._store.ids
    found = []
    for value, score, may in zip(values, keys, np.broadcast_to(allowed, values.shape), strict=True):
        order = np.lexsort((ids, -score, -value))
        best = order[may[order]][:k]
        best = best[np.lexsort((ids[best], -score[best]))]
        sign = -1.0 if index.metric == "l2" else 1.0
        found.append([(int(ids[row]), float(np.float32(sign * score[row]) + np.float32(0))) for row in best])
    return found


def pairs(found: asx.Neighbors) -> list[list[tuple[int, float]]]:
    there = zip(found.ids, found.scores, strict=True)
    return [[(int(i), float(s)) for i, s in zip(ids, scores, strict=True) if i >= 0] for ids, scores in there]


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


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_rows_added_later_and_files(dtype: Any, backend: Backend, tmp_path: Path) -> None:
    rows = collection(1_500)
    if dtype == "int8":
        rows = np.clip(30 * rows, -127, 127).astype(np.int8)
    index = tuned("cosine", STAGES[3], rows[:1_000], 0.5, dtype)
    queries = asked(8)
    before = expected(index, backend, queries, 10, True)
    assert pairs(index.search(queries, 10)) == before
    index.save(tmp_path / "index")
    index.add(rows[1_000:1_003])  # a chunk of its own, as files are not added to
    index.add(rows[1_003:])
    assert len(index._store.chunks) == 2
    wanted = expected(index, backend, queries, 10, True)
    assert wanted != before
    assert pairs(index.search(queries, 10)) == wanted
    index.save(tmp_path / "index")
    for mmap in (True, False):
        assert pairs(asx.Index.open(tmp_path / "index", mmap=mmap).search(queries, 10)) == wanted


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("number", [13, 65_535])
def test_a_file_that_names_lists_that_are_not_there(number: int, mmap: bool, tmp_path: Path) -> None:
    tuned("ip", STAGES[0], collection(500), 1.0).save(tmp_path)
    state = read_state(tmp_path)
    arrays = dict(state.segments[0].arrays)
    name = next(name for name in arrays if name.endswith(".list"))
    arrays[name] = arrays[name].copy()
    arrays[name][77] = number
    write_state(tmp_path, [NewSegment(arrays, state.segments[0].rows)], aux=state.aux, meta=state.meta)
    with pytest.raises(asx.IndexFormatError, match="not below 13"):
        asx.Index.open(tmp_path, mmap=mmap)


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


def test_centroids_are_coded_once(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not anew for every row that comes: with many lists that takes much longer than a search."""
    coded, learned = [], asx.ProductQuantizer.nearest_codes
    monkeypatch.setattr(asx.ProductQuantizer, "nearest_codes", lambda *arguments: coded.append(1) or learned(*arguments))
    index = tuned("cosine", STAGES[0], collection(500), 1.0)
    for seed in (1, 2, 3):
        index.add(collection(3, seed))
        as_if_tuned(index, 1.0)
        assert pairs(index.search(asked(4), 10)) == expected(index, backend, asked(4), 10, True)
    assert len(coded) == 1


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


@pytest.mark.parametrize("lists", [13, 200, 3_000])
def test_codes_are_held_twice(lists: int, backend: Backend) -> None:
    stages = [asx.Lists(lists), *STAGES[0][1:]]
    with_lists, without = (tuned("ip", some, collection(500), 1.0) for some in (stages, stages[1:]))
    # Its number, its place, and two bytes of codes for every place of the blocks that the lists take.
    sizes = np.bincount(with_lists._store.used("stage.0.list")[0])
    held = 2 * 64 * int((-(-sizes // 64)).sum()) / 500
    assert with_lists.plan.bytes_per_row - without.plan.bytes_per_row - 2 - 4 == pytest.approx(held, rel=0.3)


@pytest.mark.parametrize(
    "stages",
    [
        [asx.Lists(4)],
        [asx.Lists(4), asx.Full()],
        [asx.Lists(4), asx.PQ(4)],
        [asx.Lists(4), asx.PQ(4, keep=10)],
        [asx.Lists(4), asx.Int8(), asx.Full()],
        [asx.Int8(), asx.Lists(4), asx.PQ(4), asx.Full()],
        [asx.Lists(4), asx.Lists(4), asx.PQ(4), asx.Full()],
    ],
    ids=str,
)
def test_lists_come_before_codes_and_nowhere_else(stages: Any) -> None:
    with pytest.raises(ValueError, match="Lists only first, before a PQ without keep that is not the last"):
        asx.Cascade(stages)


@pytest.mark.parametrize("lists", [0, 1, 65_537, -3])
def test_a_number_of_lists_that_cannot_be(lists: int) -> None:
    with pytest.raises(ValueError, match="lists: expected"):
        asx.Lists(lists)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("8",), TypeError, "lists"),
        ((8.5,), TypeError, "lists"),
        ((None,), TypeError, "lists"),
    ],
    ids=str,
)
def test_bad_arguments_of_lists(arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        asx.Index(DIM, "ip", cascade=asx.Cascade([asx.Lists(*arguments), asx.PQ(4), asx.Full()]))


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"centroids": np.zeros((3, DIM), np.float32)},
        {"centroids": np.zeros((4, DIM), np.float64)},
        {"centroids": np.zeros((4, DIM - 1), np.float32)},
        {"centroids": np.full((4, DIM), np.nan, np.float32)},
    ],
    ids=str,
)
def test_a_state_that_cannot_be_is_refused(state: Any) -> None:
    lists, _ = linked(stage.bind(Slabs(DIM, "float32", ()), "ip", "x") for stage in (asx.Lists(4), asx.PQ(4)))
    with pytest.raises(ValueError, match="state: expected centroids"):
        lists.restore(state)
    with pytest.raises(TypeError, match="lists go before codes"):
        lists.before(lists)


def coded(backend: Backend, count: int, subspaces: int = 2) -> Any:
    """Rows whose codes, of 8 bits, are 0, 1, 2 and so on."""
    packed = np.zeros((-(-count // 64), subspaces, 64), np.uint8)
    packed[:] = np.arange(len(packed) * 64).reshape(len(packed), 1, 64)
    return backend.pq_rows([CodeChunk(packed, count)], subspaces, 8)


def test_backends_check_what_they_are_given(backend: Backend) -> None:
    numbers = np.array([0, 2, 1, 2], np.uint16)
    with pytest.raises(ValueError, match="lists: expected numbers below"):
        backend.list_rows([numbers], coded(backend, 2))
    with pytest.raises((TypeError, AttributeError)):
        backend.list_rows([[0, 2, 1]], coded(backend, 3))  # type: ignore[list-item]
    if backend.name == "numba":
        return
    rows, codes = backend.list_rows([numbers], coded(backend, 3)), coded(backend, 4)
    with pytest.raises(ValueError, match="centroids: expected codes"):
        backend.list_rows([numbers], rows)
    with pytest.raises(ValueError, match="centroids: expected 1 to 65,536"):
        backend.list_rows([numbers], coded(backend, 0))
    assert backend.listing(rows, codes) is not None
    with pytest.raises(ValueError, match="rows: expected those of lists"):
        backend.listing(codes, codes)
    with pytest.raises(ValueError, match="codes: expected those of product"):
        backend.listing(rows, rows)
    others = coded(backend, 5)
    with pytest.raises(ValueError, match="rows: expected the same chunks"):
        backend.listing(rows, others)
    with pytest.raises(ValueError, match="tables: expected"):
        backend.list_rescore(rows, np.zeros((2, 4, 256), np.float32), np.zeros((2, 1), np.int64), 1, True)


def test_a_listing_goes_with_its_own_codes(backend: Backend) -> None:
    """Codes of another width would be read beyond their end."""
    rows = backend.list_rows([np.array([0, 2, 1, 2], np.uint16)], coded(backend, 3))
    small, large = coded(backend, 4), coded(backend, 4, 30)
    listing = backend.listing(rows, small)
    if listing is None:
        return
    bound = Bound(0.0, 1.0)
    lists, judge = (
        backend.list_level(rows, np.zeros((1, 2, 256), np.float32), True, bound),
        backend.pq_level(small, np.zeros((1, 2, 256), np.float32), True, bound),
    )
    for codes, m in ((small, 2), (large, 30)):
        levels = [backend.pq_level(codes, np.zeros((1, m, 256), np.float32), True, bound), lists]
        if codes is small:
            assert backend.listed_top_k(listing, levels, judge, 4, None, 0, 1)[1].tolist() == [[0, 1, 2, 3]]
            with pytest.raises(ValueError, match="k: expected at least one"):
                backend.listed_top_k(listing, levels, judge, 0, None, 0, 1)
            with pytest.raises(ValueError, match="first: expected queries"):
                backend.listed_top_k(listing, levels, judge, 4, None, 0, 2)
        else:
            with pytest.raises(ValueError, match="expected the codes of the listing, then its lists"):
                backend.listed_top_k(listing, levels, judge, 4, None, 0, 1)


@pytest.mark.parametrize(("subspaces", "bits"), [(30, 8), (2, 4)], ids=str)
def test_centroids_are_coded_as_rows_are(subspaces: int, bits: int, backend: Backend) -> None:
    """Their keys are looked up in the tables of the rows' codes, which would be read beyond their end."""
    packed = np.zeros((1, subspaces if bits == 8 else subspaces // 2, 64), np.uint8)
    centroids = backend.pq_rows([CodeChunk(packed, 3)], subspaces, bits)
    rows, codes = backend.list_rows([np.array([0, 2, 1, 2], np.uint16)], centroids), coded(backend, 4)
    if backend.name == "numba":
        return
    with pytest.raises(ValueError, match="codes: expected the subspaces and bits of the centroids"):
        backend.listing(rows, codes)


def test_equal_keys_go_to_the_smaller_id_and_rows_count_once(backend: Backend) -> None:
    numbers, ids = [np.array([1, 0, 1, 0], np.uint16), np.array([2], np.uint16)], np.array([9, 8, 7, 6, 5])
    rows = backend.list_rows(numbers, coded(backend, 3), ids)
    tables = np.zeros((2, 2, 256), np.float32)
    tables[0, 1, :3] = 1.0, 2.0, 0.5
    candidates = np.array([[0, 1, 2, -1, 2, 4], [3, 2, 1, 0, 4, 4]])
    scores, found = backend.list_rescore(rows, tables, candidates, 5, True)
    assert found.tolist() == [[2, 0, 1, 4, -1], [4, 3, 2, 1, 0]]
    assert scores[0, :4].tolist() == [2.0, 2.0, 1.0, 0.5]
    assert np.isnan(scores[0, 4])
    scores, found = backend.list_rescore(rows, tables, candidates, 5, False)
    assert found.tolist() == [[4, 1, 2, 0, -1], [4, 3, 2, 1, 0]]
    assert scores[0, :4].tolist() == [0.5, 1.0, 2.0, 2.0]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("lists", [1, 31, 33, 64, 97, 4_200])
def test_lists_are_as_good_as_their_centroids(lists: int, whole: bool, bits: int, backend: Backend) -> None:
    """Whether keys are looked up for rows, or made for all lists at once: one row of each list, its number as its only code."""
    random = np.random.default_rng(lists)
    numbers = random.permutation(lists).astype(np.uint16)
    packed = random.integers(0, 256, (-(-lists // 64), 5 if bits == 8 else 3, 64), np.uint8)
    centroids = backend.pq_rows([CodeChunk(packed, lists)], 5, bits)
    rows = backend.list_rows([numbers], centroids)
    codes = backend.pq_rows([CodeChunk(np.zeros_like(packed), lists)], 5, bits)
    tables = random.integers(0, 63, (3, 5, 1 << bits)).astype(np.float32)
    if not whole:
        tables += random.standard_normal(tables.shape, np.float32)
    everything = np.tile(np.arange(lists), (3, 1))
    scores, found = backend.list_rescore(rows, tables, everything, lists, True)
    of_centroids, best = backend.pq_rescore(centroids, tables, everything, lists, True)
    assert np.array_equal(scores, of_centroids)
    np.testing.assert_array_equal(np.sort(numbers[found], axis=1), np.sort(best, axis=1))
    listing = backend.listing(rows, codes)
    if listing is None:
        return
    # All codes are alike, and lists decide: their keys are the scores of what the search finds.
    flat = backend.pq_level(codes, tables, True, Bound(1e9, 1.0))
    levels = [flat, backend.list_level(rows, tables, True, Bound(0.0, 1.0))]
    k = min(lists, 7)
    judge = backend.list_level(rows, tables, True, Bound(0.0, 1.0))
    got, _, _, left = backend.listed_top_k(listing, levels, judge, k, None, 0, 3)
    assert not left.any()
    assert np.array_equal(got, scores[:, :k])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("subspaces", [1, 8, 17, 33, 64, 97])
def test_lists_of_any_length_with_codes_of_any_width(subspaces: int, whole: bool, bits: int, backend: Backend) -> None:
    """Rows are those of their list's centroid but for some entries; keys are scores, and lists bound them too low for some rows."""
    random = np.random.default_rng(subspaces)
    lengths = np.array([0, 1, 2, 63, 64, 65, 127, 128, 129, 192, 193, 500])
    numbers = random.permutation(np.repeat(np.arange(len(lengths)), lengths)).astype(np.uint16)
    of_lists = random.integers(0, 1 << bits, (len(lengths), subspaces), np.uint8)
    of_rows = np.where(random.random((len(numbers), subspaces)) < 0.2, random.integers(0, 1 << bits, (1, subspaces)), of_lists[numbers])

    def stored(codes: Any) -> Any:
        by_rows = np.pad(codes.astype(np.uint8), ((0, -len(codes) % 64), (0, subspaces % 2 if bits == 4 else 0)))
        if bits == 4:
            by_rows = by_rows[:, ::2] | by_rows[:, 1::2] << 4
        packed = np.ascontiguousarray(by_rows.reshape(-1, 64, by_rows.shape[1]).transpose(0, 2, 1))
        return backend.pq_rows([CodeChunk(packed, len(codes))], subspaces, bits)

    rows, codes = backend.list_rows([numbers], stored(of_lists)), stored(of_rows)
    listing = backend.listing(rows, codes)
    if listing is None:
        return
    tables = random.integers(0, 64, (5, subspaces, 1 << bits)).astype(np.float32)
    if not whole:
        tables += random.standard_normal(tables.shape, np.float32)
    everything = np.tile(np.arange(len(numbers)), (5, 1))

    def scores_of(found: Any) -> Any:
        return np.take_along_axis(found[0], np.argsort(found[1], axis=1), axis=1).astype(np.float64)

    for largest in (True, False):
        sign = 1.0 if largest else -1.0
        scores = sign * scores_of(backend.pq_rescore(codes, tables, everything, len(numbers), largest))
        bounds = sign * scores_of(backend.list_rescore(rows, tables, everything, len(numbers), largest)) + 3.0 * subspaces**0.5
        values = np.minimum(scores, bounds)
        levels = [
            backend.pq_level(codes, tables, largest, Bound(0.0, 1.0)),
            backend.list_level(rows, tables, largest, Bound(3.0 * subspaces**0.5, 1.0)),
        ]
        got, found, _, left = backend.listed_top_k(listing, levels, levels[0], 9, None, 0, 5)
        assert not left.all()
        for query in np.flatnonzero(~left):
            best = np.lexsort((np.arange(len(numbers)), -scores[query], -values[query]))[:9]
            best = best[np.lexsort((best, -scores[query, best]))]
            assert found[query].tolist() == best.tolist()
            assert (sign * got[query]).tolist() == scores[query, best].tolist()


def test_points_far_apart(backend: Backend) -> None:
    random = np.random.default_rng(0)
    clumps = 100.0 * random.standard_normal((40, 6))
    points = (clumps[random.integers(0, 40, 4_000)] + 0.01 * random.standard_normal((4_000, 6))).astype(np.float32)
    with asx.use_backend(backend.name):
        chosen, numbers = far_apart(points, 80, 3)
    assert chosen.shape == (80, 6)
    assert len(np.unique(chosen, axis=0)) == 80
    assert {tuple(point) for point in chosen} <= {tuple(point) for point in points}
    # Of 80 that were picked evenly about five clumps in forty would have none.
    nearest = np.square(clumps[:, None] - chosen[None].astype(np.float64)).sum(axis=2).min(axis=1)
    assert nearest.max() < 1.0
    # It knows what every point is nearest to, of all batches.
    squares = np.square(points[:, None] - chosen[None].astype(np.float64)).sum(axis=2)
    assert numbers.max() > 40
    np.testing.assert_allclose(squares[np.arange(len(points)), numbers[:, 0]], squares.min(axis=1), rtol=1e-5, atol=1e-10)
    with asx.use_backend(asx.backends()[0]):
        again, same = far_apart(points, 80, 3)
    np.testing.assert_array_equal(again, chosen)
    np.testing.assert_array_equal(same, numbers)


def noted(backend: Backend, calls: list[tuple[int, int]], seconds: float = 0.0) -> Any:
    """The backend, as far as lists are learned with it, noting of every call that assigns points how many are under way with it, and its
    products."""
    lock, running = threading.Lock(), [0]

    def assign(vectors: Any, codebooks: Any, out: Any) -> None:
        with lock:
            running[0] += 1
            calls.append((running[0], len(vectors) * codebooks[0].size))
        time.sleep(seconds)
        backend.pq_assign(vectors, codebooks, out)
        with lock:
            running[0] -= 1

    return SimpleNamespace(pq_assign=assign, dense_norms=backend.dense_norms, centroid_sums=backend.centroid_sums)


def test_lists_are_learned_in_steps_that_can_be_interrupted(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of no more products than are made in a fraction of a second, and of the same answers."""
    points, lists = collection(900), 40
    at_once = clustered(points, lists, 3, 0)
    most, calls = 250 * lists * DIM, list[tuple[int, int]]()
    monkeypatch.setattr(kmeans, "MOST_AT_ONCE", most)
    monkeypatch.setattr(execution, "RANGE_SECONDS", 0.0)  # no range grows beyond the first
    for module in (kmeans, clustering):
        monkeypatch.setattr(module, "current", lambda: noted(backend, calls))
    np.testing.assert_array_equal(clustered(points, lists, 3, 0), at_once)
    assert max(products for _, products in calls) == most


def test_lists_are_learned_on_all_threads(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """And are the same on any number of them."""
    points, lists, calls = collection(600), 33, list[tuple[int, int]]()
    alone = clustered(points, lists, 3, 0)
    watched = noted(backend, calls, 0.002)
    monkeypatch.setattr(kmeans, "GRAIN", 50)
    for module in (kmeans, clustering):
        monkeypatch.setattr(module, "current", lambda: watched)
    before = asx.get_threads()
    try:
        for threads in (1, 3):
            calls.clear()
            asx.set_threads(threads)
            np.testing.assert_array_equal(clustered(points, lists, 3, 0), alone)
            together = max(running for running, _ in calls)
            assert together <= threads
            assert (together > 1) == (threads > 1)
    finally:
        asx.set_threads(before)


def test_learning_lists_reports_how_far_it_is() -> None:
    reports = list[tuple[int, int]]()
    clustered(collection(700), 40, 4, 0, progress=lambda done, total: reports.append((done, total)))
    done, totals = zip(*reports, strict=True)
    assert len(set(totals)) == 1
    assert list(done) == sorted(done)
    assert len(set(done)) > 20  # batches, then rounds
    assert 0.7 * totals[0] < done[-1] <= totals[0]


@pytest.mark.parametrize("size", [1e-15, 1e25, 2e37])
def test_lists_of_rows_whose_products_are_too_large(size: float) -> None:
    """All lists are learned, and nothing is said of overflows."""
    rows = (size * collection(500).clip(-3, 3)).astype(np.float32)
    if size > 1e30:
        rows[:2] = 0
        rows[:2, 0] = 3e38, -3e38  # farther from each other than float32 can tell
    index = tuned("ip", [asx.Lists(30), asx.PQ(4, 4)], rows, 1.0)
    assert len(np.unique(index._parts[0].state()["centroids"], axis=0)) == 30
    assert len(np.unique(index._store.used("stage.0.list")[0])) == 30


def test_lists_are_numbered_along_a_chain() -> None:
    """Each is the nearest, of those that come later, to the one before."""
    centroids = np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32)
    chain = lists._chained(centroids).astype(np.float64)
    np.testing.assert_array_equal(np.unique(chain, axis=0), np.unique(centroids, axis=0))
    assert np.square(chain[0]).sum() == np.square(chain).sum(axis=1).min()
    for number in range(59):
        distances = np.square(chain[number + 1 :] - chain[number]).sum(axis=1)
        assert distances[0] == distances.min()


@pytest.mark.parametrize(("distinct", "count"), [(1, 5), (3, 70), (50, 50), (2, 2)])
def test_no_more_points_than_there_are(distinct: int, count: int) -> None:
    points = np.repeat(np.random.default_rng(1).standard_normal((distinct, 4), np.float32), 20, axis=0)
    chosen, _ = far_apart(points, count, 0)
    assert chosen.shape == (count, 4)
    assert len(np.unique(chosen, axis=0)) == min(distinct, count)


def test_a_listing_is_kept_part_by_part(backend: Backend) -> None:
    """Chunks that come, change and go: what was kept of the listing before tells nothing else than one made anew."""
    if not backend.passes_by:
        pytest.skip("has no listings")
    random = np.random.default_rng(8)
    packed = random.integers(0, 256, (1, 2, 64), np.uint8)
    centroids = backend.pq_rows([CodeChunk(packed, 20)], 2, 8)
    tables = random.integers(0, 63, (5, 2, 256)).astype(np.float32)

    def chunk(rows: int) -> tuple[CodeChunk, Any]:
        return CodeChunk(random.integers(0, 256, (2, 2, 64), np.uint8), rows), random.integers(0, 20, rows).astype(np.uint16)

    chunks = [chunk(70)]
    before = None
    for step in range(14):
        if step == 9:
            chunks[2] = chunk(90)
        elif step == 11:
            del chunks[0]
        else:
            chunks.append(chunk(65 + step))
        codes = backend.pq_rows([codes for codes, _ in chunks], 2, 8)
        rows = backend.list_rows([numbers for _, numbers in chunks], centroids)
        levels = [backend.pq_level(codes, tables, True, Bound(20.0, 1.0)), backend.list_level(rows, tables, True, Bound(125.0, 1.0))]
        judge = backend.pq_level(codes, tables, True, Bound(0.0, 1.0))
        listing, anew = backend.listing(rows, codes, before), backend.listing(rows, codes)
        assert listing is not None
        assert anew is not None
        kept, fresh = (backend.listed_top_k(one, levels, judge, 9, None, 0, 5) for one in (listing, anew))
        for one, other in zip(kept, fresh, strict=True):
            np.testing.assert_array_equal(one, other)
        everything = np.tile(np.arange(len(codes)), (5, 1))
        np.testing.assert_array_equal(kept[1], backend.pq_rescore(codes, tables, everything, 9, True)[1])
        before = listing
