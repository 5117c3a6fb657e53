"""Contests: contenders answer the same queries in turns, round by round, and their answers are compared.

pytest-benchmark measures one test after another, and a machine drifts meanwhile by more than the differences that matter. Here, the
rounds of all contenders alternate, ratios are medians over pairs of rounds, and each contender's own benchmark then replays its rounds, so
that tables and files are pytest-benchmark's. Seconds are per query everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

import numpy as np
import pytest

import adaptive_search as asx
from adaptive_search.types import Array

from .limits import Floor, measured, undisturbed
from .peers import MISSING, limited_threads
from .settings import RECALL_TOLERANCE, SETTINGS

Search = Callable[[Array, int], Array]
"""``search(queries, k)`` gives row numbers (Q, k)."""

LEAST_JUDGED = 50
"""Queries that everybody answers for the comparison of answers, however slow."""

LONELY = 50
"""Queries of a contest that asks one at a time."""

LEAST_BATCH = 16
"""Queries of a batch that are answered first; a batch is never cut below."""

EXACT = 20
"""Queries that are enough to judge those who all find the same."""


@dataclass(frozen=True)
class Contender:
    """Somebody who answers queries.

    ``backend`` names the one to use; peers have none. ``family`` is a line of the recall–speed plot, which makes the contest one.
    ``against`` is another contender to show the speed-up over, ``floor`` the least time that the machine allows for a query.
    """

    search: Search
    backend: str | None = None
    family: str | None = None
    against: str | None = None
    floor: Floor | None = None


@dataclass(frozen=True)
class Target:
    """What is asked of ``contender``: at least ``least``.

    ``of`` says of what: how many times as fast as ``rival``; the fraction of its floor that it reaches, alone or divided by that of
    ``rival``; or its recall minus that of ``rival``. None is the preferred backend, and the best peer. ``row`` numbers the work in the
    table of kernels.
    """

    least: float
    contender: str | None = None
    rival: str | None = None
    of: Literal["speed", "floor", "scaling", "recall"] = "speed"
    row: int | None = None


NUMBA_TARGET = Target(1 / 3, "numba", "avx2")


@dataclass(frozen=True)
class Contest:
    """What is asked of whom.

    ``recall(found)`` judges row numbers (n, depth) found for the first n queries, and is called ``judged_by`` in tables. At most
    ``judged`` queries are answered for it, None being all of them. Unless ``equal`` is False, no backend may have less of it than the best
    peer. ``work`` is done for each query; 1e9 of it in a second is one ``unit``. ``alone`` asks one query at a time. A batch may take
    ``patience`` times as long as `Settings.call` before less is asked of a contender. ``rates`` are limits of this contest alone, as
    `limits.measured` knows the others.
    """

    title: str
    contenders: Mapping[str, Contender]
    queries: Array
    recall: Callable[[Array], float] | None
    work: float
    unit: str
    threads: int = 1
    alone: bool = False
    k: int = 10
    depth: int = 10
    equal: bool = True
    judged: int | None = None
    patience: float = 4
    targets: Sequence[Target] = ()
    judged_by: str = "recall@10"
    note: str = ""
    rates: Mapping[str, Callable[[], float]] = field(default_factory=dict)


@dataclass
class Result:
    """What one contender did: seconds per query in each round, how many queries a round had, what was found for the first queries,
    and its recall, also for those queries that everybody has answered; what the machine could do in each round."""

    seconds: list[float]
    queries: int
    found: Array
    recall: float | None = None
    common_recall: float | None = None
    rates: list[Mapping[str, float]] = field(default_factory=list)


def contenders(*peers: str, backends: Sequence[str] | None = None) -> pytest.MarkDecorator:
    """Parametrize a test with everybody in its contest: the peers that are installed, and every backend of this machine unless others are
    named."""
    present = [name for name in peers if name.partition(" ")[0] not in MISSING]
    return pytest.mark.parametrize("contender", [*present, *(asx.backends() if backends is None else backends)])


def numbered(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def asking(queries: Array, alone: bool, threads: int = 1, k: int = 10) -> str:
    """How it is asked, for the title of a contest."""
    return f"{'one query' if alone else f'{len(queries)} queries'}{'' if k == 10 else f', k={k}'}, {numbered(threads)}"


def best_backends() -> list[str]:
    """The preferred backend, and the one for most machines: where all of them would take too long."""
    return [name for name in asx.backends() if name in {asx.backend(), "avx2"}]


def on_backends(
    search: Search, backends: Sequence[str] | None = None, floor: Callable[[str], Floor | None] = lambda _: None, suffix: str = ""
) -> dict[str, Contender]:
    """The library itself, once per backend, all of this machine unless others are named."""
    names = asx.backends() if backends is None else backends
    return {f"{name}{suffix}": Contender(search, name, floor=floor(name)) for name in names}


def run(contest: Contest) -> dict[str, Result]:
    """Let the contenders alternate until each has had its time."""
    with limited_threads(contest.threads):
        results = {name: _prepared(contest, contender) for name, contender in contest.contenders.items()}
        names = list(results)
        for number in range(SETTINGS.most_rounds):
            rates = _rates(contest)
            # Nobody always comes after the same neighbour.
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                result = results[name]
                spent = sum(result.seconds) * result.queries
                if number < SETTINGS.least_rounds or (spent < SETTINGS.budget and len(result.seconds) == number):
                    result.seconds.append(_answered(contest, contest.contenders[name], result.queries, contest.k)[0])
                    result.rates.append(rates)
    _judge(contest, results)
    return results


def _rates(contest: Contest) -> dict[str, float]:
    """What the machine can do at this moment of all that limits a contender."""
    floors = [contender.floor for contender in contest.contenders.values() if contender.floor]
    names = {name for floor in floors for name, _ in floor.limits()}
    return {name: contest.rates[name]() if name in contest.rates else measured(name) for name in sorted(names)}


def _prepared(contest: Contest, contender: Contender) -> Result:
    """Everything is compiled and in memory, the pace is known, the first answers are there."""
    total = len(contest.queries)
    least = 1 if contest.alone else min(total, max(LEAST_BATCH, total // 10))
    pace, found = _answered(contest, contender, least, contest.depth)
    judged = min(total, max(LEAST_JUDGED, int(4 * SETTINGS.call / pace)), contest.judged or total)
    if judged > least or pace * least < SETTINGS.call:
        again, found = _answered(contest, contender, judged, contest.depth)
        pace = min(pace, again)
    # Few queries tell the pace of a batch only roughly, so that it is cut only when far too slow for it.
    fits = total if not contest.alone and pace * total <= contest.patience * SETTINGS.call else int(SETTINGS.call / pace)
    return Result([], min(total, max(least, fits)), found)


def _using(backend: str | None) -> AbstractContextManager[None]:
    return asx.use_backend(backend) if backend else nullcontext()


def _answered(contest: Contest, contender: Contender, count: int, k: int) -> tuple[float, Array]:
    """Seconds per query for the first ``count`` queries, and the answers."""
    step = 1 if contest.alone else count
    batches = [contest.queries[first : first + step] for first in range(0, count, step)]

    def answered() -> tuple[float, list[Array]]:
        start = time.perf_counter()
        found = [contender.search(batch, k) for batch in batches]
        return time.perf_counter() - start, found

    def rested() -> tuple[float, list[Array]]:
        time.sleep(SETTINGS.pause)
        return undisturbed(answered, SETTINGS.tries)

    with _using(contender.backend):
        seconds, found = rested() if contest.threads > 1 else answered()
    return seconds / count, np.concatenate(found)


def _judge(contest: Contest, results: Mapping[str, Result]) -> None:
    """Give everybody's recall; refuse a contest in which a backend finds less than a peer."""
    if contest.recall is None:
        return
    common = min(len(result.found) for result in results.values())
    compared = {}
    for name, result in results.items():
        result.recall = contest.recall(result.found)
        compared[name] = result.common_recall = contest.recall(result.found[:common])
    peers = [compared[name] for name in results if contest.contenders[name].backend is None]
    # Peers that round their estimates find a few neighbours more or less by luck, which shows in small samples.
    least = max(peers, default=0.0) - max(RECALL_TOLERANCE, 5 / (common * contest.k))
    worse = [name for name in results if contest.contenders[name].backend and compared[name] < least]
    if contest.equal and worse:
        raise AssertionError(f"{contest.title}: {', '.join(worse)} found less than the best peer: {compared}")


def speed_ratio(result: Result, rival: Result) -> float:
    """How many times as fast as its rival, as the median over rounds."""
    return median(theirs / own for own, theirs in zip(result.seconds, rival.seconds, strict=False))


def floor_reached(floor: Floor | None, result: Result) -> dict[str, Any]:
    """The least time that the machine allowed, divided by that taken, as the median over rounds; what set it; and the rates. Nothing where
    a rate is not known."""
    rates = {name: median(rates[name] for rates in result.rates) for name, _ in floor.limits()} if floor else {}
    if not floor or not all(rates.values()):
        return {"fraction": None, "limit": "", "rates": rates}
    fractions = (floor.seconds(rates)[0] / taken for rates, taken in zip(result.rates, result.seconds, strict=True))
    return {"fraction": median(fractions), "limit": floor.seconds(rates)[1], "rates": rates}


def description(contest: Contest, results: Mapping[str, Result], name: str) -> dict[str, Any]:
    """What the report needs to know about one contender, for the ``extra_info`` of its benchmark."""
    contender, result = contest.contenders[name], results[name]
    return {
        "contender": name,
        "backend": contender.backend,
        "family": contender.family,
        "against": contender.against,
        "order": sorted(asx.backends(), key=lambda name: name != asx.backend()),
        "alone": contest.alone,
        "queries": result.queries,
        "all_queries": len(contest.queries),
        "rounds": len(result.seconds),
        "judged": len(result.found),
        "recall": result.recall,
        "common_recall": result.common_recall,
        "judged_by": contest.judged_by,
        "note": contest.note,
        "rate": contest.work / median(result.seconds) / 1e9,
        "unit": contest.unit,
        **floor_reached(contender.floor, result),
        "ratios": {other: speed_ratio(result, results[other]) for other in results},
        "targets": [asdict(target) for target in contest.targets],
        "settings": SETTINGS.name,
    }


_recorded: Iterator[float] = iter(())


def replay(seconds: Sequence[float]) -> None:
    """Let `clock` tell these rounds."""
    global _recorded
    _recorded = (moment for duration in seconds for moment in (0.0, duration))


def clock() -> float:
    """The timer of the benchmarks: start and end of one recorded round after the other."""
    return next(_recorded)
