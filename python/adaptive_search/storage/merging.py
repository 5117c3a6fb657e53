"""Which segments a save should write anew as one."""

from __future__ import annotations

from collections.abc import Sequence

# A segment of this many rows costs nothing by being one of several, so it is not rewritten just to grow.
LARGE = 1 << 18


def segments_to_merge(row_counts: Sequence[int], live_counts: Sequence[int], *, large: int = LARGE) -> list[range]:
    """Runs of neighbouring segments that are better stored as one, so that rows keep their order.

    Small segments are merged as in the logarithmic method: neighbours whose sizes are within a factor of two become one, so that
    n rows saved in many small steps lie in O(log n) small segments and each row is rewritten O(log n) times. A segment of
    which more than half is deleted is rewritten, alone if need be.

    Parameters
    ----------
    row_counts, live_counts : sequence of int
        Per segment, in order: rows stored, and rows not deleted.
    large : int
        Segments of this many rows are not merged; a merged one has fewer than twice as many.

    Returns
    -------
    list of range
        Disjoint runs of segment numbers, rising. Each is to be replaced by one segment of its live rows, or by none.

    Examples
    --------
    >>> from adaptive_search.storage import segments_to_merge
    >>> segments_to_merge([1_000_000, 100, 80, 10], [1_000_000, 100, 80, 10])
    [range(1, 3)]
    >>> segments_to_merge([1_000_000, 1_000_000], [400_000, 1_000_000])
    [range(0, 1)]
    """
    runs: list[tuple[int, int, int]] = []  # first, last (exclusive), live rows
    for number, live in enumerate(live_counts):
        runs.append((number, number + 1, live))
        while len(runs) > 1 and _belong_together(runs[-2][2], runs[-1][2], large):
            _, last, more = runs.pop()
            first, _, fewer = runs.pop()
            runs.append((first, last, fewer + more))
    return [range(first, last) for first, last, live in runs if last - first > 1 or 2 * live < row_counts[first]]


def _belong_together(before: int, after: int, large: int) -> bool:
    return before < large and after < large and before < 2 * after
