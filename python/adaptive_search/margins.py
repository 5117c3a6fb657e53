"""How far a stage's estimates are from scores: what is fitted on tuning queries, and the bounds that follow."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .backends.protocol import Bound
from .types import F64

LEAST_CORRELATION = 0.01
"""Of keys with scores: less than this is chance."""


class Units(NamedTuple):
    """The scales on which a stage's keys and scores are compared for queries of any length: (Q,) each, or one number for all.

    ``(score + shift) / unit`` is a straight line of ``key / key_unit``, up to an error that is alike for all queries.
    """

    shift: F64 | float
    unit: F64 | float
    key_unit: F64 | float

    def compared(self, keys: F64, scores: F64) -> tuple[F64, F64]:
        """Keys and scores (Q, C) on these scales."""
        shift, unit, key_unit = (np.reshape(number, (-1, 1)) for number in self)
        return keys / key_unit, (scores + shift) / unit

    def estimated(self) -> Bound:
        """Scores as keys estimate them, without an error."""
        return Bound(-self.shift, self.unit / self.key_unit)


class ErrorModel(NamedTuple):
    """A straight line from a stage's keys to scores, in `Units`, and how far scores are from it.

    Attributes
    ----------
    intercept, slope : float
    deviation : float
        Standard deviation of scores around the line.
    """

    intercept: float
    slope: float
    deviation: float

    @classmethod
    def fitted(cls, keys: F64, scores: F64) -> ErrorModel:
        """The line of least squares of keys over scores: rows are chosen by their scores, which leaves errors of keys as they are, and
        would make a line of scores over keys as flat as the choice is narrow.

        Examples
        --------
        >>> model = ErrorModel.fitted(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0]))
        >>> round(model.intercept, 6), round(model.slope, 6), model.deviation < 1e-6
        (1.0, 2.0, True)
        """
        if not len(keys):
            return cls(0.0, 1.0, 1.0)
        centre, level = float(keys.mean()), float(scores.mean())
        spread, of_keys = float(np.square(scores - level).mean()), float(np.square(keys - centre).mean())
        together = float(((keys - centre) * (scores - level)).mean())
        # Estimates that say nothing, or the contrary: nearly every row then stays within the margin.
        slope = spread / together if together > LEAST_CORRELATION * math.sqrt(spread * of_keys) else 1e-6
        rest = scores - level - slope * (keys - centre)
        deviation = max(float(np.sqrt(np.square(rest).mean())), 1e-7)
        return cls(level - slope * centre, slope, deviation)

    def raised(self, margins: float) -> float:
        """The intercept of a line so many deviations above this one."""
        return self.intercept + margins * self.deviation

    def bound(self, units: Units, margins: float) -> Bound:
        """Scores up to so many deviations above the line."""
        return Bound(units.unit * self.raised(margins) - units.shift, self.slope * units.unit / units.key_unit)
