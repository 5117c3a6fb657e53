"""Rotations that put what tells most into the first dims."""

from __future__ import annotations

import numpy as np

from .backends.protocol import Backend
from .types import F32, F64

LEAST_ROWS = 16_384
"""Rows that directions are learned from, at most; or 8 for every dim, if that is more."""


def principal_directions(sample: F32, dims: int) -> F32:
    """The first principal directions (dims, D) of rows (n, D), uncentred, as orthonormal rows; the largest entry of each is positive.

    Inner products of all directions are those of the vectors; those of the first hold the most that so many dims can hold, on average.

    Examples
    --------
    >>> principal_directions(np.array([[0.0, 2.0], [1.0, 0.0]], np.float32), 1).tolist()
    [[0.0, 1.0]]
    """
    most = max(LEAST_ROWS, 8 * sample.shape[1])
    some = sample[:: -(-len(sample) // most)].astype(np.float64)
    # Eigenvalues rise; directions of none are there as well, so that there are as many as dims.
    directions = np.linalg.eigh(some.T @ some)[1].T[::-1][:dims]
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    return np.ascontiguousarray(directions * np.where(largest < 0, -1.0, 1.0), dtype=np.float32)


def procrustes(products: F64) -> F32:
    """The orthogonal matrix (D, D) that brings points nearest to others, given the products (D, D) of the others with the points: others
    transposed times points, (n, D) each. (P. Schönemann, "A generalized solution of the orthogonal Procrustes problem", 1966.)

    Examples
    --------
    >>> points = np.array([[1.0, 0.0], [0.0, 2.0]])
    >>> others = np.array([[0.0, 1.1], [-1.9, 0.0]])
    >>> (points @ procrustes(others.T @ points).T).tolist()
    [[0.0, 1.0], [-2.0, 0.0]]
    """
    left, _, right = np.linalg.svd(products)
    return np.ascontiguousarray(left @ right, np.float32)


def is_orthogonal(matrix: F32) -> bool:
    """Whether the rows of a matrix are orthonormal, up to much less than codes lose: a square one then keeps inner products.

    Examples
    --------
    >>> is_orthogonal(np.eye(3, dtype=np.float32)[:2]), is_orthogonal(np.ones((2, 2), np.float32))
    (True, False)
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.abs(matrix @ matrix.T - np.eye(len(matrix))).max() <= 1e-3)


def mapped(backend: Backend, vectors: F32, directions: F32) -> F32:
    """Products (n, dims) of vectors (n, D) with directions, the same bits on every backend."""
    out = np.empty((len(vectors), len(directions)), np.float32)
    backend.dense_map(np.ascontiguousarray(vectors), directions, out)
    return out


def rotated(backend: Backend, vectors: F32, directions: F32) -> F32:
    """The same, finite also where sums are not."""
    out = mapped(backend, vectors, directions)
    return out if np.isfinite(out).all() else np.nan_to_num(out, copy=False)
