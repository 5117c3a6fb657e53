"""Conformal risk control: from losses on calibration queries to the margin that keeps the expected loss below a limit.

A. N. Angelopoulos, S. Bates, A. Fisch, L. Lei, T. Schuster, "Conformal risk control", ICLR 2024: for losses in [0, 1] that do not rise with
the margin, the smallest margin with n/(n+1) * (mean loss) + 1/(n+1) <= alpha has an expected loss of at most alpha on a further query, over
the draw of that query and of the calibration queries, if all are exchangeable.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np

from .margins import ErrorModel
from .running import Opening
from .types import F64
from .validation import nearest_float

Z95 = 1.959963984540054
"""Two-sided 95% of the normal distribution."""


def queries_needed(recall: float) -> int:
    """The least number of calibration queries with which a recall below 1 can be promised.

    Examples
    --------
    >>> queries_needed(0.9), queries_needed(0.95), queries_needed(0.9999)
    (9, 19, 9999)
    """
    return max(1, math.ceil((1.0 - 1e-9) / (1.0 - recall)) - 1)


def never_rising(losses: F64) -> F64:
    """Per query (n, L) the largest loss at each margin or any larger one; margins rise along the last axis."""
    highest: F64 = np.maximum.accumulate(losses[:, ::-1], axis=1)[:, ::-1]
    return highest


def chosen_margin(mean_losses: F64, queries: int, recall: float) -> int | None:
    """The place of the smallest margin that controls the loss; None if none of them does.

    Examples
    --------
    >>> chosen_margin(np.array([0.3, 0.08, 0.02, 0.0]), 99, 0.95)
    2
    """
    allowed = (1.0 - recall) * (queries + 1) - 1.0
    good = np.flatnonzero(np.asarray(mean_losses) * queries <= allowed + 1e-9)
    return int(good[0]) if len(good) else None


def wilson(mean: float, count: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a mean of ``count`` numbers between 0 and 1.

    They vary no more than a coin of the same mean, so the interval is on the wide side, and does not shrink to a point when all agree.
    """
    weight = Z95 * Z95 / count
    centre = (mean + weight / 2) / (1 + weight)
    half = Z95 * math.sqrt(mean * (1 - mean) / count + weight / (4 * count)) / (1 + weight)
    # At 0 and 1 an end is the mean itself, but for rounding.
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


@dataclass(frozen=True)
class Calibration:
    """What `Index.tune` learned: how far stages may err, and what recall each margin gave on the calibration queries.

    Attributes
    ----------
    recall, k
        What was asked for.
    models : tuple of ErrorModel or None
        For every stage that is adaptive.
    opening : Opening
        How a search finds its first thresholds.
    margins : tuple of float
        The grid, rising.
    losses : tuple of float
        Mean over the calibration queries of 1 - recall@k, at each margin or any larger one.
    queries : int
        Calibration queries; 0 if the plan has no margin to calibrate.
    given : bool
        Whether they were the user's own.
    cost_us : float
        Time per query of a batch, measured with the tuning queries.
    """

    recall: float
    k: int
    models: tuple[ErrorModel | None, ...]
    opening: Opening
    margins: tuple[float, ...]
    losses: tuple[float, ...]
    queries: int
    given: bool
    cost_us: float

    def margin(self, recall: float) -> float:
        """The smallest margin for a recall; infinite if only exact search reaches it.

        Raises
        ------
        ValueError
            If there were too few calibration queries for it.
        """
        needed = queries_needed(recall)
        if self.queries < needed:
            raise ValueError(f"recall: {recall} needs at least {needed} calibration queries, tune() had {self.queries}")
        place = chosen_margin(np.array(self.losses), self.queries, recall)
        return math.inf if place is None else self.margins[place]

    def interval(self, recall: float) -> tuple[float, float]:
        """Where the recall of the plan with this margin lies, with 95% confidence: see `wilson`."""
        margin = self.margin(recall)
        if math.isinf(margin):
            return 1.0, 1.0
        return wilson(1.0 - self.losses[self.margins.index(margin)], self.queries)

    def to_json(self) -> dict[str, Any]:
        values = asdict(self) | self.opening._asdict() | {"models": [None if model is None else list(model) for model in self.models]}
        del values["opening"]
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any], stages: int) -> Self:
        """Check what a file says; a `TypeError` or `ValueError` if it cannot be what `to_json` wrote."""
        models = tuple(None if model is None else ErrorModel(*map(_number, model)) for model in values["models"])
        margins, losses = (tuple(map(_number, values[name])) for name in ("margins", "losses"))
        made = cls(
            _number(values["recall"]),
            _count(values["k"]),
            models,
            Opening(_count(values["share"]), _count(values.get("spare", Opening().spare))),
            margins,
            losses,
            _count(values["queries"], 0),
            bool(values["given"]),
            _number(values["cost_us"]),
        )
        if len(models) != stages or len(margins) != len(losses):
            raise ValueError("a calibration of other stages")
        if not 0.0 < made.recall <= 1.0 or any(b <= a for a, b in pairwise(margins)):
            raise ValueError("a calibration whose margins do not rise")
        if any(model is not None and not (model.slope > 0 and model.deviation > 0) for model in models):
            raise ValueError("a calibration whose slopes are not positive")
        if any(not 0.0 <= loss <= 1.0 for loss in losses):
            raise ValueError("a calibration whose losses are not between 0 and 1")
        return made


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(nearest_float(value)):
        raise TypeError(f"expected a finite number, got {value!r}")
    return float(value)


def _count(value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 31:
        raise TypeError(f"expected a count, got {value!r}")
    return value
