"""The rotation of optimized product quantization, learned together with the codebooks.

(T. Ge, K. He, Q. Ke and J. Sun, "Optimized product quantization for approximate nearest neighbor search", CVPR 2013.) Rounds alternate
between the rotation that brings the points nearest to what their codes stand for, an orthogonal Procrustes problem, and a step of k-means
in every subspace. They begin with principal directions, dealt out so that all subspaces have much the same product of variances, which is
the best there is for normally distributed points; or with no rotation, where that errs less.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..arrays import ranges
from ..backends import current
from ..execution import Progress
from ..rotations import principal_directions, procrustes, rotated
from ..types import F32, F64, I32
from . import kmeans

ROUNDS = 30
LEAST_GAIN = 1e-4
"""Rounds end early when one takes less than this part off the error."""

BLOCK_ROWS = 8_192
"""Points that are compared with what their codes stand for at a time."""


class _Fit(NamedTuple):
    """A rotation, codebooks for its coordinates, and the sum of squared errors."""

    rotation: F32
    codebooks: F32
    error: float


def train(
    points: F32,
    subspaces: int,
    codewords: int,
    iterations: int,
    seed: int,
    threads: int | None = None,
    progress: Progress | None = None,
    rotation_rows: int | None = None,
) -> tuple[F32, F32]:
    """A rotation (D, D), whose rows are the directions of the new coordinates, and codebooks (M, K, ceil(D / M)) in these.

    The rotation is learned from at most ``rotation_rows`` of the points, evenly thinned. On the points (n, D) the error is no larger than
    that of `kmeans.train` without rotation.
    """
    step = -(-len(points) // (rotation_rows or len(points)))
    some = points if step == 1 else np.ascontiguousarray(points[::step])
    none = np.eye(points.shape[1], dtype=np.float32)
    starts = [_trained(some, rotation, subspaces, codewords, iterations, seed, threads) for rotation in (none, _allocated(some, subspaces))]
    # Of equals, the first.
    start = min(starts, key=lambda fit: fit.error)
    rotation, codebooks = _alternated(some, start, threads, progress)
    turned = rotated(current(), points, rotation)
    kmeans.settle(turned, codebooks, iterations, threads)
    ends = (
        [_trained(points, one.rotation, subspaces, codewords, iterations, seed, threads) for one in starts]
        if some is not points
        else starts
    )
    best = min(*ends, _Fit(rotation, codebooks, _error(points, turned, codebooks)), key=lambda fit: fit.error)
    return best.rotation, best.codebooks


def _trained(points: F32, rotation: F32, subspaces: int, codewords: int, iterations: int, seed: int, threads: int | None) -> _Fit:
    turned = rotated(current(), points, rotation)
    codebooks = kmeans.train(turned, subspaces, codewords, iterations, seed, threads)
    return _Fit(rotation, codebooks, _error(points, turned, codebooks))


def _alternated(points: F32, start: _Fit, threads: int | None, progress: Progress | None) -> tuple[F32, F32]:
    """Rounds of a rotation and a step of k-means, from a start that stays as it is."""
    rotation, codebooks = start.rotation, start.codebooks.copy()
    turned = rotated(current(), points, rotation)
    nearest = _nearest(turned, codebooks)
    error, products = _compared(points, turned, codebooks, nearest)
    for done in range(1, ROUNDS + 1):
        if not np.isfinite(products).all():
            break
        rotation = procrustes(products)
        turned = rotated(current(), points, rotation)
        kmeans.improve(turned, codebooks, nearest, threads)
        before = error
        error, products = _compared(points, turned, codebooks, nearest)
        if progress is not None:
            progress(done, ROUNDS)
        if not error < (1.0 - LEAST_GAIN) * before:
            break
    return rotation, codebooks


def _compared(points: F32, turned: F32, codebooks: F32, nearest: I32) -> tuple[float, F64]:
    """The sum of squared errors of turned points, and the products (D, D) of decoded points with points."""
    error, products = 0.0, np.zeros((points.shape[1], points.shape[1]))
    with np.errstate(over="ignore", invalid="ignore"):
        for first, last in ranges(len(points), BLOCK_ROWS):
            decoded = kmeans.decoded(codebooks, nearest[first:last], points.shape[1])
            products += decoded.T @ points[first:last]
            error += float(np.square(turned[first:last] - decoded, dtype=np.float64).sum())
    return error, products


def _error(points: F32, turned: F32, codebooks: F32) -> float:
    return _compared(points, turned, codebooks, _nearest(turned, codebooks))[0]


def _nearest(turned: F32, codebooks: F32) -> I32:
    nearest = np.empty((len(turned), len(codebooks)), np.int32)
    current().pq_assign(turned, codebooks, nearest)
    return nearest


def _allocated(points: F32, subspaces: int) -> F32:
    """Principal directions (D, D), those of each subspace together: the one of the largest variance left goes to the subspace with the
    smallest product of variances that has room."""
    dim = points.shape[1]
    directions = principal_directions(points, dim)
    variances = np.var(rotated(current(), points, directions), axis=0, dtype=np.float64)
    # Directions that hardly vary count as nothing, whichever subspace they are in.
    logs = np.log(np.maximum(variances / max(variances.max(), 1e-300), 1e-9)) - np.log(1e-9)
    width = -(-dim // subspaces)
    room = np.clip(dim - width * np.arange(subspaces), 0, width)
    members: list[list[int]] = [[] for _ in range(subspaces)]
    filled = np.zeros(subspaces)
    for direction in np.argsort(-logs, kind="stable").tolist():
        chosen = int(np.where([len(own) < most for own, most in zip(members, room, strict=True)], filled, np.inf).argmin())
        members[chosen].append(direction)
        filled[chosen] += logs[direction]
    return directions[[direction for own in members for direction in own]]
