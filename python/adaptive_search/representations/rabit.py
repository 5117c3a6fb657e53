"""Few bits per dim of rotated rows, with a factor per row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from ..backends import current
from ..backends.protocol import Backend, Bound, CodeChunk, Level, Rows, Scaling
from ..execution import Progress
from ..layout import Column, Slabs
from ..margins import Units
from ..quantizers import RaBitQuantizer
from ..quantizers.packed import LARGEST_FACTOR
from ..rows import RowStore
from ..types import F32, I64, Array, Metric
from ..validation import check_rotation
from .base import Bounding, Representation, Stage, score_units
from .coordinates import ROTATIONS, Coordinates, Rotation


@dataclass(frozen=True, repr=False)
class RaBit(Stage):
    """One, two or four bits per dim of randomly rotated rows, compared with queries that stay whole, and 8 more bytes a row (see
    `RaBitQuantizer`). Sign bits that tell more than those of `Binary`, which both sides are cut down to.

    Parameters
    ----------
    bits : {1, 2, 4}
        Per dim.
    keep : int or None
        Rows that go on to the next stage.
    dims : int or None
        Code the first so many dims alone; None takes all. For metric ``"cosine"`` the truncated vectors are re-normalised.
    rotation : {"pca", "learned", "random"} or None
        Take the first ``dims`` of such directions, as for `Int8`, instead of the first dims, before all of them are rotated at random.

    Examples
    --------
    >>> from adaptive_search import RaBit
    >>> RaBit(keep=100), RaBit(2, dims=256)
    (RaBit(keep=100), RaBit(bits=2, dims=256))
    """

    fit_rows: ClassVar[int] = 1_000

    bits: int = 1
    keep: int | None = None
    dims: int | None = None
    rotation: Rotation | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        RaBitQuantizer(self.bits)
        check_rotation(self.rotation, *ROTATIONS)

    def bind(self, slabs: Slabs, metric: Metric, name: str) -> RaBitRows:
        dims = slabs.dim if self.dims is None else self.dims
        if dims > slabs.dim:
            raise ValueError(f"RaBit(dims={dims}) is longer than the vectors, which have {slabs.dim} dims")
        return RaBitRows(RaBitQuantizer(self.bits, metric), Coordinates(metric, slabs.dim, dims, self.rotation), name)


class RaBitRows(Representation):
    """Levels of every row, interleaved by 64 rows, and the numbers that go with them."""

    def __init__(self, quantizer: RaBitQuantizer, coordinates: Coordinates, name: str) -> None:
        self._quantizer = quantizer
        self._coordinates = coordinates
        self._name = name
        codes = Column(f"{name}.codes", np.dtype(np.uint8), -(-coordinates.dims * quantizer.bits // 8), blocked=True)
        numbers = ["factors", "norms2" if quantizer.metric == "l2" else "terms"][: 1 + quantizer.terms]
        self.columns = (codes, *(Column(f"{name}.{what}", np.dtype(np.float32)) for what in numbers))

    @property
    def fitted(self) -> bool:
        return self._quantizer.fitted

    def fit(self, sample: F32, progress: Progress | None = None) -> Self:
        coordinates = self._coordinates.fit(sample)
        quantizer = RaBitQuantizer(self._quantizer.bits, self._quantizer.metric)
        return self._with(quantizer.fit(coordinates.of(current(), sample)), coordinates)

    def encode(self, vectors: F32) -> dict[str, Array]:
        levels, factors, terms = self._quantizer.split(self._quantizer.encode(self._coordinates.of(current(), vectors)))
        # Estimates of rows so long that kernels cannot take their factors are too small.
        most = np.float32(LARGEST_FACTOR)
        numbers = [np.clip(values, -most, most) for values in (factors, terms) if values is not None]
        return dict(zip((column.name for column in self.columns), (levels, *numbers), strict=True))

    def rows(self, backend: Backend, store: RowStore) -> Rows:
        held = zip(store.chunks, *(store.used(column.name) for column in self.columns), strict=True)
        chunks = [CodeChunk(codes, chunk.rows, *others) for chunk, codes, *others in held]
        return backend.pq_rows(chunks, self._quantizer.subspaces, 4, store.ids)

    def rescore(self, backend: Backend, rows: Rows, queries: F32, candidates: I64, k: int) -> tuple[F32, I64]:
        tables, scaling = self._asked(backend, queries)
        return backend.pq_rescore(rows, tables, candidates, k, self.largest, scaling)

    def level(self, backend: Backend, rows: Rows, queries: F32, bounding: Bounding, scan: bool) -> tuple[Level, Bound]:
        tables, scaling = self._asked(backend, queries)
        bound = bounding(self.units(backend, queries))
        return backend.pq_level(rows, tables, self.largest, bound, scan, scaling), bound

    @property
    def largest(self) -> bool:
        return self._quantizer.metric != "l2"

    def units(self, backend: Backend, queries: F32) -> Units:
        return score_units(backend, queries, self._quantizer.metric)

    def named(self, name: str) -> Self:
        return type(self)(self._quantizer, self._coordinates, name)

    def state(self) -> dict[str, Array]:
        return self._quantizer.state() | self._coordinates.state()

    def restore(self, state: Mapping[str, Array]) -> Self:
        coordinates, rest = self._coordinates.restore(state)
        quantizer = RaBitQuantizer.from_state(rest, self._quantizer.metric, self._quantizer.bits)
        if quantizer.dim != coordinates.dims:
            raise ValueError(f"state: expected the mean of {coordinates.dims} dims, got {quantizer.dim}")
        return self._with(quantizer, coordinates)

    def _asked(self, backend: Backend, queries: F32) -> tuple[F32, Scaling]:
        return self._quantizer.ask(self._coordinates.of_queries(backend, queries))

    def _with(self, quantizer: RaBitQuantizer, coordinates: Coordinates) -> Self:
        return type(self)(quantizer, coordinates, self._name)
