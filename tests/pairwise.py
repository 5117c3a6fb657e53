"""Grids of parameters that are not whole products."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any


def pairwise(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """One value of each axis at a time, so that any two values of different axes meet: what fails, fails for one value or two together."""
    if len(axes) < 2:
        raise ValueError("axes: expected at least two: without a pair no test would run")
    product = itertools.product(*(range(len(axis)) for axis in axes))
    pairs = {places: frozenset(itertools.combinations(enumerate(places), 2)) for places in product}
    missing = set().union(*pairs.values())
    chosen = []
    while missing:
        best = max(pairs, key=lambda places: len(pairs[places] & missing))
        missing -= pairs[best]
        chosen.append(tuple(axis[place] for axis, place in zip(axes, best, strict=True)))
    return chosen
