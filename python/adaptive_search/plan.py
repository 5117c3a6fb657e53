"""What an index says about its searches: the plan it follows and what an audit measured."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from .calibration import wilson
from .representations import Stage
from .types import F64
from .validation import nearest_float


@dataclass(frozen=True)
class Plan:
    """How searches run, and what is known of their recall.

    Attributes
    ----------
    stages : tuple of stages
        What a search goes through.
    recall : float or None
        The recall that was asked for, or 1.0 if searches are exact; None if the cascade was given without one.
    k : int or None
        The k that it was asked for.
    certified : bool
        Whether ``recall`` is promised.
    why : str
        The reason if it is not.
    interval : tuple of float, or None
        Where the recall lies, if it was measured.
    n_queries : int or None
        Queries that it was measured with.
    cost_us : float or None
        Time per query in microseconds, if it was measured.
    bytes_per_row : int
        Held per row: vectors, norms, codes and id, with their padding.
    """

    stages: tuple[Stage, ...]
    recall: float | None
    k: int | None
    certified: bool
    why: str
    interval: tuple[float, float] | None
    n_queries: int | None
    cost_us: float | None
    bytes_per_row: int


class Audit(NamedTuple):
    """Recall measured against exact search.

    Attributes
    ----------
    recall : float
        Mean over the queries of the share of the true k neighbors, by id, that were found.
    low, high : float
        95% interval of the mean recall over queries like these: Wilson's score interval with one trial per query. A recall between
        0 and 1 varies no more than a coin of the same mean, so the interval is on the wide side, and does not shrink to a point when
        all queries agree.
    n : int
        Queries measured.
    """

    recall: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, recalls: F64) -> Audit:
        """From the recall of every query, of which there is at least one.

        Examples
        --------
        >>> audit = Audit.of(np.ones(100))
        >>> audit.recall, round(audit.low, 4), audit.high, audit.n
        (1.0, 0.963, 1.0, 100)
        """
        mean = float(recalls.mean())
        return cls(mean, *wilson(mean, len(recalls)), len(recalls))


def as_recall(value: Any) -> float:
    """A recall above 0 and up to 1."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (Real, np.number)):
        raise TypeError(f"recall: expected a number, got {value!r}")
    recall = nearest_float(value)
    if not 0.0 < recall <= 1.0:
        raise ValueError(f"recall: expected a number above 0 and up to 1, got {value!r}")
    return recall
