"""Running a cascade: levels for the queries at hand, first thresholds, scans, and what is counted meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .arrays import ranges
from .backends.protocol import Backend, Bound, Level, Listing, Rows, Source
from .execution import MAX_GROUP, Progress, get_threads, run_ranges, run_rows
from .margins import ErrorModel, Units
from .representations import Bounded, Line, Representation
from .types import F32, F64, I64, Bool

SHORT = 16
"""Lists that are so much longer than what is wanted, and no more, are made without a guess."""


class Opening(NamedTuple):
    """How a search finds its first thresholds: the rows that look best to the first stage, ``spare`` more than are wanted, in one of
    ``share`` runs of 64 rows, are taken through all stages.

    If all rows were looked at, a query is done whose list holds whatever can matter; the others are scanned once more, with their
    thresholds. Long lists begin with a guess, from a sample, of the score from which on rows can matter. It all changes times, not answers.
    """

    share: int = 1
    spare: int = SHORT

    @property
    def guess(self) -> int:
        """One of so many runs of rows is the sample of a guess; 0 if there is none."""
        return GUESS if self.share == 1 and self.spare > SHORT else 0


GUESS = 16
"""One of so many runs of rows is the sample of a guess."""

OPENINGS = (Opening(), Opening(spare=112), Opening(spare=496), Opening(share=32))
"""Which one takes the least time depends on how far the best rows stand out, and is measured by `tuning`."""

SMALL = 64
"""Blocks of rows, times queries, up to which a search is one call of the backend, on one thread: some milliseconds at most."""

GROUP_BYTES = 64 << 20
"""Most memory for the candidates of the queries that are on their way at a time."""


@dataclass(frozen=True)
class PreparedStage:
    """A stage with the rows of an index, on one backend.

    ``shortlist`` is the number of rows that go on; None for the last stage, and for an adaptive one, which then has a ``model`` of its
    errors, and how many of its deviations ``margins`` are. ``listing`` holds its codes in the order of the lists of the stage before.
    """

    representation: Representation
    rows: Rows
    shortlist: int | None
    model: ErrorModel | None = None
    margins: float = 0.0
    listing: Listing | None = None

    @property
    def adaptive(self) -> bool:
        return self.model is not None

    @property
    def line(self) -> Line:
        """What keys say of scores, margins included."""
        return (0.0, 1.0) if self.model is None else (self.model.raised(self.margins), self.model.slope)

    def source(self, backend: Backend, lists: PreparedStage | None = None) -> Source | None:
        """What makes its levels in the backend, and those of the lists before it; None if nothing does."""
        return self.representation.source(backend, self.rows, self.line, None if lists is None else (lists.rows, lists.line))

    def bounding(self, units: Units) -> Bound:
        """What its keys say of scores."""
        # Infinite units, of queries too long for float32, make bounds that say nothing.
        with np.errstate(invalid="ignore"):
            return units.estimated() if self.model is None else self.model.bound(units, self.margins)

    def level(self, backend: Backend, queries: F32, scan: bool = False) -> tuple[Level, Bound]:
        return self.level_of(backend, self.representation.asks.asked(backend, queries), scan)

    def level_of(self, backend: Backend, asked: Any, scan: bool = False) -> tuple[Level, Bound]:
        """For queries that are ready."""
        return self.representation.level(backend, self.rows, asked, self.bounding, scan)


class Found(NamedTuple):
    """The answer of a cascade: scores (Q, width) float32, positions (Q, width), and rows scored and kept, (stages, Q) each."""

    scores: F32
    positions: I64
    scored: I64
    survivors: I64

    @classmethod
    def empty(cls, queries: int, k: int, stages: int) -> Found:
        """Nothing found yet: position -1, score NaN."""
        scores, positions = np.full((queries, k), np.nan, np.float32), np.full((queries, k), -1, np.int64)
        return cls(scores, positions, np.zeros((stages, queries), np.int64), np.zeros((stages, queries), np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Found]) -> Found:
        """Answers of several groups of queries, one after the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(np.concatenate(arrays, axis=axis) for arrays, axis in zip(zip(*parts, strict=True), (0, 0, 1, 1), strict=True)))

    def put(self, queries: I64, other: Found) -> None:
        """Take over the answers of some queries."""
        width = other.positions.shape[1]
        self.scores[queries, :width], self.positions[queries, :width] = other.scores, other.positions
        self.scored[:, queries], self.survivors[:, queries] = other.scored, other.survivors

    def part(self, first: int, last: int) -> Found:
        """Views of the queries first..last."""
        return Found(self.scores[first:last], self.positions[first:last], self.scored[:, first:last], self.survivors[:, first:last])


def scan_order(stages: Sequence[PreparedStage]) -> list[int]:
    """The stages' numbers in the order in which rows go through them: one that cannot scan comes after the next. That changes no answer."""
    order = list(range(len(stages)))
    return order if stages[0].representation.scans else [1, 0, *order[2:]]


def first_scan(stages: Sequence[PreparedStage]) -> PreparedStage:
    """The stage that looks at all rows."""
    return stages[scan_order(stages)[0]]


class Segment(NamedTuple):
    """Stages ``first`` to ``last`` of a cascade: adaptive ones, and the one that decides which ``width`` rows go on."""

    first: int
    last: int
    width: int


def segments_of(stages: Sequence[PreparedStage], k: int, most: int) -> list[Segment]:
    """The stages cut after every one that hands on a fixed number of rows; no query has more rows than ``most``."""
    found, first = [], 0
    for number, stage in enumerate(stages[:-1]):
        if stage.shortlist is not None:
            found.append(Segment(first, number, min(most, max(stage.shortlist, k))))
            first = number + 1
        elif not stage.adaptive:
            raise ValueError(f"{stage.representation} has neither a shortlist nor a margin")
    return [*found, Segment(first, len(stages) - 1, k)]


class _Levels(NamedTuple):
    """Stages for the queries of a search: adaptive ones, and the one that decides."""

    adaptive: Sequence[Level]
    judge: Level
    bound: Bound | None
    """What raw scores of the first say; None if no bound can fail."""
    seeds: Level | None = None
    """Finds what looks best, if that is not up to the first."""
    listing: Listing | None = None
    """The codes of the first, if the second is one of lists."""


@dataclass(frozen=True)
class _Run:
    """One search of a group of queries: what all steps need to know."""

    backend: Backend
    queries: F32
    allowed: Bool | None
    counts: I64
    threads: int | None
    opening: Opening = OPENINGS[0]

    def part(self, chosen: I64) -> _Run:
        """The same for some of the queries."""
        return replace(self, queries=self.queries[chosen], allowed=allowed_of(self.allowed, chosen), counts=self.counts[chosen])

    def top(
        self, level: Level, width: int, visits: int, progress: Progress | None = None, floors: F32 | None = None, share: int = 1
    ) -> tuple[F32, I64]:
        """The best rows, of all or of one of ``share`` runs, by one level's raw scores."""
        scan = self.backend.level_scan(level, width, self.allowed, floors, share)
        run_rows(scan, visits, len(self.queries), threads=self.threads, progress=progress)
        return scan.finish()

    def scan(self, prepare: Callable[..., _Levels], k: int, visits: int, scored: I64, progress: Progress | None) -> tuple[F32, I64]:
        """All rows through the levels: the judge's raw scores of the best k, and their positions. Counts into ``scored`` (stages, Q)."""
        made = prepare(self.queries)
        levels, judge, bound, seeds, listing = made
        if listing is not None:
            scores, best, more = self._by_lists(listing, levels, judge, k, scored, progress)
            left = np.flatnonzero(more)
            if len(left):
                again = np.zeros((len(scored), len(left)), np.int64)
                scores[left], best[left] = self.part(left).scan(partial(prepare, listed=False), k, visits, again, None)
                scored[:, left] += again
            return scores, best
        if not levels:
            scored[0] += self.counts
            return self.top(judge, k, visits, progress)
        # The values of a few rows that look best, among all or in a sample, are the first thresholds.
        share, spare = self.opening
        width, hard = k + spare, bound is None
        guess = 0 if hard else self.opening.guess
        scored[0] += self.counts // share if share > 1 else self.counts
        if visits * len(self.queries) <= SMALL and (
            answer := self.backend.cascade_top_k(levels, judge, k, width, share, guess, self.allowed, hard, seeds)
        ):
            scores, best, others, more = answer
            scored += others
            scored[0] += self.counts * more
            if guess:
                scored[0] += self.counts // guess
            return scores, best
        width = max(1, min(int(self.counts.max()), width))
        floors = self._guess(made, k, width, visits, scored) if guess else None
        raw, positions = self.top(levels[0] if seeds is None else seeds, width, visits, progress if share == 1 else None, floors, share)
        least = np.empty(len(self.queries))
        scores, best = self._rescore(levels, judge, positions, raw if seeds is None else None, k, scored, hard, least=least)
        more = self._undecided(raw, positions, floors, bound, least) if share == 1 and bound is not None else np.ones(len(least), np.bool_)
        if not more.any():
            return scores, best
        rest, which = self, np.flatnonzero(more)
        if len(which) < len(more):
            rest = self.part(which)
            levels, judge, *_ = prepare(rest.queries)
        floor = np.minimum(least[which], np.finfo(np.float64).max)  # infinity would find nothing
        scan = self.backend.cascade_scan(levels, judge, k, rest.allowed, floor, hard)
        run_rows(scan, visits, len(which), threads=self.threads, progress=progress if share > 1 else None)
        scored[:, which] += scan.scored
        scored[0, which] += rest.counts
        scores[which], best[which] = scan.finish()
        return scores, best

    def _by_lists(
        self, listing: Listing, levels: Sequence[Level], judge: Level, k: int, scored: I64, progress: Progress | None
    ) -> tuple[F32, I64, Bool]:
        """The same, of the rows of those lists alone that can matter; and the queries (Q,) for which these are too many."""
        queries = len(self.queries)
        scores, best, more = np.empty((queries, k), np.float32), np.empty((queries, k), np.int64), np.empty(queries, np.bool_)

        def work(first: int, last: int) -> None:
            found = self.backend.listed_top_k(listing, levels, judge, k, self.allowed, first, last)
            scores[first:last], best[first:last], more[first:last] = found[0], found[1], found[3]
            scored[:, first:last] += found[2]

        run_ranges(work, queries, threads=self.threads, grain=32, progress=progress)
        return scores, best, more

    def _guess(self, made: _Levels, k: int, width: int, visits: int, scored: I64) -> F32:
        """Raw scores of the first level (Q,) from which on a list should hold what can matter, and not many more rows than ``width``.

        The value of rank k / GUESS in the sample would be about right; two standard deviations further on, it is hardly ever too high.
        """
        levels, judge, bound, *_ = made
        if bound is None:
            raise RuntimeError("there is nothing to guess where all rows are scanned again")
        part = k / GUESS
        decides, rank = round(part + 2.0 * math.sqrt(part) + 1.0), -(-width // GUESS)
        taken = decides + 9
        raw, positions = self.top(levels[0], max(rank, taken), visits, share=GUESS)
        scored[0] += self.counts // GUESS
        value = np.empty(len(self.queries))
        some, keys = np.ascontiguousarray(positions[:, :taken]), np.ascontiguousarray(raw[:, :taken])
        self._rescore(levels, judge, some, keys, decides, scored, False, least=value)
        with np.errstate(over="ignore", invalid="ignore"):
            reaching = bound.reaching(value).astype(np.float32)
        return _tighter(bound, raw[:, rank - 1], reaching)

    def _undecided(self, raw: F32, positions: I64, floors: F32 | None, bound: Bound, least: F64) -> Bool:
        """Which queries (Q,) rows may matter to that are not listed; ``floors``: raw scores from which on rows were."""
        # Rows that are listed may be worse than the floor: a scan is not that exact.
        beyond = raw[:, -1] if floors is None else _tighter(bound, raw[:, -1], floors)
        # NaN: there are no other rows.
        more = ~np.isnan(beyond) & ~(bound.of(beyond[:, None].astype(np.float64))[:, 0] < least)
        undecided: Bool = more & (self.counts > (positions >= 0).sum(axis=1))
        return undecided

    def rescore(self, levels: Sequence[Level], judge: PreparedStage, candidates: I64, k: int, scored: I64) -> tuple[F32, I64]:
        """Candidates (Q, C) through levels that the judge ends: its raw scores of the best k, and their positions."""
        if levels:
            return self._rescore(levels, judge.level(self.backend, self.queries)[0], candidates, None, k, scored, False)
        scores, best = np.empty((len(self.queries), k), np.float32), np.empty((len(self.queries), k), np.int64)

        def work(first: int, last: int) -> None:
            part, listed = self.queries[first:last], candidates[first:last]
            scores[first:last], best[first:last] = judge.representation.rescore(self.backend, judge.rows, part, listed, k)

        run_ranges(work, len(self.queries), threads=self.threads)
        scored[0] += (candidates >= 0).sum(axis=1)
        return scores, best

    def _rescore(
        self,
        levels: Sequence[Level],
        judge: Level,
        candidates: I64,
        raw: F32 | None,
        k: int,
        scored: I64,
        hard: bool,
        least: F64 | None = None,
    ) -> tuple[F32, I64]:
        """``raw``: the scores that the first level has given the candidates; ``least`` takes each query's k-th best value."""
        queries = len(self.queries)
        scores, best = np.empty((queries, k), np.float32), np.empty((queries, k), np.int64)

        def work(first: int, last: int) -> None:
            known = None if raw is None else raw[first:last]
            answer = self.backend.cascade_rescore(levels, judge, candidates[first:last], known, k, hard, first)
            scores[first:last], best[first:last] = answer[:2]
            if least is not None:
                least[first:last] = answer[2]
            scored[:, first:last] += answer[3]

        run_ranges(work, queries, threads=self.threads, grain=32)
        return scores, best


def run(
    backend: Backend,
    stages: Sequence[PreparedStage],
    queries: F32,
    k: int,
    allowed: Bool | None,
    counts: I64,
    *,
    opening: Opening = OPENINGS[0],
    threads: int | None = None,
    progress: Progress | None = None,
) -> Found:
    """Search all allowed rows through the stages.

    Parameters
    ----------
    stages : sequence of PreparedStage
        At least one; all but the last with a shortlist or a model of their errors.
    queries : ndarray of float32, shape (Q, D)
    k : int
        At most the largest of ``counts``.
    allowed : ndarray of bool, shape (N,) or (Q, N), or None
    counts : ndarray of int64, shape (Q,)
        Allowed rows per query.
    opening : Opening
        It changes times, not answers.
    """
    segments = segments_of(stages, k, int(counts.max()))
    order = scan_order(stages)
    stages = [stages[number] for number in order]
    visits = stages[0].rows.visits

    def group(first: int, last: int, threads: int | None, shown: Progress | None) -> Found:
        part = queries[first:last]
        search = _Run(backend, part, allowed_of(allowed, slice(first, last)), counts[first:last], threads, opening)
        looked_at, survivors = np.zeros((len(stages), len(part)), np.int64), np.empty((len(stages), len(part)), np.int64)
        for segment in segments:
            scored = looked_at[segment.first : segment.last + 1]
            if segment.first == 0:
                raw, positions = search.scan(partial(_scanned, backend, stages[: segment.last + 1]), segment.width, visits, scored, shown)
            else:
                *adaptive, judge = stages[segment.first : segment.last + 1]
                levels = [stage.level(backend, part)[0] for stage in adaptive]
                raw, positions = search.rescore(levels, judge, positions, segment.width, scored)
            if segment.first == 0 and order[0]:
                scored[:2] = search.counts, scored[0].copy()  # lists come first to those who count
            survivors[segment.first : segment.last] = _handed_on(scored, search.counts)
            survivors[segment.last] = (positions >= 0).sum(axis=1)
        return Found(stages[-1].representation.estimates(backend, part, raw), positions, looked_at, survivors)

    listed = segments[0].width + opening.spare if segments[0].last else 0
    widest = max(listed, *(segment.width for segment in segments))
    return _run_groups(group, len(queries), widest, visits, threads, progress)


Probe = Callable[[F32, int, Bool | None, I64, int | None], Found]
"""``probe(queries, k, allowed, counts, threads)``: a search whose scores are true."""


def run_exact(
    backend: Backend,
    seeds: PreparedStage,
    bounds: Sequence[Bounded],
    full: PreparedStage,
    queries: F32,
    k: int,
    allowed: Bool | None,
    counts: I64,
    *,
    opening: Opening = OPENINGS[0],
    probe: Probe | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Found:
    """The exact k best of all allowed rows: bounds that cannot fail leave out most of them.

    Parameters
    ----------
    seeds : PreparedStage
        Finds the rows whose scores are the first thresholds.
    bounds : sequence of Bounded
        At least one, cheap ones first; the search goes on to the next where one leaves too many rows, and to whole rows at last.
    full : PreparedStage
        The vectors.
    opening : Opening
        As for `run`.
    probe : callable, optional
        Finds rows whose scores are thresholds about as good as can be had; otherwise these are up to ``seeds`` and ``opening``.
    """
    visits = full.rows.visits
    smallest_first = not full.representation.largest

    def group(first: int, last: int, threads: int | None, shown: Progress | None) -> Found:
        part = queries[first:last]
        search = _Run(backend, part, allowed_of(allowed, slice(first, last)), counts[first:last], threads, opening)

        def prepare(some: F32) -> _Levels:
            levels = [bound.level(backend, some, True) for bound in bounds]
            return _Levels(levels, full.level(backend, some, True)[0], None, seeds.level(backend, some, True)[0])

        scored, survivors = np.zeros((len(bounds) + 1, len(part)), np.int64), np.empty((len(bounds) + 1, len(part)), np.int64)
        if probe is None:
            scores, positions = search.scan(prepare, k, visits, scored, shown)
        else:
            known = probe(part, k, search.allowed, search.counts, threads)
            least = known.scores[:, -1].astype(np.float64)
            floors = np.where(np.isnan(least), -np.inf, -least if smallest_first else least)
            levels, judge, *_ = prepare(part)
            scan = backend.cascade_scan(levels, judge, k, search.allowed, floors, True)
            run_rows(scan, visits, len(part), threads=threads, progress=shown)
            scored += scan.scored
            scored[0] += search.counts
            scored[-1] += known.scored[-1]
            scores, positions = scan.finish()
        survivors[:-1] = _handed_on(scored, search.counts)
        survivors[-1] = (positions >= 0).sum(axis=1)
        return Found(scores, positions, scored, survivors)

    return _run_groups(group, len(queries), k + opening.spare, visits, threads, progress)


def run_on_candidates(
    backend: Backend, stages: Sequence[PreparedStage], queries: F32, k: int, candidates: Sequence[I64], *, threads: int | None = None
) -> Found:
    """Score each query's candidates with the last stage alone; ``k`` is at most the length of the longest list."""
    found = Found.empty(len(queries), k, len(stages))
    longest = max(map(len, candidates))
    for first, last in ranges(len(queries), _group_size(longest)):
        listed = np.full((last - first, max(map(len, candidates[first:last]))), -1, np.int64)
        for row, own in zip(listed, candidates[first:last], strict=True):
            row[: len(own)] = own
        part, mine = queries[first:last], found.part(first, last)
        search = _Run(backend, part, None, np.full(len(part), listed.shape[1]), threads)
        raw, positions = search.rescore([], stages[-1], listed, k, mine.scored[-1:])
        mine.survivors[-1] = (positions >= 0).sum(axis=1)
        mine.positions[...] = positions
        mine.scores[...] = stages[-1].representation.estimates(backend, part, raw)
    return found


def _scanned(backend: Backend, stages: Sequence[PreparedStage], queries: F32, listed: bool = True) -> _Levels:
    """The first stages of a cascade, which look at all rows, or, if that is asked for, at those of some lists."""
    *adaptive, judge = stages
    listing = stages[0].listing if listed else None
    made: list[tuple[Level, Bound]] = []
    for number, stage in enumerate(adaptive):
        # Lists take queries as the codes before them do.
        if number == 0 or stage.representation.asks is not stages[number - 1].representation.asks:
            asked = stage.representation.asks.asked(backend, queries)
        made.append(stage.level_of(backend, asked, number == 0 and listing is None))
    decides, bound = judge.level(backend, queries, listing is None)
    if adaptive:
        # Keys with the sign of raw scores, as those of the first stage come.
        bound = made[0][1].signed(stages[0].representation.largest)
    return _Levels([level for level, _ in made], decides, bound, listing=listing)


def _tighter(bound: Bound, raw: F32, other: F32) -> F32:
    """Of two raw scores (Q,) each the better one; NaN is none."""
    better: F32 = np.where(np.asarray(bound.factor) < 0, np.fmin(raw, other), np.fmax(raw, other))
    return better


def _handed_on(scored: I64, counts: I64) -> I64:
    """Of rows scored by each stage (stages, Q), some twice or without the stage before: what all but the last handed on."""
    return np.minimum(np.minimum(scored[1:], scored[:-1]), counts)


def allowed_of(allowed: Bool | None, chosen: slice | I64) -> Bool | None:
    """The allowed rows of some queries."""
    return allowed if allowed is None or allowed.ndim == 1 else allowed[chosen]


def _group_size(width: int) -> int:
    return max(1, min(MAX_GROUP, GROUP_BYTES // (16 * (2 * width + 64))))


def _run_groups(
    group: Callable[[int, int, int | None, Progress | None], Found],
    queries: int,
    width: int,
    visits: int,
    threads: int | None,
    progress: Progress | None,
) -> Found:
    """Call ``group(first, last, threads, progress)`` for groups of queries, each with all threads; or, where there are too few rows to
    share out, on all threads with a group each. ``width``: candidates of a query, at most."""
    size, workers = _group_size(width), get_threads() if threads is None else threads
    if workers == 1 or visits >= 4 * workers or queries < 2 * workers:
        return Found.joined(
            [
                group(first, last, threads, None if progress is None else _share(progress, first, last, queries))
                for first, last in ranges(queries, size)
            ]
        )
    cuts = list(ranges(queries, min(size, -(-queries // (2 * workers)))))
    parts: dict[int, Found] = {}

    def work(first: int, last: int) -> None:
        for number in range(first, last):
            parts[number] = group(*cuts[number], 1, None)

    shown = None if progress is None else _share(progress, 0, queries, queries)
    run_ranges(work, len(cuts), threads=workers, progress=shown)
    return Found.joined([parts[number] for number in range(len(cuts))])


def _share(progress: Progress, first: int, last: int, queries: int) -> Progress:
    """Progress of a group of queries as that of all."""
    return lambda done, total: progress(first + (last - first) * done // total, queries)
