"""K-means with far more means than a codebook has, such as the centroids of inverted lists.

It begins with points that are far apart, and goes on with Lloyd's rounds. Points are shared out among threads, and every nearest
centroid is a canonical answer, so that the same seed gives the same centroids on every backend and on any number of threads.
"""

from __future__ import annotations

import numpy as np

from ..backends import current
from ..execution import Progress, part_of, run_ranges
from ..types import F32, I32
from . import kmeans

BATCHES = 32
"""In which points that are far apart are picked; those of a batch know nothing of each other."""


def clustered(points: F32, count: int, rounds: int, seed: int, progress: Progress | None = None) -> F32:
    """``count`` centroids of points (n, D), after so many rounds, at least one."""
    centroids, nearest = far_apart(points, count, seed, part_of(progress, 0, rounds))
    kmeans.move(points, nearest[:, 0], centroids)
    for done in range(1, rounds):
        before = nearest.copy()
        kmeans.assign(points, centroids, nearest, progress=part_of(progress, done, rounds))
        if np.array_equal(before, nearest):
            break
        kmeans.move(points, nearest[:, 0], centroids)
    return centroids


def far_apart(points: F32, count: int, seed: int, progress: Progress | None = None) -> tuple[F32, I32]:
    """``count`` of the points (n, D), in rising order of when they were picked: each with a probability in proportion to the square of
    its distance from the nearest one of the batches before (k-means||, Bahmani et al. 2012). If there are no more distinct points, the
    last one is repeated. And the number of the nearest of them for every point (n, 1).

    Clusters of any size then have one from the start, where evenly picked points leave one in three without.
    """
    backend, rng = current(), np.random.default_rng(seed)
    squares = np.full(len(points), float(np.finfo(np.float32).max) ** 2)  # what is farther counts as much
    nearest, number = np.zeros((len(points), 1), np.int32), np.empty((len(points), 1), np.int32)
    distances = np.empty(len(points), np.float32)
    batch = np.ascontiguousarray(points[rng.choice(len(points), min(len(points), -(-count // BATCHES)), replace=False)])
    chosen, done = [batch], 0

    def work(first: int, last: int) -> None:
        own = number[first:last]
        backend.pq_assign(points[first:last], batch[np.newaxis], own)
        with np.errstate(over="ignore"):
            away = points[first:last] - batch[own[:, 0]]
        backend.dense_norms("float32", [away], distances[first:last])
        mine = distances[first:last].astype(np.float64) ** 2
        closer = mine < squares[first:last] if done else np.ones(last - first, np.bool_)
        nearest[first:last][closer] = own[closer] + done
        np.minimum(squares[first:last], mine, out=squares[first:last])

    while True:
        run_ranges(work, len(points), grain=kmeans.grain(batch))
        done += len(batch)
        if progress is not None:
            progress(done, count)
        left = count - done
        if not left:
            return np.ascontiguousarray(np.concatenate(chosen)), nearest
        together = squares.cumsum()
        wanted = min(left, -(-count // BATCHES))
        # One in every stretch of the same weight: none twice but for a point that weighs more than that.
        places = np.searchsorted(together, (np.arange(wanted) + rng.random(wanted)) * (together[-1] / wanted), side="right")
        places = np.unique(places[places < len(points)])
        if together[-1] == 0.0 or not len(places):
            batch = np.repeat(batch[-1:], left, axis=0)
        else:
            batch = np.ascontiguousarray(points[places])
        chosen.append(batch)
