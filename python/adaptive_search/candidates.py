"""Cascades whose stages are learned, beside an index and not yet part of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

from . import fitting
from .cascade import Cascade
from .execution import Progress, part_of
from .margins import ErrorModel
from .representations import Lists, Representation, Stage
from .rows import Chunk, RowStore
from .running import OPENINGS, Opening, PreparedStage
from .tuning_queries import Ground
from .types import F32, I64, Array


class _Overlay:
    """A store with columns that are not installed yet."""

    def __init__(self, store: RowStore, arrays: Sequence[dict[str, Array]], columns: dict[str, object]) -> None:
        self._store = store
        self._arrays = arrays
        self._columns = columns

    def used(self, name: str) -> list[Array]:
        if name not in self._columns:
            return self._store.used(name)
        column = self._columns[name]
        return [column.used(arrays[name], chunk.rows) for arrays, chunk in zip(self._arrays, self._store.chunks, strict=True)]  # type: ignore[attr-defined]

    @property
    def ids(self) -> I64:
        return self._store.ids

    @property
    def chunks(self) -> list[Chunk]:
        return self._store.chunks


@dataclass(frozen=True)
class Candidate:
    """A cascade whose stages are learned, with its rows."""

    cascade: Cascade
    parts: tuple[Representation, ...]
    arrays: tuple[dict[str, Array], ...]
    stages: tuple[PreparedStage, ...]
    stores: tuple[RowStore, ...]
    """Where each stage's columns are."""
    opening: Opening = OPENINGS[0]

    def at(self, margins: float) -> list[PreparedStage]:
        """The stages with so many deviations of margin."""
        return [replace(stage, margins=margins) if stage.adaptive else stage for stage in self.stages]

    @property
    def adaptive(self) -> bool:
        return any(stage.adaptive for stage in self.stages)


class Bench:
    """Learns stages and keeps what several cascades share."""

    def __init__(self, ground: Ground, sample: Callable[[], F32]) -> None:
        self.ground = ground
        self._sample = sample
        self._learned: dict[tuple[str, int], tuple[Representation, list[dict[str, Array]]]] = {}

    def know(self, stages: Sequence[Stage], parts: Sequence[Representation]) -> None:
        """Take over stages that were learned from these very rows, with their columns in the store: learning gives the same again."""
        keys = self._keys(stages)
        for number, part in enumerate(parts):
            own = part.named(f"tuning.{number}")
            names = [(old.name, new.name) for old, new in zip(part.columns, own.columns, strict=True)]
            arrays = [{new: chunk.arrays[old] for old, new in names} for chunk in self.ground.store.chunks]
            self._learned[keys[number], keys[:number].count(keys[number])] = own, arrays

    def prepare(self, cascade: Cascade, progress: Progress | None = None) -> Candidate:
        """Learn the stages, encode all rows, and fit nothing yet."""
        ground = self.ground
        parts: list[Representation] = []
        stages: list[PreparedStage] = []
        stores: list[RowStore] = []
        merged: list[dict[str, Array]] = [{} for _ in ground.store.chunks]
        keys = self._keys(cascade.stages)
        for number, stage in reversed(list(enumerate(cascade.stages))):
            # A stage that is there twice has columns of its own each time.
            key = keys[number], keys[:number].count(keys[number])
            if key not in self._learned:
                part = stage.bind(ground.slabs, ground.metric, f"tuning.{len(self._learned)}")
                if parts:
                    part = part.before(parts[0])
                step = part_of(progress, len(parts), len(cascade.stages))
                if not part.fitted:
                    part = part.fit(self._sample(), part_of(step, 0, 2))
                extents = [(chunk, chunk.rows) for chunk in ground.store.chunks]
                self._learned[key] = (part, fitting.encode_all(ground.slabs, [part], extents, part_of(step, 1, 2)))
            part, arrays = self._learned[key]
            columns = {column.name: column for column in part.columns if arrays and column.name in arrays[0]}
            store = cast(RowStore, _Overlay(ground.store, arrays, dict(columns)))
            rows = part.rows(ground.backend, store)
            adaptive = stage.shortlist is None and number < len(cascade.stages) - 1
            model = ErrorModel(0.0, 1.0, 1.0) if adaptive else None
            stages.insert(0, PreparedStage(part, rows, stage.shortlist, model))
            parts.insert(0, part)
            stores.insert(0, store)
            for chunk, new in zip(merged, arrays, strict=True):
                chunk |= new
        if not parts[0].scans:
            stages[1] = replace(stages[1], listing=ground.backend.listing(stages[0].rows, stages[1].rows))
        return Candidate(cascade, tuple(parts), tuple(merged), tuple(stages), tuple(stores))

    def _keys(self, stages: Sequence[Stage]) -> list[str]:
        """What each stage learns depends on; lists go by the codes after them."""
        specs = [sorted((name, value) for name, value in stage.spec().items() if name != "keep") for stage in stages]
        return [repr(specs[number : number + 2] if isinstance(stage, Lists) else specs[number]) for number, stage in enumerate(stages)]
