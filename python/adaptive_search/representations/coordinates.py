"""What codes are made of: the first dims of a vector, or its coordinates along the directions that tell most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, Self, get_args

import numpy as np

from ..backends import current
from ..backends.protocol import Backend
from ..rotations import is_orthogonal, principal_directions, rotated
from ..transforms import LearnedRotation, RandomRotation
from ..types import F32, Array, Metric
from .base import unit_queries

Rotation = Literal["pca", "learned", "random"]

ROTATIONS: tuple[Rotation, ...] = get_args(Rotation)


class Coordinates(NamedTuple):
    """The first ``dims`` numbers of vectors of ``dim``, or those along as many directions, which are learned."""

    metric: Metric
    dim: int
    dims: int
    rotation: Rotation | None
    directions: F32 | None = None

    @property
    def fitted(self) -> bool:
        return self.rotation is None or self.directions is not None

    def fit(self, sample: F32) -> Self:
        if self.rotation is None:
            return self
        # Long rows say no more of directions than short ones where length does not count.
        units = self._units(current(), sample)
        if self.rotation == "pca":
            directions = principal_directions(units, self.dims)
        elif self.rotation == "learned":
            directions = LearnedRotation([self.dims] if self.dims < self.dim else None).fit(units).matrix
        else:
            directions = RandomRotation().fit(units).transform(np.eye(self.dim, dtype=np.float32)).T
        return self._replace(directions=np.ascontiguousarray(directions[: self.dims]))

    def of(self, backend: Backend, vectors: F32) -> F32:
        """Of vectors (n, dim): (n, dims)."""
        # The first dims are made units, if at all, when they are cut off.
        return self.first(backend, vectors if self.rotation is None else self._units(backend, vectors))

    def first(self, backend: Backend, units: F32) -> F32:
        """Of vectors (n, dim) as they are, of unit length for cosine: (n, dims), not made units again."""
        if self.rotation is None:
            return units[:, : self.dims]
        if self.directions is None:
            raise RuntimeError("the rotation is not fitted")
        return rotated(backend, units, self.directions)

    def of_queries(self, backend: Backend, queries: F32) -> F32:
        """As a quantizer takes them: contiguous, and of unit length for cosine."""
        return unit_queries(backend, np.ascontiguousarray(self.of(backend, queries)), self.metric)

    def state(self) -> dict[str, Array]:
        return {} if self.directions is None else {"directions": self.directions}

    def restore(self, state: Mapping[str, Array]) -> tuple[Self, dict[str, Array]]:
        """What `state` gave, and the rest of a state; a `ValueError` if it does not fit."""
        rest = {name: array for name, array in state.items() if name != "directions"}
        if self.rotation is None:
            return self, dict(state)
        directions = state.get("directions")
        if directions is None or directions.shape != (self.dims, self.dim) or directions.dtype != np.float32:
            raise ValueError(f"state: expected directions of shape ({self.dims}, {self.dim}), float32")
        if not is_orthogonal(directions):
            raise ValueError("state: expected directions that are orthonormal")
        return self._replace(directions=np.ascontiguousarray(directions)), rest

    def _units(self, backend: Backend, vectors: F32) -> F32:
        return unit_queries(backend, np.ascontiguousarray(vectors), self.metric)
