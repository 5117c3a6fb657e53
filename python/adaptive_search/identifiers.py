"""From user ids to row positions."""

from __future__ import annotations

import numpy as np

from .types import I64, Bool

TAIL_LIMIT = 65_536
"""Ids kept in a dict before they are merged into the sorted arrays: a merge copies every id, a dict entry takes some 100 bytes."""


class IdMap:
    """Finds the position of an id.

    While ids rise with positions, as automatic ones do, the ids themselves are the map and nothing is held here. Otherwise
    they are kept sorted, with a dict for those added last.
    """

    def __init__(self) -> None:
        # (sorted ids, their positions, latest ids) or None while ids rise. Replaced as a whole, so that concurrent searches,
        # which may merge the dict, always see a consistent one.
        self._state: tuple[I64, I64, dict[int, int]] | None = None

    @property
    def row_bytes(self) -> int:
        return 0 if self._state is None else 16

    def find(self, wanted: I64, ids: I64, alive: Bool) -> I64:
        """Positions of ``wanted``, -1 where there is no living row; ``ids`` and ``alive`` by position."""
        if self._state is None:
            return _look_up(wanted, ids, None, alive)
        keys, positions, tail = self._state
        if len(wanted) > len(tail) > 0:
            self._merge()
            keys, positions, tail = self._state
        found = _look_up(wanted, keys, positions, alive)
        if tail:
            latest = np.fromiter((tail.get(i, -1) for i in wanted.tolist()), np.int64, len(wanted))
            latest[latest >= 0] = np.where(alive[latest[latest >= 0]], latest[latest >= 0], -1)
            # An id that was removed and added again is found in both: a living row wins, and there is only one.
            found = np.maximum(found, latest)
        return found

    def adding(self, new: I64, first: int, ids: I64, alive: Bool) -> tuple[IdMap, dict[int, int], dict[int, int]]:
        """``new`` ids will have the positions from ``first`` on; ``ids`` and ``alive`` already hold them.

        The map that then finds them, once the second dict has been put into the first, which is its own. Nothing changes here.
        """
        if self._state is None:
            rising = (first == 0 or new[0] > ids[first - 1]) and bool((new[1:] > new[:-1]).all())
            if rising:
                return self, {}, {}
        elif len(new) <= TAIL_LIMIT:
            if len(self._state[2]) > TAIL_LIMIT:
                self._merge()
            return self, self._state[2], dict(zip(new.tolist(), range(first, first + len(new)), strict=True))
        made = IdMap()
        made.rebuild(ids, alive)
        return made, {}, {}

    def rebuild(self, ids: I64, alive: Bool) -> None:
        """Start anew from all ids."""
        # Equal neighbours happen where dead rows repeat an id, and are harmless if the first is the one that may live.
        equal = ids[1:] == ids[:-1]
        if bool((ids[1:] >= ids[:-1]).all()) and not bool(alive[1 : len(ids)][equal].any()):
            self._state = None
            return
        positions = np.flatnonzero(alive[: len(ids)])
        order = np.argsort(ids[positions], kind="stable")
        self._state = (ids[positions][order], positions[order], {})

    def _merge(self) -> None:
        if self._state is None:
            return
        keys, positions, tail = self._state
        keys = np.concatenate([keys, np.fromiter(tail.keys(), np.int64, len(tail))])
        positions = np.concatenate([positions, np.fromiter(tail.values(), np.int64, len(tail))])
        order = np.argsort(keys, kind="stable")
        keys, positions = keys[order], positions[order]
        # Of an id that was removed and added again only the latest counts.
        last = np.append(keys[1:] != keys[:-1], True)
        self._state = (keys[last], positions[last], {})


def _look_up(wanted: I64, keys: I64, positions: I64 | None, alive: Bool) -> I64:
    if not len(keys):
        return np.full(len(wanted), -1, np.int64)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found = places if positions is None else positions[places]
    return np.where((keys[places] == wanted) & alive[found], found, -1)
