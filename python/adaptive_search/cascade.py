"""Cascades: a list of stages, and what runs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .arrays import ranges
from .backends.protocol import Backend, Bound, Level, Rows, Scan
from .execution import Progress, run_ranges, run_scan
from .margins import ErrorModel, exact_bound, reached
from .representations import Bounded, Full, Representation, Stage
from .types import F32, F64, I64, Bool, Metric

SEEDS = 32
"""Rows that the first stage finds for an exact search to begin with: their scores are its first thresholds."""

GROUP_BYTES = 64 << 20
"""Most memory for the candidates of the queries that are on their way at a time."""


class Cascade:
    """Stages from cheap to dear. Each scores what the one before has kept; the last one's scores are the answer's.

    A stage with ``keep`` hands on as many rows of each query (or k, if that is more). Without, it hands on, query by query, the rows whose
    estimate plus a margin can still be among the best of what comes next: the next stage with ``keep``, or the last. `Index.tune` learns
    the margins. A last stage with ``keep`` hands over to `Full`, which is then added. Without ``keep`` its estimates are the scores of the
    answer.

    Parameters
    ----------
    stages : sequence of stages
        Any number of `Binary`, `PQ`, `Int8` and `Prefix`; `Full` only as the last.

    Attributes
    ----------
    stages : tuple of stages

    Raises
    ------
    TypeError, ValueError
        If there is no stage, something that is no stage, or `Full` before the end.

    Examples
    --------
    >>> from adaptive_search import Binary, Cascade, Full, Prefix
    >>> Cascade([Prefix(64, keep=200), Full()])
    Cascade([Prefix(dims=64, keep=200), Full()])
    >>> Cascade([Binary(keep=1000), Prefix(64, keep=100)])
    Cascade([Binary(keep=1000), Prefix(dims=64, keep=100), Full()])
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        try:
            given = tuple(stages)
        except TypeError:
            raise TypeError(f"stages: expected a list such as [Binary(keep=1000), Full()], got {type(stages).__name__}") from None
        if not given:
            raise ValueError("stages: expected at least one, got none")
        for stage in given:
            if not isinstance(stage, Stage):
                raise TypeError(f"stages: expected Binary, PQ, Int8, Prefix or Full objects, got {stage!r}")
        if any(isinstance(stage, Full) for stage in given[:-1]):
            raise ValueError(f"stages: expected Full(), which scores exactly, only as the last one, got {list(given)}")
        if given[-1].shortlist is not None:
            given += (Full(),)
        self.stages: tuple[Stage, ...] = given

    def __repr__(self) -> str:
        return f"Cascade([{', '.join(map(repr, self.stages))}])"

    def __eq__(self, other: object) -> bool:
        return self.stages == other.stages if isinstance(other, Cascade) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.stages)

    @property
    def needs_calibration(self) -> bool:
        """Whether a stage before the last has no ``keep``."""
        return any(stage.shortlist is None for stage in self.stages[:-1])


class StageStats(NamedTuple):
    """What one stage did for every query.

    Attributes
    ----------
    stage : str
    scored : ndarray of int64, shape (Q,)
        Rows that it scored.
    survivors : ndarray of int64, shape (Q,)
        Rows that it handed on: to the next stage, or as the answer.
    bytes : ndarray of int64, shape (Q,)
        Bytes of rows that it read for them.
    """

    stage: str
    scored: I64
    survivors: I64
    bytes: I64


class SearchStats(NamedTuple):
    """What a search did, stage by stage, in order.

    Attributes
    ----------
    stages : tuple of StageStats
    """

    stages: tuple[StageStats, ...]


@dataclass(frozen=True)
class PreparedStage:
    """A stage with the rows of an index, on one backend.

    ``shortlist`` is the number of rows that go on; None for the last stage, and for an adaptive one, which then has a ``model`` of its
    errors, how many of its deviations ``margins`` are, and how many rows it is expected to hand on.
    """

    representation: Representation
    rows: Rows
    shortlist: int | None
    metric: Metric
    model: ErrorModel | None = None
    margins: float = 0.0
    expected: int = 64

    @property
    def adaptive(self) -> bool:
        return self.model is not None

    def bound(self, backend: Backend, queries: F32) -> Bound:
        """What its keys say of scores."""
        if self.model is None:
            return exact_bound(len(queries))
        return self.model.bound(self.representation.units(backend, queries, self.metric), self.margins)

    def level(self, backend: Backend, queries: F32, scan: bool = False) -> Level:
        return self.representation.level(backend, self.rows, queries, self.bound(backend, queries), scan)


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

    def put(self, queries: I64, other: Found) -> None:
        """Take over the answers of some queries."""
        width = other.positions.shape[1]
        self.scores[queries, :width], self.positions[queries, :width] = other.scores, other.positions
        self.scored[:, queries], self.survivors[:, queries] = other.scored, other.survivors

    def part(self, first: int, last: int) -> Found:
        """Views of the queries first..last."""
        return Found(self.scores[first:last], self.positions[first:last], self.scored[:, first:last], self.survivors[:, first:last])


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


@dataclass(frozen=True)
class _Run:
    """One search: what all steps need to know."""

    backend: Backend
    stages: Sequence[PreparedStage]
    allowed: Bool | None
    counts: I64
    threads: int | None

    def mask(self, queries: I64 | slice) -> Bool | None:
        """The allowed rows of some queries."""
        return self.allowed if self.allowed is None or self.allowed.ndim == 1 else np.ascontiguousarray(self.allowed[queries])

    # --- the first segment ---------------------------------------------------------------------------------------------
    def scan(self, segment: Segment, queries: F32, own: slice, found: Found, progress: Progress | None) -> tuple[F32, I64]:
        """All rows through the segment: raw scores of its last stage, and positions."""
        head = self.stages[segment.first]
        wanted = segment.width if segment.first == segment.last else self._expected(segment)
        raw, positions = self._head(head, queries, np.arange(own.start, own.stop), wanted, progress)
        found.scored[segment.first] = self.counts[own]
        if segment.first == segment.last:
            return raw, positions
        scores, best, least, more = self._adaptive(segment, queries, positions, raw, found)
        if len(more):
            # Rows beyond those that were expected may matter as well.
            mine, part = np.arange(own.start, own.stop)[more], queries[more]
            judge = self.stages[segment.last]

            def make(start: int, stop: int) -> Scan:
                levels = [stage.level(self.backend, part[start:stop], True) for stage in self.stages[segment.first : segment.last]]
                last = judge.level(self.backend, part[start:stop], True)
                mask = self.mask(mine[start:stop])
                return self.backend.cascade_scan(levels, last, segment.width, mask, least[more][start:stop])

            def note(start: int, stop: int, scan: Scan) -> None:
                found.scored[segment.first + 1 : segment.last + 1, more[start:stop]] += scan.scored[1:]

            scores[more], best[more] = run_scan(judge.rows, make, len(part), segment.width, threads=self.threads, finished=note)
        return scores, best

    def _expected(self, segment: Segment) -> int:
        return min(int(self.counts.max()), max(self.stages[segment.first].expected, segment.width + 16))

    def _head(self, head: PreparedStage, queries: F32, numbers: I64, width: int, progress: Progress | None) -> tuple[F32, I64]:
        def make(start: int, stop: int) -> Scan:
            return head.representation.scan(self.backend, head.rows, queries[start:stop], width, self.mask(numbers[start:stop]))

        return run_scan(head.rows, make, len(queries), width, threads=self.threads, progress=progress)

    def _adaptive(self, segment: Segment, queries: F32, positions: I64, raw: F32, found: Found) -> tuple[F32, I64, F64, I64]:
        """What the first stage found through the others. Fourth value: queries for which it may not have found enough."""
        stages = self.stages[segment.first : segment.last]
        scores, best, least = self.rescore(segment, queries, positions, raw, found)
        last = raw[:, -1].astype(np.float64) * (1.0 if stages[0].representation.largest else -1.0)
        full = (positions[:, -1] >= 0) & (found.scored[segment.first] > positions.shape[1])
        more = np.flatnonzero(full & reached(stages[0].bound(self.backend, queries), last, least))
        return scores, best, least, more

    # --- later segments ------------------------------------------------------------------------------------------------
    def rescore(self, segment: Segment, queries: F32, candidates: I64, raw: F32 | None, found: Found) -> tuple[F32, I64, F64]:
        """Candidates through the segment's stages; ``raw`` are the scores that its first stage has given them."""
        width = segment.width
        scores, best = np.empty((len(queries), width), np.float32), np.empty((len(queries), width), np.int64)
        least = np.empty(len(queries))
        *stages, judge = self.stages[segment.first : segment.last + 1]

        def work(first: int, last: int) -> None:
            part, listed = queries[first:last], candidates[first:last]
            if not stages:
                scores[first:last], best[first:last] = judge.representation.rescore(self.backend, judge.rows, part, listed, width)
                found.scored[segment.last, first:last] = (listed >= 0).sum(axis=1)
                return
            levels = [stage.level(self.backend, part) for stage in stages]
            known = None if raw is None else raw[first:last]
            answer = self.backend.cascade_rescore(levels, judge.level(self.backend, part), listed, known, width)
            scores[first:last], best[first:last], least[first:last], scored = answer
            begin = segment.first if raw is None else segment.first + 1
            found.scored[begin : segment.last + 1, first:last] += scored[begin - segment.first :]

        run_ranges(work, len(queries), threads=self.threads, grain=min(32, max(1, len(queries))) if stages else 1)
        return scores, best, least


def run(
    backend: Backend,
    stages: Sequence[PreparedStage],
    queries: F32,
    k: int,
    allowed: Bool | None,
    counts: I64,
    *,
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
    """
    found = Found.empty(len(queries), k, len(stages))
    search = _Run(backend, stages, allowed, counts, threads)
    segments = segments_of(stages, k, int(counts.max()))
    widest = max(max(segment.width, stages[segment.first].expected) for segment in segments)
    for first, last in _groups(len(queries), widest):
        part, own = queries[first:last], found.part(first, last)
        shown = None if progress is None else _share(progress, first, last, len(queries))
        raw, positions = search.scan(segments[0], part, slice(first, last), own, shown)
        _note_survivors(own, segments[0], positions)
        for segment in segments[1:]:
            raw, positions, _ = search.rescore(segment, part, positions, None, own)
            _note_survivors(own, segment, positions)
        own.positions[...] = positions
        own.scores[...] = stages[-1].representation.estimates(backend, part, raw)
    return found


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
    """
    stages = len(bounds) + 1
    found = Found.empty(len(queries), k, stages)
    search = _Run(backend, [seeds, full], allowed, counts, threads)
    width = min(int(counts.max()), max(SEEDS, k + 16))
    for first, last in _groups(len(queries), width):
        part, own = queries[first:last], found.part(first, last)
        numbers = np.arange(first, last)
        _, positions = search._head(seeds, part, numbers, width, None)
        least = np.full(len(part), -np.inf)

        def seed(start: int, stop: int, part: F32 = part, positions: I64 = positions, least: F64 = least, own: Found = own) -> None:
            levels = [bound.level(backend, part[start:stop], False) for bound in bounds]
            judge = full.level(backend, part[start:stop])
            _, _, least[start:stop], scored = backend.cascade_rescore(levels, judge, positions[start:stop], None, k, True)
            own.scored[:, start:stop] += scored

        run_ranges(seed, len(part), threads=threads, grain=min(32, len(part)))

        def make(start: int, stop: int, part: F32 = part, numbers: I64 = numbers, least: F64 = least) -> Scan:
            levels = [bound.level(backend, part[start:stop], True) for bound in bounds]
            judge = full.level(backend, part[start:stop], True)
            return backend.cascade_scan(levels, judge, k, search.mask(numbers[start:stop]), least[start:stop], True)

        def note(start: int, stop: int, scan: Scan, own: Found = own) -> None:
            own.scored[:, start:stop] += scan.scored

        shown = None if progress is None else _share(progress, first, last, len(queries))
        own.scores[...], own.positions[...] = run_scan(full.rows, make, len(part), k, threads=threads, progress=shown, finished=note)
        own.scored[0] += counts[first:last]
        own.survivors[:-1] = own.scored[1:]
        own.survivors[-1] = (own.positions >= 0).sum(axis=1)
    return found


def run_on_candidates(
    backend: Backend, stages: Sequence[PreparedStage], queries: F32, k: int, candidates: Sequence[I64], *, threads: int | None = None
) -> Found:
    """Score each query's candidates with the last stage alone; ``k`` is at most the length of the longest list."""
    found = Found.empty(len(queries), k, len(stages))
    longest = max(map(len, candidates))
    segment = Segment(len(stages) - 1, len(stages) - 1, k)
    for first, last in _groups(len(queries), longest):
        listed = np.full((last - first, max(map(len, candidates[first:last]))), -1, np.int64)
        for row, own in zip(listed, candidates[first:last], strict=True):
            row[: len(own)] = own
        part, mine = queries[first:last], found.part(first, last)
        search = _Run(backend, stages, None, np.array([listed.shape[1]]), threads)
        raw, positions, _ = search.rescore(segment, part, listed, None, mine)
        _note_survivors(mine, segment, positions)
        mine.positions[...] = positions
        mine.scores[...] = stages[-1].representation.estimates(backend, part, raw)
    return found


def _note_survivors(found: Found, segment: Segment, positions: I64) -> None:
    found.survivors[segment.first : segment.last] = found.scored[segment.first + 1 : segment.last + 1]
    found.survivors[segment.last] = (positions >= 0).sum(axis=1)


def _groups(queries: int, width: int) -> Iterator[tuple[int, int]]:
    return ranges(queries, max(1, GROUP_BYTES // (16 * max(width, 1))))


def _share(progress: Progress, first: int, last: int, queries: int) -> Progress:
    """Progress of a group of queries as that of all."""
    return lambda done, total: progress(first + (last - first) * done // total, queries)
