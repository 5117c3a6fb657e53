"""Lists are learned: points far apart, centroids, their order and codes."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lists_cases import DIM, STAGES, as_if_tuned, asked, collection, expected, pairs, tuned

import adaptive_search as asx
from adaptive_search import execution
from adaptive_search.backends.protocol import Backend
from adaptive_search.quantizers import clustering, kmeans
from adaptive_search.quantizers.clustering import clustered, far_apart
from adaptive_search.representations import lists


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
