"""K-means in every subspace of a product quantizer.

Lloyd's algorithm from randomly picked distinct points. Assignments are canonical, and means are summed in float64 in the order of
the points, so that the same seed gives the same codebooks on every backend and on any number of threads.
"""

from __future__ import annotations

import numpy as np

from ..arrays import ranges
from ..backends import current
from ..execution import Progress, run_ranges
from ..types import F32, I32, I64, Array

GRAIN = 2_048
"""Points that are assigned at a time, at least if that is short enough: of fewer, making codewords ready shows."""

MOST_AT_ONCE = 1 << 31
"""Products of points and codewords in the first call of the backend, at most: about a tenth of a second."""

LEAST_ROUNDS = 5
"""Of an assigner: before, it takes as long as to compare every point with every codeword."""

MOST_APART = 64
"""Of an assigner: times the median distance from their center, that a point may be away from it."""

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
    codebooks = np.zeros((subspaces, codewords, -(-points.shape[1] // subspaces)), np.float32)
    for codebook, part in zip(codebooks, _parts(points, codebooks), strict=True):
        start = _distinct(part, codewords, rng)
        codebook[: len(start), : part.shape[1]] = start
        codebook[len(start) :] = codebook[len(start) - 1]
    settle(points, codebooks, iterations, threads, progress)
    return codebooks


def settle(points: F32, codebooks: F32, iterations: int, threads: int | None = None, progress: Progress | None = None) -> None:
    """Move the codewords of all subspaces in place, for at most so many rounds, until none moves and every one is used."""
    parts = _parts(points, codebooks)

    def work(first: int, last: int) -> None:
        for part, codebook in zip(parts[first:last], codebooks[first:last], strict=True):
            if part.shape[1]:
                _settle(np.ascontiguousarray(part), codebook, iterations, threads if len(parts) == 1 else 1)

    run_ranges(work, len(parts), threads=threads, progress=progress)


def improve(points: F32, codebooks: F32, nearest: I32, threads: int | None = None) -> None:
    """One round in place: codewords become the means of their points, whose codewords in ``nearest`` (n, M) then are chosen anew."""
    backend, parts = current(), _parts(points, codebooks)

    def work(first: int, last: int) -> None:
        for m in range(first, last):
            if parts[m].shape[1]:
                part, chosen = np.ascontiguousarray(parts[m]), np.empty((len(points), 1), np.int32)
                move(part, np.ascontiguousarray(nearest[:, m]), codebooks[m])
                backend.pq_assign(part, codebooks[m : m + 1], chosen)
                nearest[:, m] = chosen[:, 0]

    run_ranges(work, len(parts), threads=threads)


def assign(points: F32, codebook: F32, nearest: I32, threads: int | None = None, progress: Progress | None = None) -> None:
    """The nearest codewords of one subspace into ``nearest`` (n, 1)."""
    backend = current()

    def work(first: int, last: int) -> None:
        backend.pq_assign(points[first:last], codebook[np.newaxis], nearest[first:last])

    run_ranges(work, len(points), threads=threads, grain=grain(codebook), progress=progress)


def grain(codebook: F32) -> int:
    """How many points are assigned at a time at first; then what takes a twentieth of a second."""
    return max(1, min(GRAIN, MOST_AT_ONCE // max(codebook.size, 1)))


def move(part: F32, nearest: I32, codebook: F32, fill: bool = True) -> None:
    """Codewords become the means of their points, ``nearest`` (n,). Those without points go to where the error is largest, unless
    ``fill`` says that they stay where they are."""
    sums, counts = np.empty((len(codebook), part.shape[1])), np.empty(len(codebook), np.int64)
    current().centroid_sums(part, nearest, sums, counts)
    used = np.flatnonzero(counts)
    if fill and len(used) < len(codebook):
        _fill_unused(part, nearest, codebook)
    codebook[used, : part.shape[1]] = sums[used] / counts[used, np.newaxis]


def fill_unused(points: F32, codebooks: F32, nearest: I32) -> bool:
    """Move codewords that no point has onto those that are farthest from theirs. Returns whether there were any to move."""
    parts = enumerate(_parts(points, codebooks))
    moved = [_fill_unused(part, nearest[:, m], codebooks[m]) for m, part in parts if part.shape[1]]
    return any(moved)


def decoded(codebooks: Array, nearest: Array, dim: int) -> Array:
    """The points (n, dim) that codeword numbers (n, M) stand for."""
    return codebooks[np.arange(len(codebooks)), nearest].reshape(len(nearest), -1)[:, :dim]


def _parts(points: F32, codebooks: F32) -> list[F32]:
    """Views of the points in every subspace."""
    subspaces, _, width = codebooks.shape
    return [points[:, m * width : (m + 1) * width] for m in range(subspaces)]


def _settle(part: F32, codebook: F32, iterations: int, threads: int | None) -> None:
    """Lloyd's algorithm in one subspace, whose points (n, width) stay in the cache meanwhile."""
    nearest = np.zeros((len(part), 1), np.int32)
    # Whatever pads the codewords counts, and what an assigner learns pays off from a few rounds on.
    several = iterations >= LEAST_ROUNDS and part.shape[1] == codebook.shape[1]
    assigner = current().pq_assigner(part, len(codebook)) if several and _alike(part) else None

    def choose() -> None:
        if assigner is None:
            assign(part, codebook, nearest, threads)
            return
        assigner.move(codebook, nearest[:, 0])
        at_once = max(1, grain(codebook) * assigner.blocks // len(part))
        run_ranges(lambda first, last: assigner.assign(first, last, nearest[:, 0]), assigner.blocks, threads=threads, grain=at_once)

    for iteration in range(iterations):
        before = nearest.copy()
        choose()
        if iteration and np.array_equal(before, nearest):
            break
        move(part, nearest[:, 0], codebook)
    for _ in range(MAX_REPAIRS):
        choose()
        if not _fill_unused(part, nearest[:, 0], codebook):
            break


def _alike(part: F32) -> bool:
    """Whether no point is so far from the others that the rounding errors of its distances, which bounds of an assigner allow for, hide
    theirs."""
    center = part.mean(axis=0, dtype=np.float64)
    squares = [((part[first:last] - center) ** 2).sum(axis=1) for first, last in ranges(len(part), GRAIN)]
    square = np.concatenate(squares) if squares else np.zeros(1)
    return bool(0.0 < square.max() < min(MOST_APART**2 * float(np.median(square)), 1e36))


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


def _fill_unused(part: F32, nearest: I32, codebook: F32) -> bool:
    """Move unused codewords onto the distinct points that are farthest from theirs. Returns whether there were any to move."""
    unused = np.flatnonzero(np.bincount(nearest, minlength=len(codebook)) == 0)
    if not len(unused):
        return False
    width = part.shape[1]
    with np.errstate(over="ignore"):
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
