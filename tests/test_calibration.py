"""Conformal risk control: recall on fresh queries over many draws of calibration queries."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from adaptive_search.calibration import Calibration, chosen_margin, never_rising, queries_needed, wilson
from adaptive_search.margins import ErrorModel
from adaptive_search.running import Opening
from adaptive_search.types import F64


@pytest.mark.parametrize(("recall", "needed"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99), (0.999, 999)])
def test_queries_needed(recall: float, needed: int) -> None:
    assert queries_needed(recall) == needed
    zero = np.zeros(1)
    assert chosen_margin(zero, needed, recall) == 0
    if needed > 1:
        assert chosen_margin(zero, needed - 1, recall) is None


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 8))
def test_losses_never_rise_and_are_no_smaller(seed: int, queries: int, margins: int) -> None:
    losses = np.random.default_rng(seed).random((queries, margins))
    highest = never_rising(losses)
    assert (np.diff(highest, axis=1) <= 0).all()
    assert (highest >= losses).all()
    np.testing.assert_array_equal(highest[:, -1], losses[:, -1])


def simulated(losses: F64, recall: float, calibration: int, draws: int, seed: int = 0) -> tuple[float, float]:
    """Mean recall of fresh queries over draws of calibration queries from a pool, and its standard error."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        order = rng.permutation(len(losses))
        mine, fresh = order[:calibration], order[calibration:]
        place = chosen_margin(never_rising(losses[mine]).mean(axis=0), calibration, recall)
        found.append(1.0 if place is None else 1.0 - losses[fresh, place].mean())
    return float(np.mean(found)), float(np.std(found) / np.sqrt(draws))


@cache
def falling(monotone: bool) -> F64:
    """Losses in tenths, as of ten neighbours, that fall with the margin: by themselves, or with a bump now and then."""
    rng = np.random.default_rng(1)
    margins = np.linspace(0, 1, 80)
    hard = rng.beta(0.7, 2.0, (3000, 1))
    chance = np.clip(hard * 1.5 - margins, 0, 1)
    draws = rng.random((3000, 10, 1)) < chance[:, None, :]
    losses = draws.mean(axis=1)
    if not monotone:
        losses = np.maximum(losses, (rng.random(losses.shape) < 0.02) * 0.1 * (margins < 0.7))
    return losses


@pytest.mark.parametrize("recall", [0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("calibration", [100, 400])
@pytest.mark.parametrize("monotone", [True, False])
def test_the_recall_is_kept_in_the_mean_and_not_wastefully(recall: float, calibration: int, monotone: bool) -> None:
    mean, error = simulated(falling(monotone), recall, calibration, 300)
    assert mean >= recall - 3 * error
    assert mean <= recall + 2.0 / (calibration + 1) + (0.012 if monotone else 0.04)


MODEL = ErrorModel(0.1, 0.9, 0.02)
CALIBRATION = Calibration(0.9, 10, (MODEL, None), Opening(32, 100), (-1.0, 0.5, 2.0), (0.3, 0.08, 0.01), 200, True, 12.5)


def test_a_calibration_chooses_margins() -> None:
    assert CALIBRATION.margin(0.9) == 0.5
    assert CALIBRATION.margin(0.95) == 2.0
    assert math.isinf(CALIBRATION.margin(0.99))
    assert CALIBRATION.interval(0.99) == (1.0, 1.0)
    low, high = CALIBRATION.interval(0.9)
    assert low == pytest.approx(0.8740, abs=1e-4)  # Wilson's, for 184 of 200
    assert high == pytest.approx(0.9502, abs=1e-4)
    # Queries that lose nothing do not prove that none ever will.
    assert replace(CALIBRATION, losses=(0.0, 0.0, 0.0)).interval(0.9) == pytest.approx((0.9812, 1.0), abs=1e-4)
    with pytest.raises(ValueError, match="at least 999 calibration queries"):
        CALIBRATION.margin(0.999)


def test_a_calibration_as_json() -> None:
    values = CALIBRATION.to_json()
    assert Calibration.from_json(values, 2) == CALIBRATION
    # Files written before lists had lengths.
    assert Calibration.from_json({name: value for name, value in values.items() if name != "spare"}, 2).opening == Opening(32)


@pytest.mark.parametrize(
    "damage",
    [
        {"models": [[0.1, -0.9, 0.02], None]},
        {"models": [None]},
        {"margins": [2.0, 0.5, -1.0]},
        {"margins": [0.0]},
        {"losses": [0.3, 0.08, 1.5]},
        {"losses": [0.3, 0.08, "x"]},
        {"recall": 0.0},
        {"k": 0},
        {"k": 2.5},
        {"share": 0},
        {"spare": 0},
        {"queries": -1},
        {"cost_us": float("nan")},
        {"cost_us": 10**400},
    ],
    ids=str,
)
def test_a_damaged_calibration(damage: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        Calibration.from_json(CALIBRATION.to_json() | damage, 2)


def test_a_line_is_fitted() -> None:
    rng = np.random.default_rng(0)
    keys = rng.standard_normal(2000)
    model = ErrorModel.fitted(keys, 3 + 2 * keys + 0.1 * rng.standard_normal(2000))
    assert model.intercept == pytest.approx(3, abs=0.02)
    assert model.slope == pytest.approx(2, abs=0.02)
    assert model.deviation == pytest.approx(0.1, abs=0.01)
    # Keys that say nothing still give a model that can be used.
    for keys, scores in ((np.zeros(5), np.ones(5)), (np.arange(5.0), -np.arange(5.0)), (np.empty(0), np.empty(0))):
        assert ErrorModel.fitted(keys, scores).slope > 0
        assert ErrorModel.fitted(keys, scores).deviation > 0


@pytest.mark.parametrize("mean", [0.0, 0.3, 1.0])
def test_an_interval_holds_its_mean(mean: float) -> None:
    for count in range(1, 3_000):
        low, high = wilson(mean, count)
        assert 0.0 <= low <= mean <= high <= 1.0
