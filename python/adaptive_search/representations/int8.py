"""Signed bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from ..backends import current
from ..backends.protocol import Backend, Bound, DenseChunk, IntegerMetric, Level, Rows, Source
from ..execution import Progress
from ..layout import Column, Slabs
from ..margins import Units
from ..quantizers import Int8Quantizer
from ..quantizers.int8 import IntegerQueries
from ..rows import RowStore
from ..types import F32, F64, I64, Array, Metric
from ..validation import check_rotation
from .base import Bounding, Line, ListSource, Representation, Stage, query_norms, rounding, score_units, unit_queries
from .coordinates import ROTATIONS, Coordinates, Rotation
from .prefix import largest_norm


@dataclass(frozen=True, repr=False)
class Int8(Stage):
    """A signed byte for each of the first ``dims`` dims (see `Int8Quantizer`); 4 more bytes a row for l2.

    Parameters
    ----------
    dims : int or None
        1 up to the index's dim; None takes all. For metric ``"cosine"`` the truncated vectors are re-normalised.
    keep : int or None
        Rows that go on to the next stage.
    rotation : {"pca", "learned", "random"} or None
        Take ``dims`` directions, learned from the rows, instead of the first dims. "pca": the principal ones, of which few tell much of
        any embedding; learning takes the product of dims cubed and the time to multiply all rows with ``dims`` directions. "learned":
        those of a `LearnedRotation` for prefixes of ``dims``, by the cosine whatever the metric; 64 of them and fewer find more, and
        learning takes up to a minute for 384 dims. "random": for vectors whose dims vary very differently, all of them kept.
    bounded : bool
        Hold 4 more bytes a row that say how far its code is from the vector, so that exact searches (``recall=1.0``) can leave out rows
        that cannot matter. For ``"cosine"`` scores are then products of truncated unit vectors, not re-normalised; for ``"l2"`` distances
        by the norms of whole rows. Not with a rotation.

    Examples
    --------
    >>> from adaptive_search import Int8
    >>> Int8(keep=100)
    Int8(keep=100)
    """

    fit_rows: ClassVar[int] = 1_000

    dims: int | None = None
    keep: int | None = None
    bounded: bool = False
    rotation: Rotation | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.bounded, bool | np.bool_):
            raise TypeError(f"bounded: expected True or False, got {self.bounded!r}")
        check_rotation(self.rotation, *ROTATIONS)
        if self.bounded and self.rotation:
            raise ValueError("Int8(bounded=True): there are no bounds for rotated codes; leave out the rotation")

    def bind(self, slabs: Slabs, metric: Metric, name: str) -> Int8Rows:
        dims = slabs.dim if self.dims is None else self.dims
        if dims > slabs.dim:
            raise ValueError(f"Int8(dims={dims}) is longer than the vectors, which have {slabs.dim} dims")
        coordinates = Coordinates(metric, slabs.dim, dims, self.rotation)
        return (
            BoundedInt8Rows(Int8Quantizer("ip"), coordinates, name) if self.bounded else Int8Rows(Int8Quantizer(metric), coordinates, name)
        )


class Int8Rows(Representation):
    """Signed bytes of every row and, for l2, the squared norm of what they stand for."""

    _cut_off: ClassVar[bool] = False
    """Whether coordinates are those of unit rows, not made units again."""

    def __init__(self, quantizer: Int8Quantizer, coordinates: Coordinates, name: str) -> None:
        self._quantizer = quantizer
        self._coordinates = coordinates
        self._metric = coordinates.metric
        self._dims = coordinates.dims
        self._name = name
        self._scored: IntegerMetric = "l2" if self._metric == "l2" else "ip"
        codes = Column(f"{name}.codes", np.dtype(np.int8), self._dims)
        norms = Column(f"{name}.norms2", np.dtype(np.float32))
        self.columns = (codes, norms) if self._metric == "l2" else (codes,)

    @property
    def fitted(self) -> bool:
        return self._quantizer.fitted

    def fit(self, sample: F32, progress: Progress | None = None) -> Self:
        coordinates = self._coordinates.fit(sample)
        return self._with(Int8Quantizer(self._quantizer.metric).fit(coordinates.of(current(), sample)), coordinates)

    def encode(self, vectors: F32) -> dict[str, Array]:
        codes = self._quantizer.encode(self._coordinates.of(current(), vectors))
        values: dict[str, Array] = {self.columns[0].name: codes}
        if self._scored == "l2":
            values[self.columns[1].name] = self._quantizer.norms2(codes)
        return values

    def rows(self, backend: Backend, store: RowStore) -> Rows:
        codes, *norms = (store.used(column.name) for column in self.columns)
        chunks = [DenseChunk((own,), norms[0][number] if norms else None) for number, own in enumerate(codes)]
        return backend.dense_rows("int8", chunks, store.ids)

    def rescore(self, backend: Backend, rows: Rows, queries: F32, candidates: I64, k: int) -> tuple[F32, I64]:
        return backend.integer_rescore(rows, *self._prepare(backend, queries), candidates, k, self._scored)

    def level(self, backend: Backend, rows: Rows, queries: F32, bounding: Bounding, scan: bool) -> tuple[Level, Bound]:
        bound = bounding(self.units(backend, queries))
        return backend.integer_level(rows, *self._prepare(backend, queries), self._scored, bound, scan), bound

    def source(self, backend: Backend, rows: Rows, line: Line, lists: ListSource | None = None) -> Source | None:
        if self._metric == "l2":
            return None
        coordinates = self._coordinates
        return backend.integer_source(
            rows, self._metric, coordinates.dim, coordinates.directions, self._cut_off, *line, self._quantizer.scales
        )

    @property
    def largest(self) -> bool:
        return self._scored == "ip"

    def units(self, backend: Backend, queries: F32) -> Units:
        return score_units(backend, queries, self._metric)

    def named(self, name: str) -> Self:
        return type(self)(self._quantizer, self._coordinates, name)

    def state(self) -> dict[str, Array]:
        return self._quantizer.state() | self._coordinates.state()

    def restore(self, state: Mapping[str, Array]) -> Self:
        coordinates, rest = self._coordinates.restore(state)
        quantizer = Int8Quantizer.from_state(rest, self._quantizer.metric)
        if quantizer.dim != self._dims or quantizer.affine:
            raise ValueError(f"state: expected limits of {self._dims} dims alone, got {quantizer!r} of {quantizer.dim} dims")
        return self._with(quantizer, coordinates)

    def _prepare(self, backend: Backend, queries: F32) -> IntegerQueries:
        return self._quantizer.prepare(self._coordinates.of_queries(backend, queries))

    def _with(self, quantizer: Int8Quantizer, coordinates: Coordinates) -> Self:
        return type(self)(quantizer, coordinates, self._name)


BALANCE = 0.125
"""What a row's error of quantization is divided by before it joins its rest, and a query's prefix multiplied by: about the square root of
how small these errors are, which makes the bound nearly the sum of both parts."""


class BoundedInt8Rows(Int8Rows):
    """Signed bytes of the first dims of every row, of unit length for cosine, and one number of how far they are from the whole row.

    With x = c + e + r, the code, its error and the dims that are left out: q . x - q . c = q . e + q . r, and by Cauchy and Schwarz
    q . e + q . r <= sqrt((b |q_first|)^2 + |q_rest|^2) * sqrt((|e| / b)^2 + |r|^2) for any b. The second root is the row's weight.
    Distances are |q|^2 + |x|^2 - 2 q . x, with the norms of whole vectors.
    """

    _cut_off = True

    def __init__(self, quantizer: Int8Quantizer, coordinates: Coordinates, name: str) -> None:
        super().__init__(quantizer, coordinates, name)
        self.columns = (*self.columns, Column(f"{name}.weights", np.dtype(np.float32)))
        self._sides = 2.0 if self._metric == "l2" else 1.0
        """How often products count in scores."""

    def fit(self, sample: F32, progress: Progress | None = None) -> Self:
        return self._with(Int8Quantizer("ip").fit(unit_queries(current(), sample, self._metric)[:, : self._dims]), self._coordinates)

    def encode(self, vectors: F32) -> dict[str, Array]:
        whole = unit_queries(current(), np.ascontiguousarray(vectors), self._metric)
        first = whole[:, : self._dims]
        codes = self._quantizer.encode(first)
        errors = np.square(first.astype(np.float64) - self._quantizer.decode(codes)).sum(axis=1)
        rests = np.square(whole[:, self._dims :], dtype=np.float64).sum(axis=1)
        weights = (np.sqrt(errors / BALANCE**2 + rests) * (1 + 1e-9)).astype(np.float32)
        values: dict[str, Array] = {self.columns[0].name: codes, self.columns[-1].name: np.nextafter(weights, np.float32(np.inf))}
        if self._metric == "l2":
            with np.errstate(over="ignore"):  # such rows have no bounds
                values[self.columns[1].name] = np.square(whole, dtype=np.float64).sum(axis=1).astype(np.float32)
        return values

    def rows(self, backend: Backend, store: RowStore) -> Rows:
        codes, *norms, weights = (store.used(column.name) for column in self.columns)
        squares = norms[0] if norms else [None] * len(codes)
        chunks = [DenseChunk((own,), square, far) for own, square, far in zip(codes, squares, weights, strict=True)]
        return backend.dense_rows("int8", chunks, store.ids)

    def bounded(self, backend: Backend, store: RowStore) -> Int8Bounds | None:
        largest = largest_norm(store.used("norm"), self._metric)
        if largest is None or not self.fitted:
            return None
        farthest = max((float(weights.max(initial=0.0)) for weights in store.used(self.columns[-1].name)), default=0.0)
        return Int8Bounds(self.rows(backend, store), self, 1.0 if self._metric == "cosine" else largest, farthest)

    def _prepare(self, backend: Backend, queries: F32) -> IntegerQueries:
        first = np.ascontiguousarray(unit_queries(backend, queries, self._metric)[:, : self._dims])
        return self._compared(self._quantizer.prepare(first), query_norms(backend, queries))

    def _compared(self, products: IntegerQueries, norms: F64) -> IntegerQueries:
        """What codes are scored by, from what gives their products with queries of some norms."""
        if self._metric != "l2":
            return products
        with np.errstate(over="ignore"):
            return products._replace(factors=-2.0 * products.factors, offsets=np.square(norms).astype(np.float32))

    def bound_level(self, backend: Backend, rows: Rows, queries: F32, largest: float, farthest: float, scan: bool) -> Level:
        whole = unit_queries(backend, queries, self._metric).astype(np.float64)
        first = whole[:, : self._dims]
        prepared = self._quantizer.prepare(np.ascontiguousarray(first, np.float32))
        scales = self._quantizer.scales.astype(np.float64)
        taken = prepared.codes * prepared.factors[:, None].astype(np.float64)
        missing = np.square(first - np.divide(taken, scales, out=first.copy(), where=scales > 0)).sum(axis=1)
        margin = np.sqrt(BALANCE**2 * np.square(first).sum(axis=1) + np.square(whole[:, self._dims :]).sum(axis=1)) * (1 + 1e-9)
        # What the rounded query misses of the code, which is no longer than the row and its error.
        norms = query_norms(backend, queries)
        offset = self._sides * np.sqrt(missing) * (1 + 1e-6) * (largest + BALANCE * farthest)
        offset += rounding(self._metric, self._coordinates.dim, norms, largest)
        bound = Bound(offset, np.ones(len(queries)), self._sides * margin)
        return backend.integer_level(rows, *self._compared(prepared, norms), self._scored, bound, scan)


@dataclass(frozen=True)
class Int8Bounds:
    """Codes whose errors are known."""

    rows: Rows
    representation: BoundedInt8Rows
    largest: float
    farthest: float

    @property
    def bytes_per_row(self) -> int:
        return self.representation.bytes_per_row

    def level(self, backend: Backend, queries: F32, scan: bool) -> Level:
        return self.representation.bound_level(backend, self.rows, queries, self.largest, self.farthest, scan)
