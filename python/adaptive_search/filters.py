"""Which rows each query of a search may find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .rows import RowStore
from .types import I64, Bool
from .validation import as_id_list, as_ndarray


@dataclass(frozen=True)
class Allowed:
    """The allowed rows of one query, or of all: their positions, or a mask over the rows that are alive."""

    store: RowStore
    listed: I64 | None
    mask: Bool | None

    @property
    def count(self) -> int:
        if self.listed is not None:
            return len(self.listed)
        return self.store.live if self.mask is None else int(np.count_nonzero(self.mask))

    def positions(self) -> I64:
        """Rising positions of the allowed rows."""
        if self.listed is not None:
            return self.listed
        living = self.store.live_positions()
        return living if self.mask is None else living[self.mask]

    def by_position(self) -> Bool | None:
        """A mask over all positions, dead ones included; None if every one is allowed."""
        if self.listed is None and (self.mask is None or self.store.alive is None):
            return self.store.alive if self.mask is None else self.mask
        mask = np.zeros(self.store.total, np.bool_)
        mask[self.positions()] = True
        return mask


def resolve(value: Any, store: RowStore, queries: int) -> Allowed | list[Allowed]:
    """A user's filter: one for all queries, or a list of one for each.

    Raises
    ------
    TypeError, ValueError
        Naming ``filter``.
    """
    if value is None:
        return Allowed(store, None, None)
    many = isinstance(value, np.ndarray) and value.ndim == 2
    if many or (isinstance(value, Sequence) and any(as_ndarray(item, "filter").ndim > 0 for item in value)):
        if len(value) != queries:
            raise ValueError(f"filter: expected one filter for each of {queries} queries, got {len(value)}")
        return [_resolve_one(item, store, f"filter[{number}]") for number, item in enumerate(value)]
    return _resolve_one(value, store, "filter")


def _resolve_one(value: Any, store: RowStore, name: str) -> Allowed:
    array = as_ndarray(value, name)
    if array.dtype == np.bool_:
        if array.shape != (store.live,):
            raise ValueError(f"{name}: expected ids, or shape ({store.live},) like index.ids, got bools of shape {array.shape}")
        return Allowed(store, None, np.ascontiguousarray(array))
    found = np.unique(store.find(as_id_list(array, name)))
    return Allowed(store, found[found >= 0], None)
