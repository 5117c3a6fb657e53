"""Codes for inner products, whose errors along a row count more than those across it.

Queries that score high point more or less along the row, so that an error along it changes the scores that matter most. The loss of a row
x and its decoded y is |x - y|^2 + (w - 1) <x - y, x / |x|>^2 for a weight w. (R. Guo et al., "Accelerating large-scale inference with
anisotropic vector quantization", ICML 2020.) The second part ties subspaces together: codes are chosen by coordinate descent from the
nearest codewords, and codewords solve the normal equations of least squares, by conjugate gradients.
"""

from __future__ import annotations

import numpy as np

from ..backends import current
from ..execution import Progress, run_ranges
from ..types import F32, F64, I32
from . import kmeans

SWEEPS = 2
"""Times that every code of a row is chosen anew."""

ROUNDS = 4
STEPS = 8
"""Of conjugate gradients in a round."""

REPAIRS = 10
"""Rounds of moving unused codewords in the end. One may be left where there are hardly more distinct points than codewords."""

GRAIN = 256

POINTS_OF_A_CODEWORD = 1_024
"""Points that codewords are moved by, at most: with 16 codewords 16,384 of 50,000 found no fewer neighbors, in a third of the time."""


def assign(vectors: F32, codebooks: F32, weight: float, nearest: I32) -> None:
    """Codewords (n, M) of vectors (n, D): the nearest ones, then those that lower the loss. Rows that are zero or beyond float32 stay with
    the nearest."""
    backend, vectors = current(), np.ascontiguousarray(vectors)
    backend.pq_assign(vectors, codebooks, nearest)
    units, lengths = np.empty_like(vectors), np.empty(len(vectors), np.float32)
    backend.dense_unit(vectors, units)
    backend.dense_norms("float32", [vectors], lengths)
    backend.pq_descend(units, lengths, codebooks, weight - 1.0, SWEEPS, nearest)


def train(points: F32, codebooks: F32, weight: float, threads: int | None = None, progress: Progress | None = None) -> None:
    """Codebooks that lower the loss of points (n, D), in place; they begin as those of `kmeans`."""
    points = np.ascontiguousarray(points[:: -(-len(points) // (POINTS_OF_A_CODEWORD * codebooks.shape[1]))])
    nearest = np.empty((len(points), len(codebooks)), np.int32)

    def choose() -> None:
        def work(first: int, last: int) -> None:
            assign(points[first:last], codebooks, weight, nearest[first:last])

        run_ranges(work, len(points), threads=threads, grain=GRAIN)

    lengths = np.sqrt(np.square(points, dtype=np.float64).sum(axis=1))
    scale = np.divide(1.0, lengths, out=np.zeros(len(points)), where=lengths > 0)
    units = np.empty(points.shape[::-1], np.float32)
    for d, column in enumerate(points.T):
        units[d] = column * scale
    choose()
    for done in range(1, ROUNDS + 1):
        moved = _solved(units, lengths, codebooks, nearest, weight - 1.0)
        if not np.isfinite(moved).all():
            break
        codebooks[:] = moved
        choose()
        if progress is not None:
            progress(done, ROUNDS)
    for _ in range(REPAIRS):
        if not kmeans.fill_unused(points, codebooks, nearest):
            break
        choose()


def _solved(units: F32, lengths: F64, codebooks: F32, nearest: I32, extra: float) -> F32:
    """Codebooks of the least loss for given codes, nearly. Points are columns of ``units`` (D, n) times lengths."""
    _, codewords, width = codebooks.shape
    chosen = np.ascontiguousarray(nearest.T, np.intp)
    counts = np.stack([np.bincount(codes, minlength=codewords) for codes in chosen])[:, :, np.newaxis].astype(np.float64)

    def sums(weights: F64) -> F64:
        """Of the weighted units that have the same codeword, laid out as codebooks."""
        found = np.zeros(codebooks.shape)
        for d, column in enumerate(units):
            m, place = divmod(d, width)
            found[m, :, place] = np.bincount(chosen[m], weights * column, codewords)
        return found

    def applied(books: F64) -> F64:
        """The normal matrix times codebooks: they are summed, and what decoded points have along the points so many times more."""
        along = np.zeros(len(lengths))
        for d, column in enumerate(units):
            m, place = divmod(d, width)
            along += books[m, :, place][chosen[m]] * column
        return counts * books + extra * sums(along)

    found: F64 = codebooks.astype(np.float64)
    residual = (1.0 + extra) * sums(lengths) - applied(found)
    direction = residual / np.maximum(counts, 1.0)
    size = float((residual * direction).sum())
    for _ in range(STEPS):
        if not size > 0:
            break
        changed = applied(direction)
        step = size / float((direction * changed).sum())
        found += step * direction
        residual -= step * changed
        scaled = residual / np.maximum(counts, 1.0)
        before, size = size, float((residual * scaled).sum())
        direction = scaled + size / before * direction
    with np.errstate(over="ignore"):
        return found.astype(np.float32)
