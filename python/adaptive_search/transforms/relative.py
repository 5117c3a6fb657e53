"""Coordinates relative to anchors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from ..backends import current
from ..rotations import mapped
from ..types import F32, I64, Array
from ..validation import as_int
from .base import Transform, only, sample_of, state_array


class RelativeProjection(Transform):
    """Cosines with anchors: embeddings of different models become comparable when the anchors are the same things.

    (L. Moschella et al., "Relative representations enable zero-shot latent space communication", ICLR 2023.)

    Parameters
    ----------
    anchors : int, or array_like of shape (A, D)
        The anchors, or how many of the rows that it is fitted to become anchors: the first is the one farthest from their mean, each
        further one the farthest from all before, by the cosine. Given ones are there at once, and `fit` leaves them.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> projection = asx.RelativeProjection(np.float32([[2, 0], [0, 5]])).fit(np.zeros((1, 2), np.float32))
    >>> [round(cosine, 4) for cosine in projection.transform([3.0, 4.0]).tolist()]
    [0.6, 0.8]
    """

    parameters = ("anchors",)

    def __init__(self, anchors: Any) -> None:
        super().__init__()
        self._count: int | None = None
        self.anchors: F32 = np.empty((0, 0), np.float32)
        if np.ndim(anchors) == 0:
            self._count = as_int(anchors, "anchors", 1)
        else:
            self._install(_units(sample_of(anchors, "anchors")))

    def __repr__(self) -> str:
        return f"RelativeProjection({self._count or self.anchors.shape})"

    def width(self, dim: int) -> int:
        if self._count is None and dim != self.dim:
            raise ValueError(f"{self!r} needs {self.dim} dims, there are {dim}")
        return len(self.anchors) if self._count is None else self._count

    def spec(self) -> dict[str, Any]:
        # Anchors that were given are in the state.
        return {"transform": "RelativeProjection", "anchors": self._count}

    def state(self) -> dict[str, Array]:
        return {"anchors": self.anchors} if self.fitted else {}

    @classmethod
    def from_state(cls, state: Mapping[str, Array], spec: Mapping[str, Any]) -> Self:
        made = cls(state_array(state, "anchors", (None, None)) if spec["anchors"] is None else spec["anchors"])
        if state:
            made.restore(state)
        return made

    def restore(self, state: Mapping[str, Array]) -> None:
        only(state, "anchors")
        self._install(state_array(state, "anchors", (len(self.anchors) if self._count is None else self._count, None)))

    def learn(self, sample: F32, name: str) -> None:
        if self._count is None:
            if self.dim != sample.shape[1]:
                raise ValueError(f"{name}: expected {self.dim} dims as the anchors have, got shape {sample.shape}")
            return
        if self._count > len(sample):
            raise ValueError(f"{name}: expected at least {self._count} rows, one for each anchor, got shape {sample.shape}")
        units = _units(sample)
        self._install(units[_farthest(units, self._count)])

    def apply(self, vectors: F32) -> F32:
        return mapped(current(), _units(vectors), self.anchors)

    def _install(self, anchors: F32) -> None:
        self.anchors, self.dim = np.ascontiguousarray(anchors), anchors.shape[1]


def _units(vectors: F32) -> F32:
    out = np.empty_like(vectors)
    current().dense_unit(np.ascontiguousarray(vectors), out)
    return out


def _farthest(units: F32, count: int) -> I64:
    """Rows of unit vectors, each the farthest from those before."""
    chosen = [int((units @ units.mean(axis=0)).argmin())]
    nearest = units @ units[chosen[0]]
    while len(chosen) < count:
        nearest[chosen] = np.inf
        chosen.append(int(nearest.argmin()))
        np.maximum(nearest, units @ units[chosen[-1]], out=nearest)
    return np.array(chosen)
