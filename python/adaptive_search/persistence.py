"""An index as files: which arrays go into which segment, and what the manifest says of the rest.

A chunk of rows is a segment. When its rows die the file stays, and the array ``positions`` of the file ``deletions`` names them; a
chunk that is mostly dead, or small beside its neighbours, is written anew.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from .calibration import Calibration
from .cascade import Cascade
from .layout import CHUNK_ROWS, GROUP, round_up
from .plan import as_recall
from .representations import Representation, stage_of
from .rows import Chunk, RowStore
from .storage import NewSegment, State, StoredSegment, segments_to_merge, verify_state, write_state
from .transforms import Transform, transform_of
from .types import I64, MAX_DIM, IndexFormatError, Kind, Metric
from .validation import as_int, as_kind, as_metric

LARGE_CHUNK = CHUNK_ROWS // 2
"""Chunks from here on are not merged with their neighbours: two of them would not fit into one."""

TRANSFORMED = 2
"""Format version of an index with a transform: readers of version 1 would search it without."""


@dataclass(frozen=True)
class Files:
    """Where an index was saved to or opened from last, and the arrays beside its rows that are there."""

    path: Path
    parts: tuple[Representation, ...]
    transform: Transform | None
    content: State

    def verify(self) -> None:
        """Check every byte."""
        verify_state(self.path)


@dataclass(frozen=True)
class Description:
    """What the manifest says of an index beside its rows: the arguments it was made with, and where it stands.

    Attributes
    ----------
    fitted : bool
        Whether rows are encoded.
    largest_id : int
        Ever used; -1 if none was.
    asked : tuple of float and int, or None
        Recall and k that `Index.build` was asked for.
    tuned : Calibration or None
        What `Index.tune` learned.
    changed : int
        Rows added or removed since.
    chosen : bool
        Whether the cascade is up to `Index.tune`.
    transform : dict or None
        The `Transform.spec` of the transform.
    """

    dim: int
    metric: Metric
    dtype: Kind
    cascade: Cascade | None
    fit_rows: int
    fitted: bool
    largest_id: int
    asked: tuple[float, int] | None
    tuned: Calibration | None = None
    changed: int = 0
    chosen: bool = False
    transform: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "dim": self.dim,
            "metric": self.metric,
            "dtype": self.dtype,
            "cascade": None if self.cascade is None else [stage.spec() for stage in self.cascade.stages],
            "fit_rows": self.fit_rows,
            "fitted": self.fitted,
            "largest_id": self.largest_id,
            "asked": None if self.asked is None else list(self.asked),
            "tuned": None if self.tuned is None else self.tuned.to_json(),
            "changed": self.changed,
            "chosen": self.chosen,
            **({} if self.transform is None else {"transform": self.transform}),
        }

    @classmethod
    def from_json(cls, meta: dict[str, Any]) -> Self:
        """Check everything that a file says; whatever is not as `to_json` writes it is an `IndexFormatError`."""
        try:
            stages, asked = meta["cascade"], meta["asked"]
            if type(meta["fitted"]) is not bool:
                raise ValueError(f"fitted is {meta['fitted']!r}")
            cascade = None if stages is None else Cascade([stage_of(stage) for stage in stages])
            tuned = meta.get("tuned")
            return cls(
                as_int(meta["dim"], "dim", 1, MAX_DIM),
                as_metric(meta["metric"]),
                as_kind(meta["dtype"]),
                cascade,
                as_int(meta["fit_rows"], "fit_rows", 0),
                meta["fitted"],
                as_int(meta["largest_id"], "largest_id", -1, np.iinfo(np.int64).max),
                None if asked is None else (as_recall(asked[0]), as_int(asked[1], "k", 1)),
                None if tuned is None else Calibration.from_json(tuned, 1 if cascade is None else len(cascade.stages)),
                as_int(meta.get("changed", 0), "changed", 0, np.iinfo(np.int64).max),
                bool(meta.get("chosen", cascade is None)),
                meta.get("transform"),
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise IndexFormatError(f"the manifest does not describe an index: {error}") from None


def write(
    path: str | os.PathLike[str],
    description: Description,
    transform: Transform | None,
    parts: Sequence[Representation],
    store: RowStore,
    before: Files | None,
) -> Files:
    """Save rows and what was learned; what ``before`` has in the same directory and is still right is not written again."""
    _tidy(store)
    segments: list[NewSegment | StoredSegment] = []
    for chunk, ids in zip(store.chunks, store.chunk_ids(), strict=True):
        arrays = {name: store.columns[name].held(array, chunk.rows) for name, array in chunk.arrays.items()}
        segments.append(chunk.segment or NewSegment(arrays | {"ids": ids}, chunk.rows))
    aux: dict[str, NewSegment | StoredSegment] = {}
    for number, part in enumerate(parts):
        name = f"stage_{number}"
        if before is not None and any(part is own for own in before.parts[number : number + 1]) and name in before.content.aux:
            aux[name] = before.content.aux[name]
        elif state := part.state():
            aux[name] = NewSegment(state)
    if transform is not None and (learned := transform.state()):
        same = before is not None and before.transform is transform and "transform" in before.content.aux
        aux["transform"] = before.content.aux["transform"] if before is not None and same else NewSegment(learned)
    dead = store.dead_positions()
    kept = before.content.aux["deletions"] if before is not None else None
    aux["deletions"] = kept if kept is not None and np.array_equal(kept.arrays["positions"], dead) else NewSegment({"positions": dead})

    version = 1 if transform is None else TRANSFORMED
    content = write_state(path, segments, aux=aux, meta=description.to_json(), version=version)
    for chunk, segment in zip(store.chunks, content.segments, strict=True):
        chunk.segment = segment
    return Files(Path(path).absolute(), tuple(parts), transform, content)


def _tidy(store: RowStore) -> None:
    """Merge small chunks with their neighbours, and drop the dead rows of those that must be written anyway."""
    store.pad()
    live = [chunk.rows - chunk.dead for chunk in store.chunks]
    # Dead rows that only fill up the last group of 64 would be there again after a rewrite.
    least = [round_up(count, GROUP) for count in live]
    rows = [count if chunk.rows == padded else chunk.rows for chunk, count, padded in zip(store.chunks, live, least, strict=True)]
    runs = segments_to_merge(rows, live, large=LARGE_CHUNK)
    merged = {number for run in runs for number in run}
    for number, chunk in enumerate(store.chunks):
        if number not in merged and chunk.segment is None and least[number] < chunk.rows:
            runs.append(range(number, number + 1))
    if runs:
        store.rewrite(sorted(runs, key=lambda run: run[0]))


def restore_transform(content: State, description: Description) -> Transform | None:
    """The transform of an index, fitted if it was."""
    stored = content.aux.get("transform")
    if description.transform is None:
        if stored is not None:
            raise IndexFormatError(f"{stored.entry.file} holds a transform that the manifest does not describe")
        return None
    try:
        transform = transform_of(description.transform, {} if stored is None else stored.arrays)
    except (TypeError, ValueError) as error:
        raise IndexFormatError(f"the manifest and the files do not give the transform: {error}") from None
    if content.segments and not transform.fitted:
        raise IndexFormatError("the index holds rows, but not what their transform has learned")
    return transform


def restore(content: State, description: Description, parts: Sequence[Representation], store: RowStore) -> tuple[Representation, ...]:
    """Fill an empty store from files, and return the representations as learned."""
    learned: tuple[Representation, ...] = ()
    for number, part in reversed(list(enumerate(parts))):
        known = part.before(learned[0]) if learned else part
        learned = (_learned(known, content.aux.get(f"stage_{number}")), *learned)
    if all(part.fitted for part in learned) != description.fitted:
        raise IndexFormatError("the manifest and the files differ about what was learned")
    if description.fitted:
        store.columns |= {column.name: column for part in learned for column in part.columns}
    chunks, ids = [], []
    for segment in content.segments:
        chunk, own = _chunk(segment, store)
        chunks.append(chunk)
        ids.append(own)
    positions = _deletions(content.aux.get("deletions"), sum(chunk.rows for chunk in chunks))
    store.restore(chunks, ids, positions, description.largest_id)
    living = np.sort(store.live_ids())
    if len(living) and (living[0] < 0 or living[-1] > description.largest_id or bool((living[1:] == living[:-1]).any())):
        raise IndexFormatError("the ids of the segments are negative, too large or not unique")
    return learned


def _learned(part: Representation, stored: StoredSegment | None) -> Representation:
    if stored is None:
        return part
    try:
        return part.restore(stored.arrays)
    except ValueError as error:
        raise IndexFormatError(f"{stored.entry.file} does not hold what its stage learned: {error}") from None


def _chunk(segment: StoredSegment, store: RowStore) -> tuple[Chunk, I64]:
    """A segment as a chunk, with its ids, once it is known to have the columns and rows that it should."""
    file, rows = segment.entry.file, segment.rows
    if not 0 < rows <= CHUNK_ROWS or rows % GROUP:
        raise IndexFormatError(f"{file} has {rows} rows; expected a multiple of {GROUP} up to {CHUNK_ROWS}")
    expected = {name: (column.dtype, column.shape(rows)) for name, column in store.columns.items()}
    expected["ids"] = (np.dtype(np.int64), (rows,))
    found = {name: (array.dtype, array.shape) for name, array in segment.arrays.items()}
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise IndexFormatError(f"{file} does not have the arrays of this index: {', '.join(wrong)[:200]}")
    for name, column in store.columns.items():
        if column.below and int(segment.arrays[name].max()) >= column.below:
            raise IndexFormatError(f"{file} has numbers in {name} that are not below {column.below}")
    arrays = dict(segment.arrays)
    ids = arrays.pop("ids")
    return Chunk(arrays, rows, rows, segment), ids


def _deletions(stored: StoredSegment | None, total: int) -> I64:
    positions = None if stored is None else stored.arrays.get("positions")
    if stored is None or positions is None or positions.dtype != np.int64 or positions.ndim != 1:
        raise IndexFormatError("the list of deleted rows is missing or has the wrong type")
    if len(positions) and (positions[0] < 0 or positions[-1] >= total or bool((positions[1:] <= positions[:-1]).any())):
        raise IndexFormatError(f"{stored.entry.file} names rows that are not there")
    return positions
