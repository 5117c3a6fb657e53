"""The cascade that `Index.build` picks: a table, not a promise."""

from __future__ import annotations

from .cascade import Cascade


def cascade(rows: int, dim: int, recall: float, k: int) -> Cascade | None:
    """A cascade for a collection of this size, None for exact search."""
    return None
