"""Times of what is compared: contenders take turns, and only their ratios are believed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from adaptive_search.types import F32

ROUNDS = 7


class Times(NamedTuple):
    """Seconds per query, and time relative to the first contender as the median over rounds with their least and largest."""

    seconds: float
    ratio: float
    low: float
    high: float


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def seconds(search: Callable[[F32], object], batches: Sequence[F32]) -> float:
    """Per query."""
    return timed(lambda: [search(batch) for batch in batches]) / sum(map(len, batches))


def relative(contenders: Mapping[str, Callable[[F32], object]], batches: Sequence[F32], rounds: int = ROUNDS) -> dict[str, Times]:
    """Times of everybody, in turns; ratios are to the first."""
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        # Nobody always comes after the same neighbour.
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(seconds(contenders[name], batches))
    ratios = {name: [own / first for own, first in zip(times[name], times[names[0]], strict=True)] for name in names}
    return {name: Times(median(times[name]), median(ratios[name]), min(ratios[name]), max(ratios[name])) for name in names}
