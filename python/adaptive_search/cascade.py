"""Cascades: a list of stages, and what a search through them counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .representations import PQ, Full, Lists, Stage
from .types import I64


class Cascade:
    """Stages from cheap to dear. Each scores what the one before has kept; the last one's scores are the answer's.

    A stage with ``keep`` hands on as many rows of each query (or k, if that is more). Without, it hands on, query by query, the rows whose
    estimate plus a margin can still be among the best of what comes next: the next stage with ``keep``, or the last. `Index.tune` learns
    the margins. A last stage with ``keep`` hands over to `Full`, which is then added. Without ``keep`` its estimates are the scores of the
    answer.

    Parameters
    ----------
    stages : sequence of stages
        Any number of `Binary`, `RaBit`, `PQ`, `Int8` and `Prefix`; `Full` only as the last; `Lists` only as the first, before a `PQ`
        without ``keep`` that is not the last.

    Attributes
    ----------
    stages : tuple of stages

    Raises
    ------
    TypeError, ValueError
        If there is no stage, something that is no stage, `Full` before the end, or `Lists` anywhere but there.

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
                raise TypeError(f"stages: expected Lists, Binary, RaBit, PQ, Int8, Prefix or Full objects, got {stage!r}")
        if any(isinstance(stage, Full) for stage in given[:-1]):
            raise ValueError(f"stages: expected Full(), which scores exactly, only as the last one, got {list(given)}")
        if given[-1].shortlist is not None:
            given += (Full(),)
        if any(isinstance(stage, Lists) for stage in given[1:]) or (isinstance(given[0], Lists) and not _is_listed(given[1:])):
            raise ValueError(f"stages: expected Lists only first, before a PQ without keep that is not the last, got {list(given)}")
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


def _is_listed(stages: Sequence[Stage]) -> bool:
    """Whether the codes of the first stage can be kept in the order of lists."""
    return len(stages) > 1 and isinstance(stages[0], PQ) and stages[0].keep is None


class StageStats(NamedTuple):
    """What one stage did for every query.

    Attributes
    ----------
    stage : str
    scored : ndarray of int64, shape (Q,)
        Rows that it scored; one that was scored twice, for a first threshold and in the scan, counts twice. `Lists` score all rows.
        Rows that a filter leaves out count only in blocks that the last stage scans whole, because too many rows of them survived.
    survivors : ndarray of int64, shape (Q,)
        Rows that it handed on: to the next stage, or as the answer. Blocks of rows that the last stage scans whole pass the others by.
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
