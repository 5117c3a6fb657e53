"""Which segments are merged."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from adaptive_search.storage import segments_to_merge

MILLION = 1_000_000


@pytest.mark.parametrize(
    ("rows", "live", "runs"),
    [
        ([], [], []),
        ([5], [5], []),
        ([0], [0], []),
        ([5], [0], [range(1)]),
        ([10], [5], []),
        ([10], [4], [range(1)]),
        ([10, 10], [10, 10], [range(2)]),
        ([100, 10], [100, 10], []),
        ([100, 10, 10], [100, 10, 10], [range(1, 3)]),
        ([40, 20, 10, 10], [40, 20, 10, 10], [range(4)]),
        ([MILLION, 10, MILLION], [MILLION, 10, MILLION], []),
        ([MILLION, MILLION], [MILLION, MILLION], []),
        ([MILLION, MILLION, 9], [MILLION, MILLION // 2 - 1, 9], [range(1, 2)]),
        ([MILLION, MILLION], [300, 200], [range(2)]),
    ],
)
def test_examples(rows: list[int], live: list[int], runs: list[range]) -> None:
    assert segments_to_merge(rows, live) == runs


@given(st.lists(st.tuples(st.integers(0, 2 * MILLION), st.floats(0, 1))))
def test_runs_are_disjoint_and_rising(pairs: list[tuple[int, float]]) -> None:
    rows = [rows for rows, _ in pairs]
    runs = segments_to_merge(rows, [int(rows * share) for rows, share in pairs])
    numbers = [number for run in runs for number in run]
    assert numbers == sorted(set(numbers))
    assert all(0 <= number < len(rows) for number in numbers)


def test_many_small_saves_leave_few_segments_and_rewrite_rows_rarely() -> None:
    sizes: list[int] = []
    written = 0
    for _ in range(1000):
        sizes.append(10)
        written += 10
        for run in reversed(segments_to_merge(sizes, sizes)):
            merged = sum(sizes[run.start : run.stop])
            sizes[run.start : run.stop] = [merged]
            written += merged
    assert sum(sizes) == 10_000
    assert len(sizes) <= 10
    assert written <= 11 * 10_000
