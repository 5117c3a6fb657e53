"""Nearest codewords of the same points again and again: what comparing all of them says, however codewords move."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from adaptive_search.backends import backends, get
from adaptive_search.backends.protocol import Assigner, Backend

Array = NDArray[Any]


@pytest.fixture(params=[name for name in backends() if name != "numba"])
def native(request: pytest.FixtureRequest) -> Backend:
    return get(request.param)


def made(native: Backend, points: Array, codewords: int) -> Assigner:
    found = native.pq_assigner(points, codewords)
    assert found is not None
    return found


def nearest_of(points: Array, codebook: Array) -> Array:
    with np.errstate(all="ignore"):
        distances = oracles.canonical_tables(points, codebook[None], True)[:, 0]
    found: Array = np.where(np.isnan(distances), np.inf, distances).argmin(axis=1)
    return found


def check(assigner: Assigner, points: Array, codebook: Array, nearest: Array, cut: int = 1) -> None:
    """Blocks in ``cut`` ranges, the last one first."""
    assigner.move(codebook, nearest)
    nearest[:] = -1
    for part in reversed(np.array_split(np.arange(assigner.blocks), cut)):
        if len(part):
            assigner.assign(int(part[0]), int(part[-1]) + 1, nearest)
    np.testing.assert_array_equal(nearest, nearest_of(points, codebook))


def means(points: Array, nearest: Array, codebook: Array) -> Array:
    """The next codebook of Lloyd's algorithm."""
    sums, counts = np.zeros(codebook.shape), np.bincount(nearest, minlength=len(codebook))
    with np.errstate(all="ignore"):
        np.add.at(sums, nearest, points.astype(np.float64))
        return np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], codebook).astype(np.float32)


def spread(kind: str, n: int, dims: int, rng: np.random.Generator) -> Array:
    points = rng.standard_normal((n, dims))
    if kind == "ties":
        points = rng.integers(-2, 3, (n, dims)).astype(np.float64)
    elif kind == "clusters":
        points = rng.standard_normal((5, dims))[rng.integers(0, 5, n)] + points * 1e-3
    elif kind == "far from the origin":
        points = 1000 + points * 1e-2
    elif kind == "few far away":
        points *= 10.0 ** (8 * (rng.random((n, 1)) < 0.01))
    return points.astype(np.float32)


KINDS = ("normal", "ties", "clusters", "far from the origin", "few far away")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dims", "codewords"), [(16, 256), (4, 16), (7, 77), (33, 250), (1, 40)])
def test_rounds_of_k_means(native: Backend, kind: str, dims: int, codewords: int) -> None:
    rng = np.random.default_rng(dims)
    points = spread(kind, 3000, dims, rng)
    codebook, nearest = points[rng.choice(3000, codewords, replace=False)], np.zeros(3000, np.int32)
    assigner = made(native, points, codewords)
    for done in range(14):
        check(assigner, points, codebook, nearest, cut=1 + done % 3)
        codebook = means(points, nearest, codebook)


@pytest.mark.parametrize("codewords", [1, 2, 3, 5, 8, 9, 17, 63, 64, 65, 129, 255, 256])
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 16, 17, 100])
def test_any_number_of_codewords_and_points(native: Backend, codewords: int, n: int) -> None:
    rng = np.random.default_rng(codewords)
    points, codebook = rng.standard_normal((n, 5)).astype(np.float32), rng.standard_normal((codewords, 5)).astype(np.float32)
    assigner, nearest = made(native, points, codewords), np.zeros(n, np.int32)
    for _ in range(10):
        check(assigner, points, codebook, nearest)
        codebook = codebook + np.float32(0.01) * rng.standard_normal(codebook.shape).astype(np.float32)


@pytest.mark.parametrize("step", [0.0, 1e-7, 1e-3, 10.0])
def test_codewords_that_move_alone(native: Backend, step: float) -> None:
    """Most stay where they are; now and then one jumps among the points, or changes places with another one."""
    rng = np.random.default_rng(3)
    points = rng.standard_normal((2000, 6)).astype(np.float32)
    codebook, nearest = points[:256].copy(), np.zeros(2000, np.int32)
    assigner = made(native, points, 256)
    for done in range(40):
        check(assigner, points, codebook, nearest, cut=4)
        moving = rng.integers(0, 256, 3)
        codebook[moving] += np.float32(step) * rng.standard_normal((3, 6)).astype(np.float32)
        if done % 5 == 4:
            codebook[rng.integers(0, 256)] = points[rng.integers(0, 2000)]
            codebook[[3, 200]] = codebook[[200, 3]]


@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-22, 1e-19, 1e17, 1e18, 1e19, 1e38])
def test_ends_of_the_float_range(native: Backend, scale: float) -> None:
    """And points and codewords that are not finite, which come and go."""
    limit, rng = np.finfo(np.float32).max, np.random.default_rng(4)
    points = np.clip(rng.standard_normal((500, 4)) * scale, -limit, limit).astype(np.float32)
    codebook, nearest = points[:64].copy(), np.zeros(500, np.int32)
    for odd in (False, True):
        if odd:
            points[77, 1], points[78], points[79, 0] = np.nan, np.inf, -np.inf
        assigner = made(native, points, 64)
        for done in range(12):
            check(assigner, points, codebook, nearest)
            codebook = means(points, nearest, codebook) if not odd else codebook * np.float32(1.01)
            if done % 4 == 3:
                codebook[5] = np.nan if done == 3 else points[6]
                codebook[7] = np.float32(1e30) if done == 7 else points[8]


def test_near_ties(native: Backend) -> None:
    """Points halfway between codewords that hardly move: any rounding but the canonical one decides otherwise."""
    rng = np.random.default_rng(5)
    codebook = rng.standard_normal((256, 3)).astype(np.float32)
    pairs = rng.integers(0, 256, (2, 2000))
    points = ((codebook[pairs[0]].astype(np.float64) + codebook[pairs[1]]) / 2).astype(np.float32)
    nearest = np.zeros(2000, np.int32)
    assigner = made(native, points, 256)
    for _ in range(20):
        check(assigner, points, codebook, nearest)
        codebook = np.nextafter(codebook, rng.choice(np.float32([-9, 9]), codebook.shape))


@given(st.data())
def test_any_walk(native: Backend, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n, dims, codewords = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 20)), data.draw(st.integers(1, 256))
    points = spread(data.draw(st.sampled_from(KINDS)), n, dims, rng)
    codebook, nearest = points[rng.integers(0, n, codewords)], np.zeros(n, np.int32)
    assigner = made(native, points, codewords)
    for size in data.draw(st.lists(st.sampled_from([None, 0.0, 1e-6, 1e-2, 1.0]), max_size=12)):
        check(assigner, points, codebook, nearest, cut=data.draw(st.integers(1, 4)))
        if size is None:
            codebook = means(points, nearest, codebook)
        else:
            codebook = codebook + np.float32(size) * rng.standard_normal(codebook.shape).astype(np.float32)


def test_some_have_none(backend: Backend) -> None:
    """More codewords than tags tell apart, and Numba: points then are assigned as any vectors are."""
    assert backend.pq_assigner(np.zeros((300, 2), np.float32), 257) is None
    if backend is get("numba"):
        assert backend.pq_assigner(np.zeros((300, 2), np.float32), 4) is None


def test_what_is_wrong(native: Backend) -> None:
    points, codebook, nearest = np.ones((40, 3), np.float32), np.ones((5, 3), np.float32), np.zeros(40, np.int32)
    for wrong, codewords, error, text in (
        (points.astype(np.float64), 5, TypeError, "points: expected .* float32"),
        (points[:, :2], 5, TypeError, "points: expected a C-contiguous array"),
        (points[0], 5, TypeError, "points: expected .* 2 axes"),
        (points, 0, ValueError, "codewords: expected some"),
    ):
        with pytest.raises(error, match=text):
            native.pq_assigner(wrong, codewords)
    assigner = made(native, points, 5)
    with pytest.raises(ValueError, match="assign: expected a codebook first"):
        assigner.assign(0, 1, nearest)
    assigner.move(codebook, nearest)
    for changed, error, text in (
        ({"codebook": codebook[:4]}, ValueError, "codebook: expected shape"),
        ({"codebook": codebook[:, :2].copy()}, ValueError, "codebook: expected shape"),
        ({"codebook": codebook.astype(np.float64)}, TypeError, "codebook: expected .* float32"),
        ({"nearest": nearest[:39]}, ValueError, "nearest: expected one codeword per point"),
        ({"nearest": nearest + np.int32(5)}, ValueError, "nearest: expected codewords"),
        ({"nearest": nearest - np.int32(1)}, ValueError, "nearest: expected codewords"),
        ({"nearest": nearest.astype(np.int64)}, TypeError, "nearest: expected .* int32"),
    ):
        given_: dict[str, Any] = {"codebook": codebook, "nearest": nearest} | changed
        with pytest.raises(error, match=text):
            assigner.move(**given_)
    fixed = nearest.copy()
    fixed.flags.writeable = False
    for first, last, to, error, text in (
        (-1, 1, nearest, ValueError, "first, last: expected blocks"),
        (1, 0, nearest, ValueError, "first, last: expected blocks"),
        (0, assigner.blocks + 1, nearest, ValueError, "first, last: expected blocks"),
        (0, 1, nearest[:39], ValueError, "nearest: expected one codeword per point"),
        (0, 1, nearest[:, None], TypeError, "nearest: expected .* 1 axes"),
        (0, 1, fixed, ValueError, "nearest: expected a writable array"),
    ):
        with pytest.raises(error, match=text):
            assigner.assign(first, last, to)


@pytest.mark.parametrize("scale", [1.0, 1e17])
@pytest.mark.parametrize("away", [40.0, 156.0])
def test_codewords_close_to_each_other_and_far_from_the_points(native: Backend, away: float, scale: float) -> None:
    """Distances differ by less than the numbers of codewords, in their low bits, change them; or are beyond what float32 can square."""
    rng = np.random.default_rng(5)
    for dims in (5, 16):
        points = rng.standard_normal((120, dims))
        points = (points * (scale * away / np.linalg.norm(points, axis=1, keepdims=True))).astype(np.float32)
        codebook = (0.05 * scale * rng.standard_normal((256, dims))).astype(np.float32)
        assigner, nearest = made(native, points, 256), np.zeros(len(points), np.int32)
        for _ in range(4):
            check(assigner, points, codebook, nearest)
            codebook = (codebook + 1e-4 * scale * rng.standard_normal(codebook.shape)).astype(np.float32)
