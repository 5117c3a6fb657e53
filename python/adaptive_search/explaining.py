"""Why a search finds a row, or does not: stage by stage."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from .running import PreparedStage, Segment, run, segments_of
from .searching import Way
from .types import F32, I64, Bool


class StageTrace(NamedTuple):
    """One stage's view of a row.

    Attributes
    ----------
    stage : str
    estimate : float
        Of the row's score. An adaptive stage's is what the score may be at most, margin included, with the sign that makes larger ones
        better.
    needed : float
        What `estimate` must reach for the row to go on, on the same scale.
    kept : bool
        Whether it goes on; an estimate as good as what is needed may still lose to a smaller id.
    """

    stage: str
    estimate: float
    needed: float
    kept: bool


class Explanation(NamedTuple):
    """What became of a row in a search.

    Attributes
    ----------
    id : int
    found : bool
        Whether it is among the k best of the search.
    score : float
        Its exact score.
    rank : int or None
        Its place in exact search, 1 for the best; None beyond the first 1,000.
    lost_at : str or None
        The stage that dropped it, if it was not found.
    stages : tuple of StageTrace
        As far as it came.
    """

    id: int
    found: bool
    score: float
    rank: int | None
    lost_at: str | None
    stages: tuple[StageTrace, ...]


RANKS = 1_000


def explain(
    way: Way, full: PreparedStage, query: F32, position: int, id_: int, k: int, run_k: int, alive: Bool | None, living: int
) -> Explanation:
    """Follow the row at a position through a search for the k best of one query (1, D), which are the first of ``run_k``."""
    counts = np.array([living])
    row = np.array([[position]])
    score = float(full.representation.rescore(way.backend, full.rows, query, row, 1)[0][0, 0])
    best = run(way.backend, [full], query, min(living, max(RANKS, k)), alive, counts).positions[0]
    place = int(np.append(np.flatnonzero(best == position), living)[0])
    rank = place + 1 if place < RANKS else None
    if way.bounds:
        found = place < k
        trace = StageTrace("Full()", score, _score_at(way, full, query, best[min(k, living) - 1]), found)
        return Explanation(id_, found, score, rank, None if found else "Full()", (trace,))
    traces: list[StageTrace] = []
    listed: I64 | None = None
    kept = True
    segments = segments_of(way.stages, min(run_k, living), living)
    for segment in segments:
        stages = way.stages[: segment.last + 1]
        # What the segment hands on: the search cut off after it.
        ends = (*stages[:-1], replace(stages[-1], shortlist=None))
        listed = run(way.backend, ends, query, segment.width, alive, counts).positions
        for trace in _traces(way, segment, query, row, listed, k if segment is segments[-1] else segment.width):
            traces.append(trace)
            kept = trace.kept
            if not kept:
                break
        if not kept:
            break
    return Explanation(id_, kept, score, rank, None if kept else traces[-1].stage, tuple(traces))


def _score_at(way: Way, stage: PreparedStage, query: F32, position: int) -> float:
    return float(stage.representation.rescore(way.backend, stage.rows, query, np.array([[position]]), 1)[0][0, 0])


def _traces(way: Way, segment: Segment, query: F32, row: I64, listed: I64, k: int) -> list[StageTrace]:
    """The stages of a segment, whose answer is ``listed``, of which the first ``k`` go on."""
    *adaptive, judge = way.stages[segment.first : segment.last + 1]
    names = way.names[segment.first : segment.last + 1]
    found = []
    if adaptive:
        levels = [stage.level(way.backend, query) for stage in (*adaptive, judge)]
        least = float(way.backend.cascade_rescore([level for level, _ in levels[:-1]], levels[-1][0], listed, None, segment.width)[2][0])
        for stage, (_, bound), name in zip(adaptive, levels, names, strict=False):
            key = _score_at(way, stage, query, row[0, 0]) * (1.0 if stage.representation.largest else -1.0)
            upper = float(bound.of(np.array([[key]]))[0, 0])
            found.append(StageTrace(name, upper, least, not upper < least))
    raw = judge.representation.rescore(way.backend, judge.rows, query, row, 1)[0]
    listed = listed[:, :k]
    last = listed[0][listed[0] >= 0][-1]
    needed = judge.representation.rescore(way.backend, judge.rows, query, np.array([[last]]), 1)[0]
    estimate, least_raw = (float(judge.representation.estimates(way.backend, query, value)[0, 0]) for value in (raw, needed))
    found.append(StageTrace(names[-1], estimate, least_raw, bool((listed == row).any())))
    return found
