"""Principal directions: orthonormal, the best of their number, and of use where first dims are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import adaptive_search as asx
from adaptive_search.backends import current
from adaptive_search.rotations import principal_directions, rotated


@pytest.mark.parametrize(("rows", "dim"), [(1, 1), (3, 7), (500, 33), (40, 127), (900, 65)])
def test_directions_are_orthonormal_and_hold_the_most(rows: int, dim: int) -> None:
    random = np.random.default_rng(dim)
    sample = (random.standard_normal((rows, dim)) @ random.standard_normal((dim, dim))).astype(np.float32)
    sample[:, dim // 2] = 0  # a dim that says nothing
    for dims in {1, (dim + 1) // 2, dim}:
        directions = principal_directions(sample, dims)
        assert directions.shape == (dims, dim)
        np.testing.assert_allclose(directions @ directions.T, np.eye(dims), atol=1e-5)
        best = np.square(np.linalg.svd(sample.astype(np.float64), compute_uv=False))[:dims].sum()
        np.testing.assert_allclose(np.square(sample @ directions.T).sum(), best, rtol=1e-4)


def test_sums_beyond_float32_stay_finite(backend: Any) -> None:
    vectors = np.full((2, 4), 3e38, np.float32)
    found = rotated(current(), vectors, np.array([[1, 1, 1, 1], [1, 1, -1, -1]], np.float32) / 2)
    assert np.isfinite(found).all()


def test_few_rotated_dims_find_what_few_dims_do_not(backend: Any) -> None:
    random = np.random.default_rng(0)
    deviation = 1 / np.sqrt(1 + np.arange(64) / 2)
    basis = np.linalg.qr(random.standard_normal((64, 64)))[0]
    rows, queries = ((random.standard_normal((count, 64)) * deviation @ basis).astype(np.float32) for count in (3_000, 40))
    exact = asx.top_k(queries, rows, 10, metric="cosine").ids
    shares = []
    for stage in (asx.Int8(16, keep=100), asx.Int8(16, keep=100, rotation="pca")):
        index = asx.Index(64, cascade=asx.Cascade([stage, asx.Full()]))
        index.add(rows)
        found = index.search(queries).ids
        shares.append((found[:, :, None] == exact[:, None, :]).any(axis=1).mean())
    assert shares[1] > 0.9 > 0.75 > shares[0]
