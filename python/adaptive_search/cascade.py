"""Cascades: a list of stages, and what runs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .arrays import ranges
from .backends.protocol import Backend, Rows, Scan
from .execution import Progress, run_ranges, run_scan
from .representations import Full, Representation, Stage
from .types import F32, I64, Bool

GROUP_BYTES = 64 << 20
"""Most memory for the candidates of the queries that are on their way at a time."""


class Cascade:
    """Stages from cheap to dear. Each scores what the one before has kept; the last one's scores are the answer's.

    Every stage but the last needs ``keep``: as many rows of each query go on (or k, if that is more). A last stage with
    ``keep`` hands over to `Full`, which is then added. Without ``keep`` its estimates are the scores of the answer.

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
    """

    stage: str
    scored: I64
    survivors: I64


class SearchStats(NamedTuple):
    """What a search did, stage by stage, in order.

    Attributes
    ----------
    stages : tuple of StageStats
    """

    stages: tuple[StageStats, ...]


@dataclass(frozen=True)
class PreparedStage:
    """A stage with the rows of an index, on one backend."""

    representation: Representation
    rows: Rows
    shortlist: int | None


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
        At least one; all but the last with a shortlist.
    queries : ndarray of float32, shape (Q, D)
    k : int
        At most the largest of ``counts``.
    allowed : ndarray of bool, shape (N,) or (Q, N), or None
    counts : ndarray of int64, shape (Q,)
        Allowed rows per query.
    """
    found = Found.empty(len(queries), k, len(stages))
    widths = _widths(stages, k, int(counts.max()))
    head = stages[0]
    for first, last in _groups(len(queries), max(widths)):
        part = queries[first:last]
        own = allowed[first:last] if allowed is not None and allowed.ndim == 2 else allowed

        def scan(start: int, stop: int, part: F32 = part, own: Bool | None = own) -> Scan:
            mask = own[start:stop] if own is not None and own.ndim == 2 else own
            return head.representation.scan(backend, head.rows, part[start:stop], widths[0], mask)

        shown = None if progress is None else _share(progress, first, last, len(queries))
        raw, positions = run_scan(head.rows, scan, len(part), widths[0], threads=threads, progress=shown)
        found.scored[0, first:last] = counts[first:last]
        found.survivors[0, first:last] = (positions >= 0).sum(axis=1)
        if len(stages) > 1:
            _rescore(backend, stages, 1, part, widths, positions, found.part(first, last), threads)
        else:
            found.positions[first:last] = positions
            found.scores[first:last] = head.representation.estimates(backend, part, raw)
    return found


def run_on_candidates(
    backend: Backend, stages: Sequence[PreparedStage], queries: F32, k: int, candidates: Sequence[I64], *, threads: int | None = None
) -> Found:
    """Score each query's candidates with the last stage alone; ``k`` is at most the length of the longest list."""
    found = Found.empty(len(queries), k, len(stages))
    longest = max(map(len, candidates))
    for first, last in _groups(len(queries), longest):
        listed = np.full((last - first, max(map(len, candidates[first:last]))), -1, np.int64)
        for row, own in zip(listed, candidates[first:last], strict=True):
            row[: len(own)] = own
        _rescore(backend, stages, len(stages) - 1, queries[first:last], [k] * len(stages), listed, found.part(first, last), threads)
    return found


def _rescore(
    backend: Backend,
    stages: Sequence[PreparedStage],
    start: int,
    queries: F32,
    widths: Sequence[int],
    positions: I64,
    found: Found,
    threads: int | None,
) -> None:
    """Take candidates through the stages from ``start`` on, and write the answer."""
    for j in range(start, len(stages)):
        stage, width = stages[j], widths[j]
        candidates = positions
        raw = np.empty((len(queries), width), np.float32)
        positions = np.empty((len(queries), width), np.int64)

        def work(
            first: int,
            last: int,
            stage: PreparedStage = stage,
            width: int = width,
            candidates: I64 = candidates,
            raw: F32 = raw,
            positions: I64 = positions,
        ) -> None:
            raw[first:last], positions[first:last] = stage.representation.rescore(
                backend, stage.rows, queries[first:last], candidates[first:last], width
            )

        run_ranges(work, len(queries), threads=threads)
        found.scored[j] = (candidates >= 0).sum(axis=1)
        found.survivors[j] = (positions >= 0).sum(axis=1)
    found.positions[...] = positions
    found.scores[...] = stages[-1].representation.estimates(backend, queries, raw)


def _widths(stages: Sequence[PreparedStage], k: int, most: int) -> list[int]:
    """Rows per query that each stage hands on."""
    widths = []
    for stage in stages[:-1]:
        if stage.shortlist is None:
            raise ValueError(f"{stage.representation} has no shortlist")
        widths.append(min(most, max(stage.shortlist, k)))
    return [*widths, k]


def _groups(queries: int, width: int) -> Iterator[tuple[int, int]]:
    return ranges(queries, max(1, GROUP_BYTES // (16 * max(width, 1))))


def _share(progress: Progress, first: int, last: int, queries: int) -> Progress:
    """Progress of a group of queries as that of all."""
    return lambda done, total: progress(first + (last - first) * done // total, queries)
