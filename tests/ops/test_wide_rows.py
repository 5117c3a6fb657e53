"""Batches over rows that are a part of wider ones: large batches scan a copy of each block, whatever lies beside the rows."""

from __future__ import annotations

from typing import Any

import awkward
import numpy as np
import oracles
import pytest
from numpy.typing import NDArray

from adaptive_search.backends.protocol import Backend, DenseChunk
from adaptive_search.types import METRICS, Metric

Array = NDArray[Any]

QUERIES = 140
"""More than four passes of any target."""


def part_of_wider(rows: Array, times: int) -> Array:
    """The first columns of an array of NaN that is so many times as wide, without what would come after the last row."""
    n, dims = rows.shape
    flat = np.full((n - 1) * times * dims + dims, np.nan, np.float32)
    step = times * dims * flat.itemsize
    placed = np.lib.stride_tricks.as_strided(awkward.before_forbidden_page(flat), (n, dims), (step, flat.itemsize), writeable=True)
    placed[...] = rows
    return placed


def made(n: int, dims: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(dims)
    return rng.standard_normal((n, dims), np.float32), rng.standard_normal((QUERIES, dims), np.float32)


@pytest.mark.parametrize("times", [2, 5])
@pytest.mark.parametrize("dims", [3, 64, 130])
@pytest.mark.parametrize("metric", METRICS)
def test_neighbours_do_not_matter(backend: Backend, metric: Metric, dims: int, times: int) -> None:
    """The same bits as of rows by themselves, asked for by few queries; the second chunk lies backwards in memory."""
    rows, queries = made(2000, dims)
    rows[7] = rows[1500]
    allowed = np.random.default_rng(1).random(len(rows)) < 0.8
    alone = backend.dense_rows("float32", [DenseChunk((rows,))])
    backwards = part_of_wider(rows[:900:-1], times)[::-1]
    wide = backend.dense_rows("float32", [DenseChunk((part_of_wider(rows[:901], times),)), DenseChunk((backwards,))])
    for mask in (None, allowed):
        expected = awkward.run(backend.dense_scan(alone, queries[:9], 10, metric, mask), alone)
        scores, found = awkward.run(backend.dense_scan(wide, queries, 10, metric, mask), wide)
        np.testing.assert_array_equal(found[:9], expected[1])
        assert oracles.same_bits(scores[:9], expected[0])


@pytest.mark.parametrize("bad", [0, 95, 96, 1999])
def test_bad_rows_are_noticed(backend: Backend, bad: int) -> None:
    rows, queries = made(2000, 40)
    rows[bad, 39] = np.inf
    wide = backend.dense_rows("float32", [DenseChunk((part_of_wider(rows, 3),))])
    scan = backend.dense_scan(wide, queries, 10, "ip")
    awkward.run(scan, wide)
    assert scan.bad_row == bad
