"""Transforms one after another, and transforms from files: what knows all the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from itertools import pairwise
from typing import Any, Self

import numpy as np

from ..types import F32, Array
from .base import Transform
from .learned import LearnedRotation
from .principal import PCA, Whitening
from .random_rotation import RandomRotation
from .relative import RelativeProjection


class Chain(Transform):
    """Transforms one after another: vectors go through the first, then through the second, and so on.

    Parameters
    ----------
    transforms : sequence of Transform
        At least one, of which copies are kept. If all are fitted the chain is; `fit` fits each to what the one before returns.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> rows = np.random.default_rng(0).standard_normal((200, 24)).astype(np.float32)
    >>> chain = asx.Chain([asx.PCA(16), asx.RandomRotation()]).fit(rows)
    >>> chain.transform(rows[0]).shape
    (16,)
    """

    parameters = ("transforms",)

    def __init__(self, transforms: Sequence[Transform]) -> None:
        super().__init__()
        if not isinstance(transforms, Iterable):
            raise TypeError(f"transforms: expected a sequence of transforms, got {transforms!r}")
        given = tuple(transforms)
        if not given:
            raise ValueError("transforms: expected at least one, got none")
        for transform in given:
            if not isinstance(transform, Transform):
                raise TypeError(f"transforms: expected transforms, got {transform!r}")
        self._install(tuple(copy(transform) for transform in given))

    @property
    def orthogonal(self) -> bool:
        return all(transform.orthogonal for transform in self.transforms)

    def __repr__(self) -> str:
        return f"Chain({list(self.transforms)!r})"

    def width(self, dim: int) -> int:
        for transform in self.transforms:
            dim = transform.width(dim)
        return dim

    def spec(self) -> dict[str, Any]:
        return {"transform": "Chain", "transforms": [transform.spec() for transform in self.transforms]}

    def state(self) -> dict[str, Array]:
        return {f"part.{number}.{name}": array for number, one in enumerate(self.transforms) for name, array in one.state().items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Array], spec: Mapping[str, Any]) -> Self:
        parts: list[dict[str, Array]] = [{} for _ in spec["transforms"]]
        for key, array in state.items():
            word, _, rest = key.partition(".")
            number, _, name = rest.partition(".")
            if word != "part" or not number.isdecimal() or int(number) >= len(parts):
                raise ValueError(f"state: expected arrays of {len(parts)} transforms, got {key!r}")
            parts[int(number)][name] = array
        return cls([transform_of(one, part) for one, part in zip(spec["transforms"], parts, strict=True)])

    def restore(self, state: Mapping[str, Array]) -> None:
        self._install(self.from_state(state, self.spec()).transforms)

    def learn(self, sample: F32, name: str) -> None:
        # Copies, so that none has changed if a later one fails.
        fitted = tuple(copy(transform) for transform in self.transforms)
        for transform in fitted:
            transform.learn(sample, name)
            sample = transform.applied(sample, name)
        self._install(fitted)

    def apply(self, vectors: F32) -> F32:
        vectors = self.transforms[0].apply(vectors)
        for transform in self.transforms[1:]:
            beyond = ~np.isfinite(vectors).all(axis=1)
            if beyond.any():
                vectors[beyond] = 0.0
            vectors = transform.apply(vectors)
            # What was beyond float32 once stays so.
            vectors[beyond] = np.nan
        return vectors

    def _install(self, transforms: tuple[Transform, ...]) -> None:
        dim = transforms[0].dim if all(transform.fitted for transform in transforms) else 0
        for before, after in pairwise(transforms if dim else ()):
            if before.dims_out != after.dim:
                raise ValueError(f"transforms: {before!r} returns {before.dims_out} dims, {after!r} after it was fitted to {after.dim}")
        self.transforms, self.dim = transforms, dim


TRANSFORMS: dict[str, type[Transform]] = {
    kind.__name__: kind for kind in (PCA, Whitening, RandomRotation, LearnedRotation, RelativeProjection, Chain)
}


def transform_of(spec: Mapping[str, Any], state: Mapping[str, Array]) -> Transform:
    """The transform whose `Transform.spec` and `Transform.state` these are; one that is not fitted has an empty state.

    Raises
    ------
    TypeError, ValueError
        If they cannot be those of a transform.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> from adaptive_search.transforms import transform_of
    >>> chain = asx.Chain([asx.PCA(2), asx.RandomRotation(seed=7)]).fit(np.eye(3))
    >>> again = transform_of(chain.spec(), chain.state())
    >>> again
    Chain([PCA(dims=2, center=False), RandomRotation(seed=7)])
    >>> np.array_equal(again.transform(np.eye(3)), chain.transform(np.eye(3)))
    True
    """
    name = spec.get("transform") if isinstance(spec, Mapping) else None
    if not isinstance(name, str) or name not in TRANSFORMS:
        raise ValueError(f"spec: no transform is called {name!r}")
    if spec.keys() != {"transform", *TRANSFORMS[name].parameters}:
        raise ValueError(f"spec: {name} is made with {', '.join(TRANSFORMS[name].parameters)}, got {', '.join(map(repr, spec))[:200]}")
    return TRANSFORMS[name].from_state(state, spec)
