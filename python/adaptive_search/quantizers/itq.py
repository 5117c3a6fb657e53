"""The directions of iterative quantization (ITQ), whose signs tell the most of rows.

(Y. Gong and S. Lazebnik, "Iterative quantization: a Procrustean approach to learning binary codes", CVPR 2011.) Rounds alternate between
the signs of all coordinates and the rotation that brings the coordinates nearest to their signs, an orthogonal Procrustes problem. They
begin with the principal directions; beginning with a random rotation of them ends no better (docs/architecture.md).
"""

from __future__ import annotations

import numpy as np

from ..arrays import ranges
from ..backends import current
from ..execution import Progress, run_ranges
from ..rotations import principal_directions, procrustes, rotated
from ..types import F32, F64

ROUNDS = 30
LEAST_GAIN = 1e-4
"""Rounds end early when one adds less than this part to the products of coordinates and signs."""

BLOCK_ROWS = 8_192
"""Points whose signs are taken at a time."""

MOST_ROWS = 65_536
LEAST_ROWS_PER_BIT = 8
ROUND_WORK = 20_000_000_000
"""Multiplications with a rotation in one round, a second or less."""


def rows_wanted(bits: int) -> int:
    """Rows that directions are learned from, at most."""
    return min(MOST_ROWS, max(LEAST_ROWS_PER_BIT * bits, ROUND_WORK // bits**2))


def train(points: F32, bits: int, progress: Progress | None = None) -> F32:
    """Orthonormal directions (bits, D) for points (n, D) around 0.

    Examples
    --------
    Four heaps of points, which the signs of the given dims do not tell apart:

    >>> heaps = np.float32([[1, 0.1], [-1, -0.1], [0.1, -1], [-0.1, 1]]).repeat(5, axis=0)
    >>> bool(np.abs(heaps[::5] @ train(heaps, 2).T).min() > 0.6)
    True
    """
    principal = principal_directions(points, bits)
    coordinates = np.empty((len(points), bits), np.float32)

    def work(first: int, last: int) -> None:
        coordinates[first:last] = rotated(current(), points[first:last], principal)

    run_ranges(work, len(points), grain=256)
    rotation = np.eye(bits, dtype=np.float32)
    before, products = _compared(coordinates, rotation)
    for done in range(1, ROUNDS + 1):
        if not np.isfinite(products).all():
            break
        rotation = procrustes(products)
        reached, products = _compared(coordinates, rotation)
        if progress is not None:
            progress(done, ROUNDS)
        if not reached > (1.0 + LEAST_GAIN) * before:
            break
        before = reached
    return np.ascontiguousarray(rotation.astype(np.float64) @ principal, np.float32)


def _compared(coordinates: F32, rotation: F32) -> tuple[float, F64]:
    """The sum of products of rotated coordinates and their signs, and the products (bits, bits) of signs with coordinates."""
    products = np.zeros(rotation.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        for first, last in ranges(len(coordinates), BLOCK_ROWS):
            part = coordinates[first:last]
            # NumPy's products are no less the same on every backend than its singular values, and several times as fast as canonical ones.
            products += np.copysign(np.float32(1), part @ rotation.T).T @ part
        return float((rotation * products).sum()), products
