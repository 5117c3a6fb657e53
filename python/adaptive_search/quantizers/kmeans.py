"""K-means in every subspace of a product quantizer.

Lloyd's algorithm from randomly picked distinct points. Assignments are canonical, and means are summed in float64 in the order of
the points, so that the same seed gives the same codebooks on every backend and on any number of threads.
"""

from __future__ import annotations

import numpy as np

from ..backends import current
from ..backends.protocol import Backend
from ..execution import Progress, run_ranges
from ..types import F32, I32, I64, Array

MAX_REPAIRS = 100
"""Rounds of moving unused codewords after the last iteration. Each lowers the error, and few are ever needed."""


def train(
    points: F32,
    subspaces: int,
    codewords: int,
    iterations: int,
    seed: int,
    threads: int | None = None,
    progress: Progress | None = None,
) -> F32:
    """Codebooks (M, K, ceil(D / M)) for points (n, D); where a subspace ends beyond D, the rest is 0.

    Every codeword is the nearest to some point, unless a subspace has no more distinct points than codewords: then each of them is
    a codeword, and the last one is repeated.
    """
    rng = np.random.default_rng(seed)
    width = -(-points.shape[1] // subspaces)
    codebooks = np.zeros((subspaces, codewords, width), np.float32)
    parts = [points[:, m * width : (m + 1) * width] for m in range(subspaces)]
    moving = []
    for m, part in enumerate(parts):
        start = _distinct(part, codewords, rng)
        codebooks[m, : len(start), : part.shape[1]] = start
        if len(start) == codewords:
            moving.append(m)
        else:
            codebooks[m, len(start) :] = codebooks[m, len(start) - 1]
    backend = current()

    def work(first: int, last: int) -> None:
        for m in moving[first:last]:
            _settle(backend, np.ascontiguousarray(parts[m]), codebooks[m], iterations)

    run_ranges(work, len(moving), threads=threads, progress=progress)
    return codebooks


def _settle(backend: Backend, part: F32, codebook: F32, iterations: int) -> None:
    """Lloyd's algorithm in one subspace, whose points (n, width) stay in the cache meanwhile."""
    nearest = np.empty((len(part), 1), np.int32)
    columns = np.ascontiguousarray(part.T, np.float64)
    for iteration in range(iterations):
        before = nearest.copy()
        backend.pq_assign(part, codebook[np.newaxis], nearest)
        if iteration and np.array_equal(before, nearest):
            break
        _move(part, columns, nearest[:, 0].astype(np.intp), codebook)
    for _ in range(MAX_REPAIRS):
        backend.pq_assign(part, codebook[np.newaxis], nearest)
        if not _fill_unused(part, nearest[:, 0], codebook):
            break


def _distinct(part: F32, count: int, rng: np.random.Generator) -> F32:
    """Up to ``count`` distinct points in random order; all of them if there are no more than that."""
    order = rng.permutation(len(part))
    # Most often a few points suffice; comparing all of them takes a sort.
    for taken in (min(len(part), 4 * count), len(part)):
        # Adding 0 makes -0 and 0 one point.
        some = part[order[:taken]] + np.float32(0)
        first = np.unique(some, axis=0, return_index=True)[1] if some.shape[1] else np.zeros(1, np.int64)
        if len(first) > count:
            break
    chosen: F32 = some[np.sort(first)[:count]]
    return chosen


def _move(part: F32, columns: Array, nearest: I64, codebook: F32) -> None:
    """Codewords become the means of their points; those without points go to where the error is largest."""
    counts = np.bincount(nearest, minlength=len(codebook))
    used = np.flatnonzero(counts)
    sums = np.stack([np.bincount(nearest, column, len(codebook)) for column in columns], axis=1)
    _fill_unused(part, nearest, codebook)
    codebook[used, : part.shape[1]] = sums[used] / counts[used, np.newaxis]


def _fill_unused(part: F32, nearest: I32 | I64, codebook: F32) -> bool:
    """Move unused codewords onto the distinct points that are farthest from theirs. Returns whether there were any to move."""
    unused = np.flatnonzero(np.bincount(nearest, minlength=len(codebook)) == 0)
    if not len(unused):
        return False
    width = part.shape[1]
    errors = ((part - codebook[nearest, :width]).astype(np.float64) ** 2).sum(axis=1)
    places = _farthest_distinct(part, errors, len(unused))
    codebook[unused[: len(places)], :width] = part[places]
    return len(places) > 0


def _farthest_distinct(part: F32, errors: Array, count: int) -> I64:
    order = np.argsort(-errors, kind="stable")
    order = order[: np.count_nonzero(errors)]
    first = np.unique(part[order] + np.float32(0), axis=0, return_index=True)[1]
    found: I64 = order[np.sort(first)[:count]]
    return found
