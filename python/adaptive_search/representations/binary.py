"""Sign bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from ..backends.protocol import Backend, Bound, Level, Rows
from ..execution import Progress
from ..layout import Column, Slabs
from ..margins import Units
from ..quantizers import BinaryQuantizer
from ..quantizers.directions import ROTATIONS, Rotation
from ..rows import RowStore
from ..types import F32, I64, Array, Metric
from ..validation import check_rotation
from .base import Bounding, Representation, Stage, query_norms


@dataclass(frozen=True, repr=False)
class Binary(Stage):
    """Sign bits of the first ``bits`` dims, ranked by Hamming distance (see `BinaryQuantizer`).

    Parameters
    ----------
    bits : int or None
        One bit per dim; None takes all dims.
    keep : int or None
        Rows that go on to the next stage.
    rotation : {"itq", "random", "dims"} or None
        Take signs along so many directions instead, as seen from the mean of the rows: those that tell the most, learned from the rows
        (seconds for some hundred dims, more in proportion to dims cubed), or random ones; "dims": those of the dims, as seen from the mean.

    Examples
    --------
    >>> from adaptive_search import Binary
    >>> Binary(keep=1000)
    Binary(keep=1000)
    """

    fit_rows: ClassVar[int] = 1_000

    bits: int | None = None
    keep: int | None = None
    rotation: Rotation | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rotation(self.rotation, *ROTATIONS)

    def spec(self) -> dict[str, Any]:
        """As before there were rotations, where there is none, so that older versions read the file."""
        spec = super().spec()
        if self.rotation is None:
            del spec["rotation"]
        return spec

    def bind(self, slabs: Slabs, metric: Metric, name: str) -> BinaryRows:
        bits = slabs.dim if self.bits is None else self.bits
        if bits > slabs.dim:
            raise ValueError(f"Binary(bits={bits}): a vector of {slabs.dim} dims has no more signs than that")
        return BinaryRows(BinaryQuantizer(bits, metric, self.rotation), slabs.dim, name)


class BinaryRows(Representation):
    """Packed sign bits of every row."""

    def __init__(self, quantizer: BinaryQuantizer, dim: int, name: str) -> None:
        self._quantizer = quantizer
        self._dim = dim
        self._name = name
        self.columns = (Column(f"{name}.codes", np.dtype(np.uint8), quantizer.code_bytes),)

    @property
    def fitted(self) -> bool:
        return self._quantizer.fitted

    def fit(self, sample: F32, progress: Progress | None = None) -> Self:
        own = self._quantizer
        return self._with(BinaryQuantizer(own.bits, own.metric, own.rotation).fit(sample))

    def encode(self, vectors: F32) -> dict[str, Array]:
        return {self.columns[0].name: self._quantizer.encode(vectors)}

    def rows(self, backend: Backend, store: RowStore) -> Rows:
        return backend.bit_rows(store.used(self.columns[0].name), self._quantizer.bits, store.ids)

    def rescore(self, backend: Backend, rows: Rows, queries: F32, candidates: I64, k: int) -> tuple[F32, I64]:
        return backend.hamming_rescore(rows, self._quantizer.query_codes(queries), candidates, k)

    def level(self, backend: Backend, rows: Rows, queries: F32, bounding: Bounding, scan: bool) -> tuple[Level, Bound]:
        bound = bounding(self.units(backend, queries))
        return backend.hamming_level(rows, self._quantizer.query_codes(queries), bound, scan), bound

    @property
    def largest(self) -> bool:
        return False

    def units(self, backend: Backend, queries: F32) -> Units:
        """Distances know nothing of lengths: q . x and 2 q . x - |q|^2 grow with the query. Nor do those as seen from the mean know the
        part of the score that all rows share."""
        metric = self._quantizer.metric
        if self._quantizer.directions is not None:
            base, step = self._quantizer.directions.line(queries, metric)
            unit = np.where(step != 0, np.abs(step), 1.0)
            return Units(base if metric == "l2" else -base, unit, 1.0)
        if metric == "cosine":
            return Units(0.0, 1.0, 1.0)
        norms = query_norms(backend, queries)
        if metric == "ip":
            return Units(0.0, np.where(norms > 0, norms, 1.0), 1.0)
        return Units(norms**2, np.where(norms > 0, 2.0 * norms, 1.0), 1.0)

    def estimates(self, backend: Backend, queries: F32, raw: F32) -> F32:
        return self._quantizer.estimates(queries, raw)

    def named(self, name: str) -> Self:
        return type(self)(self._quantizer, self._dim, name)

    def state(self) -> dict[str, Array]:
        return self._quantizer.state()

    def restore(self, state: Mapping[str, Array]) -> Self:
        quantizer = BinaryQuantizer.from_state(state, self._quantizer.metric)
        if quantizer.dim != self._dim or repr(quantizer) != repr(self._quantizer):
            raise ValueError(f"state: expected that of {self._quantizer!r} for {self._dim} dims, got {quantizer!r} for {quantizer.dim}")
        return self._with(quantizer)

    def _with(self, quantizer: BinaryQuantizer) -> Self:
        return type(self)(quantizer, self._dim, self._name)
