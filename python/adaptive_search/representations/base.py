"""What a cascade asks of a representation, and what a user writes to name one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from ..backends.protocol import Backend, Rows, Scan
from ..layout import Column, Slabs
from ..rows import RowStore
from ..types import F32, I64, Array, Bool, Metric
from ..validation import as_int


@dataclass(frozen=True, repr=False)
class Stage(ABC):
    """One stage of a `Cascade`: a representation, and how many rows go on to the next stage."""

    fit_rows: ClassVar[int] = 0
    """Rows that an index holds before the representation is learned from them; 0 if there is nothing to learn."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "renormalize" and not (value is None and field.default is None):
                object.__setattr__(self, field.name, as_int(value, field.name, 1))

    @property
    def shortlist(self) -> int | None:
        """Rows that go on to the next stage, at least; None if that is not a fixed number."""
        keep: int | None = getattr(self, "keep", None)
        return keep

    @abstractmethod
    def bind(self, slabs: Slabs, metric: Metric, name: str) -> Representation:
        """The representation for rows of this shape, its columns named after ``name``; a `ValueError` if they do not go together."""

    def spec(self) -> dict[str, Any]:
        """The stage as plain values, for a file: `stage_of` reads them."""
        return {"stage": type(self).__name__, **{field.name: getattr(self, field.name) for field in fields(self)}}

    def __repr__(self) -> str:
        """As it could be written, without what is as by default."""
        set_fields = [field for field in fields(self) if getattr(self, field.name) != field.default]
        return f"{type(self).__name__}({', '.join(f'{field.name}={getattr(self, field.name)!r}' for field in set_fields)})"


class Bounds(NamedTuple):
    """Limits of the canonical score over the whole vectors, rounded outwards: low <= score <= high, shape (Q, C)."""

    low: F32
    high: F32


class Representation(ABC):
    """Rows at one price: how they are learned, encoded, scanned and rescored.

    A scan and a rescoring answer in *raw* scores, which is what the backend returns, such as Hamming distances, best first.
    `estimates` turns them into score units (the metric's own), which keeps their order, and `bounds` says how far from there the true
    score can be. Fixed shortlists need neither; the last stage's estimates are the scores of the answer.

    Attributes
    ----------
    columns : tuple of Column
        What is held for every row beside the vectors themselves. Names are unique within an index.
    """

    columns: tuple[Column, ...] = ()

    @property
    def fitted(self) -> bool:
        """Whether rows can be encoded."""
        return True

    @property
    def bytes_per_row(self) -> int:
        """Bytes read per row by a scan."""
        return sum(column.row_bytes for column in self.columns)

    def fit(self, sample: F32) -> Self:
        """A representation learned from sample rows (n, D). This one stays as it is."""
        return self

    def encode(self, vectors: F32) -> dict[str, Array]:
        """Row-major entries of every column for some rows (n, D)."""
        return {}

    @abstractmethod
    def rows(self, backend: Backend, store: RowStore) -> Rows:
        """All rows, prepared for a backend. Valid until ``store.layout`` changes."""

    @abstractmethod
    def scan(self, backend: Backend, rows: Rows, queries: F32, k: int, allowed: Bool | None) -> Scan:
        """A top-k over all rows; queries (Q, D) float32."""

    @abstractmethod
    def rescore(self, backend: Backend, rows: Rows, queries: F32, candidates: I64, k: int) -> tuple[F32, I64]:
        """The best k of each query's candidates (Q, C), where -1 is none: raw scores and positions."""

    def estimates(self, backend: Backend, queries: F32, raw: F32) -> F32:
        """Raw scores (Q, C) of a scan or rescoring in score units."""
        return raw

    def bounds(self, backend: Backend, store: RowStore, queries: F32, positions: I64, estimates: F32) -> Bounds | None:
        """Limits that cannot fail of the true scores of rows (Q, C), given their estimates; None if there are none.

        Where a position is -1 the limits are NaN.
        """
        return None

    def state(self) -> dict[str, Array]:
        """What was learned, as arrays."""
        return {}

    def restore(self, state: Mapping[str, Array]) -> Self:
        """A fitted representation from `state`; a `ValueError` if it does not fit this one. This one stays as it is."""
        return self


def prefix_queries(backend: Backend, queries: F32, dims: int, metric: Metric) -> F32:
    """The first dims of queries as a quantizer takes them: contiguous, and of unit length for cosine."""
    cut = np.ascontiguousarray(queries[:, :dims])
    if metric != "cosine":
        return cut
    unit = np.empty_like(cut)
    backend.dense_unit(cut, unit)
    return unit
