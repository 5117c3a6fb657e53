"""How much is measured. ``ADAPTIVE_SEARCH_BENCH=quick`` shows in a minute or two that everything runs; its figures mean nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass

VARIABLE = "ADAPTIVE_SEARCH_BENCH"

RECALL_TOLERANCE = 0.002
"""Less recall than this is no difference."""


@dataclass(frozen=True)
class Settings:
    """Sizes, and seconds that one contender of one contest may take."""

    name: str
    rows: int
    many: int
    """Rows of what is measured far beyond the caches."""
    huge: int
    wide: int
    """Rows and dims of the largest collection, as many as ImageNet's images and as a ResNet-50 has outputs."""
    queries: int
    training: int
    """Rows that codebooks of contests are learnt from."""
    trained: int
    """Rows of the contest in learning them."""
    least_rounds: int
    most_rounds: int
    budget: float
    """A contender stops after its rounds took this long together, and no earlier than after `least_rounds`."""
    call: float
    """A contender that needs many times as long for all queries gets a part of them in every round."""
    pause: float
    """Before a call on several threads: idle threads of the contender before spin for a while before they sleep."""
    tries: int
    """Such a call is made again as long as others had the cores, but no more often."""


FULL = Settings("full", 200_000, 1_000_000, 1_281_167, 2048, 1000, 20_000, 50_000, 3, 15, 0.5, 0.3, 0.03, 10)
QUICK = Settings("quick", 12_000, 16_000, 16_000, 256, 200, 10_000, 1000, 2, 3, 0.01, 0.02, 0.005, 1)


def chosen() -> Settings:
    name = os.environ.get(VARIABLE, "") or FULL.name
    for settings in (FULL, QUICK):
        if settings.name == name:
            return settings
    raise ValueError(f"{VARIABLE}: expected {FULL.name!r} or {QUICK.name!r}, got {name!r}")


SETTINGS = chosen()
