"""Directions whose signs are coded, around the mean of the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Self, get_args

import numpy as np

from ..arrays import ranges
from ..backends import current
from ..backends.protocol import DenseChunk
from ..execution import Progress
from ..hadamard import HadamardRotation
from ..rotations import is_orthogonal, rotated
from ..types import F32, F64, I64, U8, Array, Metric
from . import itq
from .base import taken
from .int8 import FLOAT32_MAX

Rotation = Literal["itq", "random", "dims"]

PRODUCT_ERROR, LARGEST_NORM = 1.05 * 2.0**-23, 1e18
"""Times the length of a vector and its dims + 10: what two sums of its product with a direction differ by at most; and the length up to
which none overflows."""

ROWS_AT_ONCE = 1000
"""Products of so many are worked on in the cache."""

ROTATIONS: tuple[Rotation, ...] = get_args(Rotation)


@dataclass(frozen=True, eq=False)
class Directions:
    """What signs are taken of: products of the difference to the mean with orthonormal directions.

    Attributes
    ----------
    kind : {"itq", "random", "dims"}
        How they were found.
    matrix : ndarray of float32, shape (bits, D)
        The directions.
    mean : ndarray of float32, shape (D,)
        Of the rows that they were learned from.
    radius : float
        Distance of these rows from it: the root of the mean square.
    thresholds : ndarray of float32, shape (bits,)
        Products of the mean: a bit is set where the product of a vector is larger.
    """

    kind: Rotation
    matrix: F32
    mean: F32
    radius: float
    thresholds: F32 = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "thresholds", rotated(current(), self.mean[np.newaxis], self.matrix)[0])

    @classmethod
    def learned(cls, kind: Rotation, points: F32, bits: int, seed: int, progress: Progress | None = None) -> Self:
        """Of points (n, D)."""
        mean = points.mean(axis=0, dtype=np.float64).astype(np.float32)
        with np.errstate(over="ignore"):
            centred = np.nan_to_num(points - mean, copy=False)
        if kind == "itq":
            matrix = itq.train(centred, bits, progress)
        elif kind == "dims":
            matrix = np.eye(bits, len(mean), dtype=np.float32)
        else:
            matrix = HadamardRotation(len(mean), seed).back(current(), np.eye(bits, len(mean), dtype=np.float32))
        return cls(kind, matrix, mean, float(np.sqrt(np.square(_norms(centred)).mean())))

    @property
    def length(self) -> float:
        """Of the rows that they were learned from: the root of the mean square."""
        return float(np.hypot(_norms(self.mean[np.newaxis])[0], self.radius))

    def codes(self, vectors: F32) -> U8:
        """Packed bits of vectors (n, D): whether canonical products are above the thresholds.

        Products in any order of summation take half the time or less, and settle all but one bit in several thousand.
        """
        signs = np.empty((len(vectors), len(self.matrix)), bool)
        for first, last in ranges(len(vectors), ROWS_AT_ONCE):
            self._signs(np.ascontiguousarray(vectors[first:last]), signs[first:last])
        return np.packbits(signs, axis=1)

    def _signs(self, vectors: F32, signs: Array) -> None:
        """The bits of `codes` of some rows, not packed."""
        if self.kind == "dims":
            np.greater(vectors[:, : len(self.matrix)], self.thresholds, out=signs)
            return
        backend = current()
        norms, products = np.empty(len(vectors), np.float32), np.empty((len(self.matrix), len(vectors)), np.float32)
        backend.dense_norms("float32", [vectors], norms)
        backend.dense_dot(backend.dense_rows("float32", [DenseChunk((vectors,))]), self.matrix, products, 0, len(vectors))
        with np.errstate(over="ignore", invalid="ignore"):
            products -= self.thresholds[:, np.newaxis]
        np.greater(products.T, 0, out=signs)
        limits = (norms + np.float32(1e-30)) * np.float32((len(self.mean) + 10) * PRODUCT_ERROR)
        # Rows and bits that are vague, by row.
        bits, rows = np.nonzero(np.abs(products, out=products) <= limits)
        order = np.argsort(rows, kind="stable")
        self._settle(vectors, signs, rows[order], bits[order])
        large = ~(norms <= LARGEST_NORM)
        if large.any():
            signs[large] = rotated(backend, vectors[large], self.matrix) > self.thresholds

    def _settle(self, vectors: F32, signs: Array, rows: I64, bits: I64) -> None:
        """Some signs, row by row, by canonical products."""
        if not len(rows):
            return
        own, starts, counts = np.unique(rows, return_index=True, return_counts=True)
        places = np.arange(len(rows)) - np.repeat(starts, counts)
        asked = np.full((len(own), int(counts.max())), -1, np.int64)
        asked[np.repeat(np.arange(len(own)), counts), places] = bits
        directions = current().dense_rows("float32", [DenseChunk((self.matrix,))])
        found, numbers, _ = current().dense_rescore(directions, vectors[own], asked, asked.shape[1], "ip")
        there = numbers >= 0
        settled = np.broadcast_to(own[:, np.newaxis], numbers.shape)[there]
        signs[settled, numbers[there]] = found[there] > self.thresholds[numbers[there]]

    def asked(self, queries: F32, metric: Metric) -> F32:
        """What is coded of queries (Q, D). Their length counts for l2 alone: for inner products they are made as long as rows are, for
        cosine of unit length."""
        if metric == "l2":
            return queries
        unit = np.empty_like(queries)
        current().dense_unit(queries, unit)
        if metric == "ip":
            unit *= np.float32(min(self.length, FLOAT32_MAX))
        return unit

    def line(self, queries: F32, metric: Metric) -> tuple[F64, F64]:
        """Scores of queries (Q, D) are estimated as base + step times the cosine of query and row as seen from the mean: (Q,) each."""
        asked = self.asked(queries, metric)
        lengths, along = _norms(asked), rotated(current(), asked, self.mean[np.newaxis])[:, 0].astype(np.float64)
        squares = np.maximum(lengths**2 - 2.0 * along + _norms(self.mean[np.newaxis]) ** 2, 0.0)
        reach = self.radius * np.sqrt(squares)
        if metric == "l2":
            return squares + self.radius**2, -2.0 * reach
        scale = np.divide(_norms(queries) if metric == "ip" else 1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        return scale * along, scale * reach

    def decoded(self, signs: U8) -> F32:
        """Rows (n, D) of bits (n, bits): the mean, and from there the radius along the signs."""
        size = np.float32(self.radius / np.sqrt(len(self.matrix)))
        with np.errstate(over="ignore"):
            rows: F32 = rotated(current(), np.where(signs, size, -size), np.ascontiguousarray(self.matrix.T)) + self.mean
        np.nan_to_num(rows, copy=False)
        return rows

    def state(self) -> dict[str, Array]:
        kind = np.array([ROTATIONS.index(self.kind)], np.int64)
        return {"rotation": kind, "directions": self.matrix, "mean": self.mean, "radius": np.array([self.radius])}

    @classmethod
    def of_state(cls, state: Mapping[str, Array], bits: int, dim: int) -> Self:
        """What `state` gave; a `ValueError` if it cannot be that."""
        kind, radius = taken(state, "rotation", np.int64, 1), taken(state, "radius", np.float64, 1)
        matrix, mean = taken(state, "directions", np.float32, 2), taken(state, "mean", np.float32, 1)
        if len(kind) != 1 or not 0 <= kind[0] < len(ROTATIONS):
            raise ValueError(f"state: expected 'rotation' to be one number below {len(ROTATIONS)}, got {kind[:4].tolist()}")
        if len(radius) != 1 or not 0 <= radius[0] < np.inf:
            raise ValueError(f"state: expected 'radius' to be one number from 0 up, got {radius[:4].tolist()}")
        if mean.shape != (dim,) or not np.isfinite(mean).all():
            raise ValueError(f"state: expected 'mean' to be {dim} finite numbers")
        if matrix.shape != (bits, dim) or not is_orthogonal(matrix):
            raise ValueError(f"state: expected 'directions' to be {bits} orthonormal rows of {dim} dims")
        if ROTATIONS[kind[0]] == "dims" and not np.array_equal(matrix, np.eye(bits, dim)):
            raise ValueError("state: expected 'directions' to be those of the dims")
        return cls(ROTATIONS[kind[0]], np.array(matrix, order="C"), mean.copy(), float(radius[0]))


def _norms(vectors: F32) -> F64:
    """Of vectors (n, D), finite also where float32 holds none so large."""
    out = np.empty(len(vectors), np.float32)
    current().dense_norms("float32", [vectors], out)
    return np.minimum(out.astype(np.float64), FLOAT32_MAX)
