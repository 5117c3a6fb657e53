"""Product-quantization codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Self

import numpy as np

from ..backends import current
from ..backends.protocol import Backend, Bound, CodeChunk, Level, Rows, Source
from ..execution import Progress
from ..layout import Column, Slabs
from ..margins import Units
from ..quantizers import PackedCodes, ProductQuantizer
from ..rows import RowStore
from ..types import F32, F64, I64, Array, Metric
from ..validation import as_float, check_rotation
from .base import Bounding, Line, ListSource, Representation, Stage, query_units
from .coordinates import ROTATIONS, Coordinates, Rotation

ROTATION_ROWS = 16_384
"""Rows that an OPQ rotation is learned from, at most: an index is to be built in less than a minute or two."""


@dataclass(frozen=True, repr=False)
class PQ(Stage):
    """Product-quantization codes (see `ProductQuantizer`), held in the blocked layout alone.

    Parameters
    ----------
    subspaces : int
        1 up to ``dims``: a byte a row for each, or half a byte.
    bits : {8, 4}
        256 or 16 codewords per subspace. With 4 bits a query's tables are rounded to whole numbers 0..63, which scans several times faster.
    keep : int or None
        Rows that go on to the next stage.
    dims : int or None
        Code the first so many dims alone; None takes all. For metric ``"cosine"`` the truncated vectors are re-normalised.
    rotation : {"pca", "learned", "random", "opq"} or None
        "pca", "learned" and "random": take ``dims`` directions instead of the first dims, as `Int8` does; random ones of all dims suit
        vectors whose dims vary very differently. "opq": turn the first ``dims`` dims so that codes keep the most of them (see
        `ProductQuantizer`), which takes about ten times as long to learn.
    anisotropy : float
        Above 1, codes suit inner products better (see `ProductQuantizer`); not for metric "l2".

    Examples
    --------
    >>> from adaptive_search import PQ
    >>> PQ(48, keep=100)
    PQ(subspaces=48, keep=100)
    """

    fit_rows: ClassVar[int] = 10_000

    subspaces: int
    bits: int = 8
    keep: int | None = None
    dims: int | None = None
    rotation: Rotation | Literal["opq"] | None = None
    anisotropy: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in (4, 8):
            raise ValueError(f"bits: expected 4 or 8, got {self.bits}")
        check_rotation(self.rotation, *ROTATIONS, "opq")
        as_float(self.anisotropy, "anisotropy", 1.0)

    def bind(self, slabs: Slabs, metric: Metric, name: str) -> PQRows:
        dims = slabs.dim if self.dims is None else self.dims
        if dims > slabs.dim:
            raise ValueError(f"PQ(dims={dims}) is longer than the vectors, which have {slabs.dim} dims")
        if self.subspaces > dims:
            raise ValueError(f"PQ(subspaces={self.subspaces}) needs at least a dim for each subspace, there are {dims}")
        if self.anisotropy > 1.0 and metric == "l2":
            raise ValueError(f"PQ(anisotropy={self.anisotropy!r}) is for inner products and cosines, not for l2")
        own: Literal["opq"] | None = "opq" if self.rotation == "opq" else None
        before = None if self.rotation == "opq" else self.rotation
        quantizer = ProductQuantizer(self.subspaces, self.bits, metric, rotation=own, anisotropy=self.anisotropy)
        return PQRows(quantizer, Coordinates(metric, slabs.dim, dims, before), name)


class PQRows(Representation):
    """Codes of every row, interleaved by 64 rows."""

    def __init__(self, quantizer: ProductQuantizer, coordinates: Coordinates, name: str) -> None:
        self._quantizer = quantizer
        self._coordinates = coordinates
        self._name = name
        self.columns = (Column(f"{name}.codes", np.dtype(np.uint8), quantizer.code_bytes, blocked=True),)

    @property
    def fitted(self) -> bool:
        return self._quantizer.fitted

    def fit(self, sample: F32, progress: Progress | None = None) -> Self:
        coordinates = self._coordinates.fit(sample)
        own = self._quantizer
        quantizer = ProductQuantizer(own.subspaces, own.bits, own.metric, rotation=own.rotation, anisotropy=own.anisotropy)
        return self._with(quantizer.fit(coordinates.of(current(), sample), rotation_rows=ROTATION_ROWS), coordinates)

    def encode(self, vectors: F32) -> dict[str, Array]:
        return {self.columns[0].name: self._quantizer.encode(self._coordinates.of(current(), vectors))}

    def rows(self, backend: Backend, store: RowStore) -> Rows:
        packed = store.used(self.columns[0].name)
        chunks = [CodeChunk(own, chunk.rows) for own, chunk in zip(packed, store.chunks, strict=True)]
        return backend.pq_rows(chunks, self._quantizer.subspaces, self._quantizer.bits, store.ids)

    def rescore(self, backend: Backend, rows: Rows, queries: F32, candidates: I64, k: int) -> tuple[F32, I64]:
        return backend.pq_rescore(rows, self.asked(backend, queries).tables, candidates, k, self.largest)

    def asked(self, backend: Backend, queries: F32) -> Tables:
        tables = self._quantizer.query_tables(self._coordinates.of_queries(backend, queries))
        base, step = np.zeros(len(queries)), np.ones(len(queries))
        if self._quantizer.bits == 4:
            backend.pq_whole(tables, base, step)
        return Tables(tables, base, step, query_units(backend, queries, self._quantizer.metric))

    def level(self, backend: Backend, rows: Rows, asked: Tables, bounding: Bounding, scan: bool) -> tuple[Level, Bound]:
        bound = bounding(self.units_of(asked))
        return backend.pq_level(rows, asked.tables, self.largest, bound, scan), bound

    def source(self, backend: Backend, rows: Rows, line: Line, lists: ListSource | None = None) -> Source | None:
        quantizer, coordinates = self._quantizer, self._coordinates
        if quantizer.metric == "l2":
            return None
        return backend.pq_source(
            rows,
            quantizer.metric,
            coordinates.dim,
            coordinates.dims,
            coordinates.directions,
            *line,
            quantizer.codebooks,
            quantizer.rotation_matrix,
            lists,
        )

    def units(self, backend: Backend, queries: F32) -> Units:
        return self.units_of(self.asked(backend, queries))

    def units_of(self, asked: Tables) -> Units:
        """Of queries that are ready."""
        return Units(-asked.base if self.largest else asked.base, asked.unit, asked.unit / asked.step)

    def estimates(self, backend: Backend, queries: F32, raw: F32) -> F32:
        asked = self.asked(backend, queries)
        scores: F32 = (asked.base[:, None] + asked.step[:, None] * raw).astype(np.float32)
        return scores

    @property
    def dims(self) -> int:
        """Of `points`."""
        return self._coordinates.dims

    def points(self, vectors: F32) -> F32:
        """What is coded of vectors (n, D): (n, dims), of unit length for cosine."""
        return self._coordinates.of_queries(current(), vectors)

    def coded(self, points: F32) -> PackedCodes:
        """Codes of points (n, dims) of any length."""
        return self._quantizer.pack(self._quantizer.nearest_codes(points))

    def coded_rows(self, backend: Backend, codes: PackedCodes) -> Rows:
        """Rows that `asked` queries can be compared with."""
        return backend.pq_rows([CodeChunk(codes.data, codes.rows)], codes.subspaces, codes.bits)

    def named(self, name: str) -> Self:
        return type(self)(self._quantizer, self._coordinates, name)

    def state(self) -> dict[str, Array]:
        return self._quantizer.state() | self._coordinates.state()

    def restore(self, state: Mapping[str, Array]) -> Self:
        coordinates, rest = self._coordinates.restore(state)
        quantizer = ProductQuantizer.from_state(rest, self._quantizer.metric)
        if quantizer.dim != coordinates.dims or repr(quantizer) != repr(self._quantizer):
            raise ValueError(
                f"state: expected that of {self._quantizer!r} for {coordinates.dims} dims, got {quantizer!r} for {quantizer.dim}"
            )
        return self._with(quantizer, coordinates)

    @property
    def largest(self) -> bool:
        return self._quantizer.metric != "l2"

    def _with(self, quantizer: ProductQuantizer, coordinates: Coordinates) -> Self:
        return type(self)(quantizer, coordinates, self._name)


class Tables(NamedTuple):
    """Of queries: estimates of the metric are base + step * sum of entries, and proportional to ``unit``."""

    tables: F32
    base: F64
    step: F64
    unit: F64 | float
