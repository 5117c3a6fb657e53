"""The rows of an index in memory: chunks of columns, ids, and which rows are alive."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np

from .identifiers import IdMap
from .layout import CHUNK_ROWS, GROUP, Column, round_up
from .types import I64, Array, Bool


class Chunk:
    """Up to 65,536 consecutive rows: one array per column, of which the first ``rows`` rows are in use.

    ``segment`` is the file that holds exactly these rows, if there is one; such a chunk takes no more rows.
    """

    __slots__ = ("arrays", "capacity", "dead", "rows", "segment")

    def __init__(self, arrays: dict[str, Array], capacity: int, rows: int = 0, segment: Any = None) -> None:
        self.arrays = arrays
        self.capacity = capacity
        self.rows = rows
        self.dead = 0
        self.segment = segment


class Span(NamedTuple):
    """Local rows ``first <= i < last`` of a chunk, about to be added: they lie in its spare capacity until the commit."""

    chunk: Chunk
    first: int
    last: int


class _Layout(NamedTuple):
    """What a `RowStore` holds, as far as rewriting chunks changes it."""

    chunks: list[Chunk]
    starts: list[int]
    ids: I64
    alive: Bool
    ids_map: IdMap
    total: int


class RowStore:
    """Rows in order of adding. A row's *position* counts all rows of all chunks, dead ones included.

    Adding has two phases: ``stage`` finds room, the caller fills and encodes it, ``commit`` makes it count. What happens
    in between leaves the store as it was.

    Attributes
    ----------
    layout : int
        Changes whenever positions or arrays do (not when rows die): whoever keeps views of the arrays compares it.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = {column.name: column for column in columns}
        self.chunks: list[Chunk] = []
        self.layout = 0
        self.largest_id = -1
        self._starts: list[int] = []
        self._total = 0
        self._live = 0
        self._ids = np.empty(0, np.int64)
        self._alive = np.empty(0, np.bool_)
        self._map = IdMap()

    # --- looking -----------------------------------------------------------------------------------------------------
    @property
    def total(self) -> int:
        """Positions, dead rows included."""
        return self._total

    @property
    def live(self) -> int:
        return self._live

    @property
    def ids(self) -> I64:
        """The id at every position; a dead row's means nothing. A view."""
        return self._ids[: self._total]

    @property
    def alive(self) -> Bool | None:
        """Which positions are alive, as a view; None if all are."""
        return None if self._live == self._total else self._alive[: self._total]

    def live_positions(self) -> I64:
        return np.flatnonzero(self._alive[: self._total])

    def live_ids(self) -> I64:
        """A copy of the ids of the rows that are alive, in order of adding."""
        return self.ids[self._alive[: self._total]]

    def find(self, ids: I64) -> I64:
        """Positions of the given ids, -1 where there is no such row."""
        return self._map.find(ids, self.ids, self._alive)

    def chunk_ids(self) -> Iterator[I64]:
        """The ids of every chunk's rows, dead ones included."""
        for chunk, start in zip(self.chunks, self._starts, strict=True):
            yield self._ids[start : start + chunk.rows]

    def used(self, name: str) -> list[Array]:
        """One column over all chunks, as kernels see it."""
        column = self.columns[name]
        return [column.used(chunk.arrays[name], chunk.rows) for chunk in self.chunks]

    def gather(self, name: str, positions: I64) -> Array:
        """One number per row from a float column, at positions of any shape; NaN where the position is -1."""
        found = np.full(positions.shape, np.nan, self.columns[name].dtype)
        numbers = np.searchsorted(self._starts, positions, side="right") - 1
        for number in np.unique(numbers[numbers >= 0]).tolist():
            here = numbers == number
            found[here] = self.chunks[number].arrays[name][positions[here] - self._starts[number]]
        return found

    def row_bytes(self) -> int:
        """Bytes held per row: all columns with their padding, the id, and whether it is alive."""
        return sum(column.row_bytes for column in self.columns.values()) + 8 + 1 + self._map.row_bytes

    def split(self, positions: I64) -> Iterator[tuple[Chunk, slice, I64]]:
        """Rising positions by chunk: the chunk, which of the positions fall into it, and their local rows."""
        cuts = np.searchsorted(positions, [*self._starts, self._total])
        for chunk, start, first, last in zip(self.chunks, self._starts, cuts[:-1], cuts[1:], strict=True):
            if first < last:
                yield chunk, slice(int(first), int(last)), positions[first:last] - start

    # --- adding ------------------------------------------------------------------------------------------------------
    def stage(self, count: int) -> list[Span]:
        """Room for ``count`` more rows. The last chunk grows by doubling, so that adding one row at a time costs little."""
        spans = []
        tail = self.chunks[-1] if self.chunks else None
        if count and tail is not None and tail.segment is None and tail.rows < CHUNK_ROWS:
            taken = min(count, CHUNK_ROWS - tail.rows)
            self._reserve(tail, tail.rows + taken)
            spans.append(Span(tail, tail.rows, tail.rows + taken))
            count -= taken
        while count:
            taken = min(count, CHUNK_ROWS)
            spans.append(Span(self._new_chunk(taken), 0, taken))
            count -= taken
        return spans

    def extents(self, spans: Sequence[Span]) -> list[tuple[Chunk, int]]:
        """All chunks with the rows that each will have once ``spans`` are committed."""
        grown = {id(span.chunk): span.last for span in spans}
        old = [(chunk, grown.pop(id(chunk), chunk.rows)) for chunk in self.chunks]
        return old + [(span.chunk, span.last) for span in spans if id(span.chunk) in grown]

    def living(self, spans: Sequence[Span] = ()) -> Iterator[tuple[Chunk, I64]]:
        """Chunks with their local rows that are alive, then those of ``spans``."""
        for chunk, start in zip(self.chunks, self._starts, strict=True):
            yield chunk, np.flatnonzero(self._alive[start : start + chunk.rows])
        for chunk, first, last in spans:
            yield chunk, np.arange(first, last)

    def commit(self, spans: Sequence[Span], ids: I64) -> None:
        """Let the staged rows count. ``ids`` are valid and new.

        Everything that takes time, or memory, comes before the first change."""
        if not spans:
            return
        first, total = self._total, self._total + len(ids)
        self._make_room(total)
        self._ids[first:total] = ids
        self._alive[first:total] = True
        ids_map, latest, more = self._map.adding(ids, first, self._ids[:total], self._alive)
        chunks, starts = self.chunks.copy(), self._starts.copy()
        for chunk, start, last in spans:
            if start == 0:
                chunk.rows = last
                chunks.append(chunk)
                starts.append(first)
            first += last - start
        grown, _, rows = spans[0]
        largest_id = max(self.largest_id, int(ids.max()))
        # Plain assignments, between which Python delivers no Ctrl-C.
        grown.rows = rows
        self.chunks, self._starts, self._total, self._map, self.largest_id = chunks, starts, total, ids_map, largest_id
        self._live += len(ids)
        self.layout += 1
        latest |= more

    def exchanged(
        self, columns: Sequence[Column], arrays: Sequence[dict[str, Array]], dropped: Collection[str] = ()
    ) -> tuple[dict[str, Column], list[Chunk]]:
        """`columns` and `chunks` with whole new columns, one dict of arrays a chunk, and without those ``dropped``. Changes nothing here:
        the caller assigns both, and a new ``layout``."""
        kept = {name: column for name, column in self.columns.items() if name not in dropped}
        chunks = []
        for chunk, new in zip(self.chunks, arrays, strict=True):
            made = copy(chunk)
            made.arrays = {name: array for name, array in chunk.arrays.items() if name not in dropped} | new
            if made.arrays.keys() != chunk.arrays.keys() or new:
                made.segment = None
            chunks.append(made)
        return kept | {column.name: column for column in columns}, chunks

    def restore(self, chunks: Sequence[Chunk], ids: Sequence[I64], dead: I64, largest_id: int) -> None:
        """Fill an empty store with chunks read from files, their ids, and the rising positions that are dead."""
        self.chunks = list(chunks)
        self._starts = np.cumsum([0, *(chunk.rows for chunk in chunks)]).tolist()
        self._total = self._starts.pop()
        self._ids = np.concatenate([np.empty(0, np.int64), *ids])
        self._alive = np.ones(self._total, np.bool_)
        self._alive[dead] = False
        self._live = self._total - len(dead)
        for chunk, _, local in self.split(dead):
            chunk.dead = len(local)
        self.largest_id = largest_id
        self._map.rebuild(self.ids, self._alive)
        self.layout += 1

    def pad(self) -> None:
        """Fill the last group of 64 with dead zero rows, so that another chunk can follow the last one before it is full."""
        if self._total % GROUP == 0:
            return
        chunk = self.chunks[-1]
        first, last = chunk.rows, round_up(chunk.rows, GROUP)
        count = last - first
        for name, column in self.columns.items():
            column.write(chunk.arrays[name], first, np.zeros((count, column.width) if column.width else count, column.dtype))
        self._make_room(self._total + count)
        # Repeating an id keeps rising ids rising, and so the id map small.
        self._ids[self._total : self._total + count] = self._ids[self._total - 1]
        self._alive[self._total : self._total + count] = False
        self._total += count
        chunk.rows = last
        chunk.dead += count
        self.layout += 1

    # --- removing ----------------------------------------------------------------------------------------------------
    def kill(self, positions: I64) -> None:
        """Rows at the given positions, alive and each named once, die. A chunk that is mostly dead is rewritten.

        Everything that takes time, or memory, comes before the first change."""
        if len(positions) == 1:
            owners, counts = [bisect_right(self._starts, positions[0]) - 1], [1]
        else:
            found = np.unique(np.searchsorted(self._starts, positions, side="right") - 1, return_counts=True)
            owners, counts = found[0].tolist(), found[1].tolist()
        dying = dict(zip(owners, counts, strict=True))
        mostly_dead = [
            [owner]
            for owner, count in dying.items()
            if 2 * (self.chunks[owner].dead + count) > self.chunks[owner].rows and self.chunks[owner].rows > GROUP
        ]
        rewritten = None
        if mostly_dead:
            alive = self._alive.copy()
            alive[positions] = False
            rewritten = self._rewritten(mostly_dead, alive)
            dying = {owner: count for owner, count in dying.items() if [owner] not in mostly_dead}
        dead = [(chunk := self.chunks[owner], chunk.dead, count) for owner, count in dying.items()]
        try:
            for chunk, before, count in dead:
                chunk.dead = before + count
        except BaseException:
            for chunk, before, _ in dead:
                chunk.dead = before
            raise
        if rewritten is not None:
            self._install(rewritten, len(positions))
            return
        # Plain assignments, between which Python delivers no Ctrl-C.
        self._alive[positions] = False
        self._live -= len(positions)

    def dead_positions(self) -> I64:
        return np.flatnonzero(~self._alive[: self._total])

    def rewrite(self, runs: Sequence[Sequence[int]]) -> None:
        """Replace each run of adjacent chunks by new chunks of its rows that are alive. Runs rise and do not overlap."""
        self._install(self._rewritten(runs, self._alive), 0)

    # --- inside ------------------------------------------------------------------------------------------------------
    def _new_chunk(self, rows: int) -> Chunk:
        capacity = round_up(rows, GROUP)
        return Chunk({name: column.allocate(capacity) for name, column in self.columns.items()}, capacity)

    def _reserve(self, chunk: Chunk, rows: int) -> None:
        if rows <= chunk.capacity:
            return
        capacity = min(CHUNK_ROWS, round_up(max(rows, 2 * chunk.capacity), GROUP))
        grown = {}
        for name, old in chunk.arrays.items():
            grown[name] = self.columns[name].allocate(capacity)
            grown[name][: len(old)] = old
        chunk.arrays, chunk.capacity = grown, capacity
        # Views of the old arrays stay right until rows are added, so ``layout`` need not change here.

    def _make_room(self, total: int) -> None:
        if total > len(self._ids):
            capacity = max(total, len(self._ids) * 3 // 2, GROUP)
            ids, alive = np.zeros(capacity, np.int64), np.zeros(capacity, np.bool_)
            ids[: self._total], alive[: self._total] = self._ids[: self._total], self._alive[: self._total]
            self._ids, self._alive = ids, alive

    def _rewritten(self, runs: Sequence[Sequence[int]], alive: Bool) -> _Layout:
        """What `rewrite` would make, were ``alive`` the rows that are."""
        replaced = {run[0]: self._gather(run, alive) for run in runs}
        skipped = {j for run in runs for j in run[1:]}
        parts: list[tuple[Chunk, I64, Bool]] = []
        for j, chunk in enumerate(self.chunks):
            if j in replaced:
                parts += replaced[j]
            elif j not in skipped:
                places = slice(self._starts[j], self._starts[j] + chunk.rows)
                parts.append((chunk, self._ids[places], alive[places]))
        ids = np.concatenate([part[1] for part in parts]) if parts else np.empty(0, np.int64)
        living = np.concatenate([part[2] for part in parts]) if parts else np.empty(0, np.bool_)
        chunks = [part[0] for part in parts]
        starts = np.cumsum([0, *(chunk.rows for chunk in chunks)])[:-1].tolist()
        ids_map = IdMap()
        ids_map.rebuild(ids, living)
        return _Layout(chunks, starts, ids, living, ids_map, len(ids))

    def _install(self, new: _Layout, died: int) -> None:
        # Plain assignments, between which Python delivers no Ctrl-C.
        self.chunks, self._starts, self._ids, self._alive, self._map = new.chunks, new.starts, new.ids, new.alive, new.ids_map
        self._total = new.total
        self._live -= died
        self.layout += 1

    def _gather(self, run: Sequence[int], alive: Bool) -> list[tuple[Chunk, I64, Bool]]:
        """New chunks, whole groups of 64, of the living rows of some adjacent chunks."""
        first, last = self._starts[run[0]], self._starts[run[-1]] + self.chunks[run[-1]].rows
        living = np.flatnonzero(alive[first:last]) + first
        made = []
        for start in range(0, len(living), CHUNK_ROWS):
            positions = living[start : start + CHUNK_ROWS]
            chunk = self._new_chunk(len(positions))
            for source, places, local in self.split(positions):
                for name, column in self.columns.items():
                    column.write(chunk.arrays[name], places.start, column.read(source.arrays[name], local))
            chunk.rows = chunk.capacity
            chunk.dead = chunk.rows - len(positions)
            ids = np.full(chunk.rows, self._ids[positions[-1]])
            ids[: len(positions)] = self._ids[positions]
            made.append((chunk, ids, np.arange(chunk.rows) < len(positions)))
        return made
