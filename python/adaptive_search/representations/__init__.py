"""Representations: what a row costs and tells at each price. A module each: the stage that users write, and the rows it stands for."""

from typing import Any

from .base import Bounded, Line, Representation, Stage, fitted, linked
from .binary import Binary
from .full import Full
from .int8 import Int8
from .lists import Lists
from .pq import PQ
from .prefix import Prefix
from .rabit import RaBit

__all__ = [
    "PQ",
    "STAGES",
    "Binary",
    "Bounded",
    "Full",
    "Int8",
    "Line",
    "Lists",
    "Prefix",
    "RaBit",
    "Representation",
    "Stage",
    "fitted",
    "linked",
    "stage_of",
]

STAGES: dict[str, type[Stage]] = {stage.__name__: stage for stage in (Lists, Binary, RaBit, PQ, Int8, Prefix, Full)}


def stage_of(spec: dict[str, Any]) -> Stage:
    """The stage that `Stage.spec` described; a `TypeError` or `ValueError` if there is none like that."""
    fields = dict(spec)
    name = fields.pop("stage", None)
    if not isinstance(name, str) or name not in STAGES:
        raise ValueError(f"no stage is called {name!r}")
    return STAGES[name](**fields)
