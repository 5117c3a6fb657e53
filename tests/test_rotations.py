"""Principal directions: orthonormal, the best of their number, and of use where first dims are not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import adaptive_search as asx
from adaptive_search.backends import current
from adaptive_search.representations.coordinates import Coordinates
from adaptive_search.rotations import principal_directions, rotated
from adaptive_search.types import F32


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


def found_share(index: asx.Index, rows: F32, queries: F32) -> float:
    """Of the true ten, once the index has the rows."""
    index.add(rows)
    exact = asx.top_k(queries, rows, 10, metric="cosine").ids
    return float((index.search(queries).ids[:, :, None] == exact[:, None, :]).any(axis=1).mean())


def test_trained_directions_find_more_than_principal_ones() -> None:
    """The most variance is that of four dims which take two values each, alike for nearest neighbours and all others of a cluster."""
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.standard_normal((24, 24)))[0]
    loud = 2.0 * random.choice([-1.0, 1.0], (3_000, 4))
    rows = (np.concatenate([loud, random.standard_normal((3_000, 8)), 0.1 * random.standard_normal((3_000, 12))], axis=1) @ basis).astype(
        np.float32
    )
    queries = rows[:200] + 0.05 * random.standard_normal((200, 24)).astype(np.float32)
    shares = []
    for rotation in ("pca", "learned"):
        index = asx.Index(24, cascade=asx.Cascade([asx.Int8(4, keep=60, rotation=rotation), asx.Full()]), fit_rows=3_000)
        shares.append(found_share(index, rows, queries))
    assert shares[1] > shares[0] + 0.1


@pytest.mark.parametrize(("stage", "gain"), [(asx.PQ(16, 4, keep=50), 0.2), (asx.PQ(8, keep=50), 0.1), (asx.Int8(keep=10), 0.02)], ids=str)
def test_random_rotations_share_out_what_few_dims_say(stage: Any, gain: float) -> None:
    random = np.random.default_rng(0)
    deviation = 1 / np.sqrt(1 + np.arange(64))
    rows, queries = ((random.standard_normal((count, 64)) * deviation).astype(np.float32) for count in (3_000, 200))
    shares = []
    for rotation in (None, "random"):
        index = asx.Index(64, cascade=asx.Cascade([replace(stage, rotation=rotation), asx.Full()]), fit_rows=3_000)
        shares.append(found_share(index, rows, queries))
    assert shares[1] > shares[0] + gain


@pytest.mark.parametrize("dims", [1, 9, 33])
@pytest.mark.parametrize("rotation", ["pca", "learned", "random"])
@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_coordinates_are_along_orthonormal_directions(metric: Any, rotation: Any, dims: int) -> None:
    rows = np.random.default_rng(0).standard_normal((150, 33)).astype(np.float32)
    coordinates = Coordinates(metric, 33, dims, rotation)
    assert not coordinates.fitted
    fitted = coordinates.fit(rows)
    directions = fitted.state()["directions"]
    assert directions.flags.c_contiguous
    np.testing.assert_allclose(directions @ directions.T, np.eye(dims), atol=1e-4)
    again, rest = coordinates.restore({**fitted.state(), "more": rows})
    assert list(rest) == ["more"]
    np.testing.assert_array_equal(again.of(current(), rows), fitted.of(current(), rows))
    if metric != "cosine":
        np.testing.assert_allclose(fitted.of(current(), rows), rows @ directions.T, atol=1e-4)
