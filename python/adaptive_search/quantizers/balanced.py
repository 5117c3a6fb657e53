"""Codewords that are used more nearly alike.

To assign points to codewords so that each codeword gets as many, at the least total distance, is an optimal-transport problem. With an
entropy term it is solved by scaling rows and columns in turn (R. Sinkhorn, "Diagonal equivalence to matrices with prescribed row and
column sums", 1967; M. Cuturi, "Sinkhorn distances", 2013); as a way to train codebooks of product quantization: J. Zhan et al.,
"Learning discrete representations via constrained clustering for effective and efficient dense retrieval" (RepCONC), 2022. Only
training balances: rows are encoded by their nearest codewords.
"""

from __future__ import annotations

import numpy as np

from ..execution import Progress, run_ranges
from ..types import F32, I64
from . import kmeans

ROUNDS = 5
"""Of balanced assignment and new means, after those of k-means."""

SCALINGS = 15
"""Of rows and columns in a round: most of the imbalance is gone then."""

FARTHEST = 60.0
"""Distances are cut off there, in units of the softness: float32 holds their exponentials, and sums of them."""

SOFTNESS = 0.25
"""Of the mean squared distance to the nearest codeword: differences of distances far below count as none."""

POINTS_PER_CODEWORD = 64
"""As many points as are enough to balance their codewords; all points would take four times as long."""


def train(points: F32, codebooks: F32, threads: int | None = None, progress: Progress | None = None) -> None:
    """Move codewords (M, K, ceil(D / M)), trained by k-means on points (n, D), so that they are used more nearly alike, in place.

    Every codeword is the nearest to some point afterwards, as after `kmeans.train`.
    """
    step = max(1, len(points) // (POINTS_PER_CODEWORD * codebooks.shape[1]))
    some, width = np.ascontiguousarray(points[::step]), codebooks.shape[2]

    def work(first: int, last: int) -> None:
        for m in range(first, last):
            part = some[:, m * width : (m + 1) * width]
            if part.shape[1]:
                for _ in range(ROUNDS):
                    chosen = balanced(part, codebooks[m, :, : part.shape[1]]).astype(np.int32)
                    kmeans.move(part, chosen, codebooks[m], fill=False)

    run_ranges(work, len(codebooks), threads=threads, progress=progress)
    kmeans.settle(points, codebooks, 0, threads)


def balanced(points: F32, codewords: F32) -> I64:
    """The codeword (n,) of every point (n, d) where all K codewords (K, d) get more nearly as many than if each point took its nearest.

    Examples
    --------
    Nearest, they would be five and one:

    >>> points = np.float32([[0.0], [0.2], [0.4], [0.6], [0.8], [1.4]])
    >>> balanced(points, np.float32([[0.5], [1.5]])).tolist()
    [0, 0, 0, 0, 1, 1]
    """
    x, c = points.astype(np.float64), codewords.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.square(x).sum(axis=1)[:, None] - 2.0 * (x @ c.T) + np.square(c).sum(axis=1)
    nearest = squares.min(axis=1, keepdims=True)
    scale = SOFTNESS * float(np.maximum(nearest, 0.0).mean())
    if not 0.0 < scale < np.inf:
        # All points are codewords, or beyond what distances can tell.
        chosen: I64 = squares.argmin(axis=1)
        return chosen
    affinity = np.exp(np.maximum((nearest - squares) / scale, -FARTHEST)).astype(np.float32)
    own, prices = np.ones(len(x), np.float32), np.ones(len(c), np.float32)
    for _ in range(SCALINGS):
        prices = np.float32(len(x) / len(c)) / (own @ affinity)
        own = np.float32(1) / (affinity @ prices)
    best: I64 = (affinity * prices).argmax(axis=1)
    return best
