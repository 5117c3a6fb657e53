"""Signed bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple, Self

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
        by the norms of whole rows.
    bound_dims : int or None
        Of how many dims the bound is, which are held apart from the others; None: of all that are coded. The first dims tell nearly as
        much as all of them where the others vary little, and are compared in less time. Not with a rotation.

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
    bound_dims: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.bounded, bool | np.bool_):
            raise TypeError(f"bounded: expected True or False, got {self.bounded!r}")
        if self.bound_dims is not None and (not self.bounded or self.rotation is not None):
            raise ValueError(f"bound_dims: {self.bound_dims} goes with bounded=True and without a rotation, got {self!r}")
        check_rotation(self.rotation, *ROTATIONS)

    def bind(self, slabs: Slabs, metric: Metric, name: str) -> Int8Rows:
        dims = slabs.dim if self.dims is None else self.dims
        if dims > slabs.dim:
            raise ValueError(f"Int8(dims={dims}) is longer than the vectors, which have {slabs.dim} dims")
        if self.bound_dims is not None and self.bound_dims > dims:
            raise ValueError(f"bound_dims: {self.bound_dims} is more than the {dims} dims that are coded")
        coordinates = Coordinates(metric, slabs.dim, dims, self.rotation)
        if self.bounded:
            return BoundedInt8Rows(Int8Quantizer("ip"), coordinates, name, self.bound_dims or dims)
        return Int8Rows(Int8Quantizer(metric), coordinates, name)


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
        coordinates = self._coordinates
        # Directions lead to units there, if anywhere: what is cut off goes the general way.
        if self._metric == "l2" or (self._cut_off and coordinates.directions is not None):
            return None
        return backend.integer_source(
            rows, self._metric, coordinates.dim, coordinates.directions, self._cut_off, *line, self._quantizer.scales
        )

    @property
    def largest(self) -> bool:
        return self._scored == "ip"

    def units(self, backend: Backend, queries: F32) -> Units:
        return score_units(backend, queries, self._metric)

    def named(self, name: str) -> Self:
        return self._made(self._quantizer, self._coordinates, name)

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
        return self._made(quantizer, coordinates, self._name)

    def _made(self, quantizer: Int8Quantizer, coordinates: Coordinates, name: str) -> Self:
        return type(self)(quantizer, coordinates, name)


BALANCE = 0.125
"""What a row's error of quantization is divided by before it joins its rest, and a query's prefix multiplied by: about the square root of
how small these errors are, which makes the bound nearly the sum of both parts."""


EXACT = 2.0**-52
"""What products in float64 are off by, twice over, relative to the product of the norms and for every dim."""


class BoundedInt8Rows(Int8Rows):
    """Signed bytes of the first dims of every row, of unit length for cosine, and one number of how far those that make bounds are from
    the whole row.

    With x = c + e + r, the code, its error and the dims that are left out: q . x - q . c = q . e + q . r, and by Cauchy and Schwarz
    q . e + q . r <= sqrt((b |q_first|)^2 + |q_rest|^2) * sqrt((|e| / b)^2 + |r|^2) for any b. The second root is the row's weight.
    Distances are |q|^2 + |x|^2 - 2 q . x, with the norms of whole vectors.

    With directions V, as rows, coordinates are y = V x and z = V q, both rounded; r = x - V'y is what they leave of the row, s that of the
    query. Were V orthonormal and nothing rounded, V r and V s would be 0. As it is,
    q . x = z . y + z . (V V' - 1) y + z . V r + y . V s + s . r.
    So e is y - c + V r, and y . V s and z . (V V' - 1) y join the query's own error.
    """

    _cut_off = True

    def __init__(self, quantizer: Int8Quantizer, coordinates: Coordinates, name: str, bound_dims: int) -> None:
        super().__init__(quantizer, coordinates, name)
        self._bound_dims = bound_dims
        codes = Column(f"{name}.codes", np.dtype(np.int8), bound_dims)
        self._held = (codes, *self.columns[1:], Column(f"{name}.weights", np.dtype(np.float32)))
        rest = self._dims - bound_dims
        self.columns = (*self._held, Column(f"{name}.rest", np.dtype(np.int8), rest)) if rest else self._held
        self._sides = 2.0 if self._metric == "l2" else 1.0
        """How often products count in scores."""

    def fit(self, sample: F32, progress: Progress | None = None) -> Self:
        coordinates = self._coordinates.fit(sample)
        quantizer = Int8Quantizer("ip").fit(coordinates.first(current(), unit_queries(current(), sample, self._metric)))
        # Codes of dims that vary little could be finer, but queries could not: these are rounded in steps that are alike for all dims once
        # they are multiplied with the scales.
        limits = quantizer.limits.astype(np.float64)
        return self._with(quantizer.widened(np.sqrt(limits * limits.max(initial=0.0))), coordinates)

    def encode(self, vectors: F32) -> dict[str, Array]:
        whole = unit_queries(current(), np.ascontiguousarray(vectors), self._metric)
        first = self._coordinates.first(current(), whole)
        codes = self._quantizer.encode(first)
        cut = self._bound_dims
        left = self._left(whole, first[:, :cut], self._quantizer.decode(codes)[:, :cut].astype(np.float64))
        weights = (np.sqrt(np.square(left.error / BALANCE) + np.square(left.rest)) * (1 + 1e-9)).astype(np.float32)
        values: dict[str, Array] = {self._held[0].name: codes[:, :cut], self._held[-1].name: np.nextafter(weights, np.float32(np.inf))}
        if cut < self._dims:
            values[self.columns[-1].name] = codes[:, cut:]
        if self._metric == "l2":
            with np.errstate(over="ignore"):  # such rows have no bounds
                values[self.columns[1].name] = np.square(whole, dtype=np.float64).sum(axis=1).astype(np.float32)
        return values

    def rows(self, backend: Backend, store: RowStore) -> Rows:
        return self._of(backend, store, [store.used(column.name) for column in self.columns[len(self._held) :]])

    def _of(self, backend: Backend, store: RowStore, more: Sequence[Sequence[Array]] = ()) -> Rows:
        """What bounds look at of all rows, and more pieces."""
        codes, *norms, weights = (store.used(column.name) for column in self._held)
        squares = norms[0] if norms else [None] * len(codes)
        chunks = [
            DenseChunk(pieces, square, far) for pieces, square, far in zip(zip(codes, *more, strict=True), squares, weights, strict=True)
        ]
        return backend.dense_rows("int8", chunks, store.ids)

    def bounded(self, backend: Backend, store: RowStore) -> Int8Bounds | None:
        largest = largest_norm(store.used("norm"), self._metric)
        if largest is None or not self.fitted:
            return None
        farthest = max((float(weights.max(initial=0.0)) for weights in store.used(self._held[-1].name)), default=0.0)
        size = sum(column.row_bytes for column in self._held)
        return Int8Bounds(self._of(backend, store), self, 1.0 if self._metric == "cosine" else largest, farthest, size)

    def _prepare(self, backend: Backend, queries: F32) -> IntegerQueries:
        first = self._coordinates.first(backend, unit_queries(backend, queries, self._metric))
        return self._compared(self._quantizer.prepare(np.ascontiguousarray(first)), query_norms(backend, queries))

    def _compared(self, products: IntegerQueries, norms: F64) -> IntegerQueries:
        """What codes are scored by, from what gives their products with queries of some norms."""
        if self._metric != "l2":
            return products
        with np.errstate(over="ignore"):
            return products._replace(factors=-2.0 * products.factors, offsets=np.square(norms).astype(np.float32))

    def bound_level(self, backend: Backend, rows: Rows, queries: F32, largest: float, farthest: float, scan: bool) -> Level:
        whole = unit_queries(backend, queries, self._metric)
        first = np.ascontiguousarray(self._coordinates.first(backend, whole)[:, : self._bound_dims])
        quantizer = self._quantizer.first(self._bound_dims)
        prepared = quantizer.prepare(first)
        scales = quantizer.scales.astype(np.float64)
        taken = prepared.codes * prepared.factors[:, None].astype(np.float64)
        meant = first.astype(np.float64)
        left = self._left(whole, first, np.divide(taken, scales, out=meant.copy(), where=scales > 0))
        margin = np.sqrt(BALANCE**2 * np.square(meant).sum(axis=1) + np.square(left.rest)) * (1 + 1e-9)
        # What the rounded query misses of the code, which is no longer than the row's coordinates and its error.
        norms = query_norms(backend, queries)
        offset = self._sides * left.error * (1 + 1e-6) * (self._reach * largest + BALANCE * farthest)
        offset += self._sides * self._skew * left.length * self._reach * largest
        offset += rounding(self._metric, self._coordinates.dim, norms, largest)
        bound = Bound(offset, np.ones(len(queries)), self._sides * margin)
        return backend.integer_level(rows, *self._compared(prepared, norms), self._scored, bound, scan)

    def _left(self, whole: F32, first: F32, coded: F64) -> _Left:
        """What ``coded`` coordinates leave of vectors (n, D), whose first coordinates are ``first``."""
        meant, length = first.astype(np.float64), np.sqrt(np.square(first, dtype=np.float64).sum(axis=1))
        if self._directions is None:
            error = np.square(meant - coded).sum(axis=1)
            return _Left(np.sqrt(error), np.sqrt(np.square(whole[:, first.shape[1] :], dtype=np.float64).sum(axis=1)), length)
        # y - c + V r = V x - c - (V V' - 1) y, and |r|^2 = |x|^2 - 2 y . V x + |V'y|^2.
        turned = whole.astype(np.float64) @ self._directions.T
        squares = np.square(whole, dtype=np.float64).sum(axis=1)
        # |y - c| and V r by themselves are no larger either.
        error = np.sqrt(np.square(turned - coded).sum(axis=1)) + np.sqrt(np.square(turned - meant).sum(axis=1)) + 2.0 * self._skew * length
        rest = squares - 2.0 * (meant * turned).sum(axis=1) + (1.0 + self._skew) * np.square(length)
        slack = 4.0 * (whole.shape[1] + 8) * math.sqrt(len(self._directions)) * EXACT * (squares + np.square(length))
        return _Left(error + np.sqrt(slack), np.sqrt(np.maximum(rest, 0.0) + slack), length)

    def _made(self, quantizer: Int8Quantizer, coordinates: Coordinates, name: str) -> Self:
        return type(self)(quantizer, coordinates, name, self._bound_dims)

    @cached_property
    def _directions(self) -> F64 | None:
        directions = self._coordinates.directions
        return None if directions is None else directions.astype(np.float64)

    @cached_property
    def _skew(self) -> float:
        """How far the directions are from orthonormal: at least the norm of V V' - 1."""
        directions = self._directions
        if directions is None:
            return 0.0
        apart = np.linalg.norm(directions @ directions.T - np.eye(len(directions)))
        return float(apart + directions.size * EXACT)

    @property
    def _reach(self) -> float:
        """How much longer than a vector its coordinates may be, at most, and still a little more: they are rounded."""
        if self._directions is None:
            return 1.0
        dims, dim = self._directions.shape
        return float(1.0 + 8.0 * self._skew + 2.0 * math.sqrt(dims) * (dim + 8) * 2.0**-24)


class _Left(NamedTuple):
    """Of vectors, (n,) each, rounded up: the norms of the error of their codes, of what coordinates leave, and of these."""

    error: F64
    rest: F64
    length: F64


@dataclass(frozen=True)
class Int8Bounds:
    """Codes whose errors are known."""

    rows: Rows
    representation: BoundedInt8Rows
    largest: float
    farthest: float
    bytes_per_row: int

    def level(self, backend: Backend, queries: F32, scan: bool) -> Level:
        return self.representation.bound_level(backend, self.rows, queries, self.largest, self.farthest, scan)
