"""What a cascade asks of a representation, and what a user writes to name one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from ..backends.protocol import Backend, Bound, Level, Rows, Source
from ..execution import Progress, part_of
from ..layout import Column, Slabs
from ..margins import Units
from ..rows import RowStore
from ..types import F32, F64, I64, Array, Metric
from ..validation import as_int


@dataclass(frozen=True, repr=False)
class Stage(ABC):
    """One stage of a `Cascade`: a representation, and how many rows go on to the next stage."""

    fit_rows: ClassVar[int] = 0
    """Rows that an index holds before the representation is learned from them; 0 if there is nothing to learn."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if "int" in str(field.type) and not (value is None and field.default is None):
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


Line = tuple[float, float]
"""Intercept, with margins, and slope of what keys say of scores."""

ListSource = tuple[Rows, Line]
"""Rows of inverted lists, and what their keys say."""

Bounding = Callable[[Units], Bound]
"""What keys say of scores, from the scales on which the two are compared."""


class Bounded(Protocol):
    """Rows whose estimates come with an upper bound of the true score that cannot fail."""

    @property
    def bytes_per_row(self) -> int:
        """Bytes read per row by a scan."""

    def level(self, backend: Backend, queries: F32, scan: bool) -> Level:
        """A stage for queries (Q, D) float32 whose bounds hold for canonical scores of whole vectors."""


class Representation(ABC):
    """Rows at one price: how they are learned, encoded, scanned and rescored.

    A scan and a rescoring answer in *raw* scores, which is what the backend returns, such as Hamming distances, best first.
    `estimates` turns them into score units (the metric's own), which keeps their order; the last stage's estimates are the scores of the
    answer. Adaptive stages go by keys, which are raw scores with the sign that makes larger ones better.

    Attributes
    ----------
    columns : tuple of Column
        What is held for every row beside the vectors themselves. Names are unique within an index.
    """

    columns: tuple[Column, ...] = ()
    scans: ClassVar[bool] = True
    """Whether it can look at all rows; if not, it judges rows that another stage has looked at."""

    @property
    def fitted(self) -> bool:
        """Whether rows can be encoded."""
        return True

    @property
    def bytes_per_row(self) -> int:
        """Bytes read per row by a scan."""
        return sum(column.row_bytes for column in self.columns)

    def before(self, following: Representation) -> Self:
        """The same in a cascade in which ``following`` comes next."""
        return self

    def fit(self, sample: F32, progress: Progress | None = None) -> Self:
        """A representation learned from sample rows (n, D). This one stays as it is. What takes long says how far it is."""
        return self

    def encode(self, vectors: F32) -> dict[str, Array]:
        """Row-major entries of every column for some rows (n, D)."""
        return {}

    @abstractmethod
    def rows(self, backend: Backend, store: RowStore) -> Rows:
        """All rows, prepared for a backend. Valid until ``store.layout`` changes."""

    @abstractmethod
    def rescore(self, backend: Backend, rows: Rows, queries: F32, candidates: I64, k: int) -> tuple[F32, I64]:
        """The best k of each query's candidates (Q, C), where -1 is none: raw scores and positions."""

    @property
    def asks(self) -> Representation:
        """Whose `asked` queries its levels are made of."""
        return self

    def asked(self, backend: Backend, queries: F32) -> Any:
        """Queries (Q, D) float32 as `level` takes them."""
        return queries

    @abstractmethod
    def level(self, backend: Backend, rows: Rows, asked: Any, bounding: Bounding, scan: bool) -> tuple[Level, Bound]:
        """A stage of a cascade for `asked` queries, and what its keys say of scores, which ``bounding`` makes of its units."""

    def source(self, backend: Backend, rows: Rows, line: Line, lists: ListSource | None = None) -> Source | None:
        """What makes levels of queries in the backend, for scores of about intercept + slope * key, and those of the ``lists`` that are
        looked at before it, if there are some; None if nothing does."""
        return None

    @property
    @abstractmethod
    def largest(self) -> bool:
        """Whether larger raw scores are better, so that they are keys; otherwise keys are their negatives."""

    @abstractmethod
    def units(self, backend: Backend, queries: F32) -> Units:
        """The scales on which keys are compared with scores."""

    def bounded(self, backend: Backend, store: RowStore) -> Bounded | None:
        """The rows with bounds that cannot fail, prepared for a backend; None if there are none. Valid until ``store.layout`` changes."""
        return None

    def estimates(self, backend: Backend, queries: F32, raw: F32) -> F32:
        """Raw scores (Q, C) of a scan or rescoring in score units."""
        return raw

    def named(self, name: str) -> Self:
        """The same with columns of another name."""
        return self

    def state(self) -> dict[str, Array]:
        """What was learned, as arrays."""
        return {}

    def restore(self, state: Mapping[str, Array]) -> Self:
        """A fitted representation from `state`; a `ValueError` if it does not fit this one. This one stays as it is."""
        return self


def linked(parts: Iterable[Representation]) -> tuple[Representation, ...]:
    """Representations of one cascade, each of which knows the next."""
    return _from_last(parts, lambda part: part)


def fitted(parts: Sequence[Representation], sample: F32, progress: Progress | None = None) -> tuple[Representation, ...]:
    """The same, learned from sample rows (n, D)."""
    steps = iter([part_of(progress, number, len(parts)) for number in range(len(parts))])
    return _from_last(parts, lambda part: part.fit(sample, next(steps)))


def _from_last(parts: Iterable[Representation], change: Callable[[Representation], Representation]) -> tuple[Representation, ...]:
    changed: list[Representation] = []
    for part in reversed(list(parts)):
        changed.append(change(part.before(changed[-1]) if changed else part))
    return tuple(reversed(changed))


def score_units(backend: Backend, queries: F32, metric: Metric) -> Units:
    """Of keys that are scores of the metric."""
    unit = query_units(backend, queries, metric)
    return Units(0.0, unit, unit)


def query_norms(backend: Backend, queries: F32) -> F64:
    out = np.zeros(len(queries), np.float32)
    backend.dense_norms("float32", [np.ascontiguousarray(queries)], out)
    return out.astype(np.float64)


def query_units(backend: Backend, queries: F32, metric: Metric) -> F64 | float:
    """What scores of a query are proportional to: its norm for ip, else 1."""
    if metric != "ip":
        return 1.0
    norms = query_norms(backend, queries)
    return np.where(norms > 0, norms, 1.0)


def unit_queries(backend: Backend, queries: F32, metric: Metric) -> F32:
    """The queries whose inner products scores are made of: of unit length for cosine."""
    if metric != "cosine":
        return queries
    unit = np.empty_like(queries)
    backend.dense_unit(queries, unit)
    return unit


def rounding(metric: Metric, dim: int, query_norms: F64, largest: float) -> F64:
    """More than two canonical scores, of a part and of the whole, and their norms can be off by rounding (docs/architecture.md)."""
    unit = 4.0 * (dim + 8) * 2.0**-24
    if metric == "cosine":
        return np.full_like(query_norms, unit)
    reach: F64 = (query_norms + largest) ** 2 if metric == "l2" else query_norms * largest
    return unit * (reach + 1e-30)
