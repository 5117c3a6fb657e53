"""Principal directions, as a rotation or scaled to equal variance."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..arrays import finite_rows
from ..backends import current
from ..rotations import is_orthogonal, mapped, principal_directions
from ..types import F32, Array
from ..validation import as_float, as_int
from .base import Transform, only, state_array


class _Linear(Transform):
    """Products of vectors, minus a center, with the rows of a matrix."""

    def __init__(self, dims: int | None, center: bool) -> None:
        super().__init__()
        self.dims = None if dims is None else as_int(dims, "dims", 1)
        if not isinstance(center, bool | np.bool_):
            raise TypeError(f"center: expected True or False, got {center!r}")
        self.center = bool(center)
        self.matrix: F32 = np.empty((0, 0), np.float32)
        self.mean: F32 = np.empty(0, np.float32)

    def width(self, dim: int) -> int:
        if self.dims is not None and self.dims > dim:
            raise ValueError(f"{self!r} needs at least {self.dims} dims, there are {dim}")
        return dim if self.dims is None else self.dims

    def state(self) -> dict[str, Array]:
        return {"matrix": self.matrix, "mean": self.mean} if self.fitted else {}

    def restore(self, state: Mapping[str, Array]) -> None:
        only(state, "matrix", "mean")
        mean = state_array(state, "mean", (None,))
        matrix = state_array(state, "matrix", (self.width(len(mean)), len(mean)))
        if self.orthogonal and (mean.any() or not is_orthogonal(matrix)):
            raise ValueError("state: expected orthonormal directions, and no mean")
        self._install(matrix, mean)

    def _directions(self, sample: F32, name: str) -> tuple[F32, F32, F32]:
        """The first principal directions, the mean that is taken off, and what is left of the sample."""
        if self.dims is not None and self.dims > sample.shape[1]:
            raise ValueError(f"{name}: expected at least {self.dims} dims, got shape {sample.shape}")
        dims = self.width(sample.shape[1])
        if not self.center:
            return principal_directions(sample, dims), np.zeros(sample.shape[1], np.float32), sample
        mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
        with np.errstate(over="ignore"):
            centred = sample - mean
        far = ~finite_rows(centred)
        if far.any():
            raise ValueError(f"{name}: row {far.argmax()} is farther from the mean of all than float32 can tell")
        return principal_directions(centred, dims), mean, centred

    def _install(self, matrix: F32, mean: F32) -> None:
        self.matrix, self.mean, self.dim = np.ascontiguousarray(matrix), mean, matrix.shape[1]

    def apply(self, vectors: F32) -> F32:
        with np.errstate(over="ignore"):
            return mapped(current(), vectors - self.mean if self.center else vectors, self.matrix)


class PCA(_Linear):
    """Coordinates along the principal directions, those of the largest variance first, so that prefixes of any embedding tell much.

    (H. Hotelling, "Analysis of a complex of statistical variables into principal components", 1933.)

    Parameters
    ----------
    dims : int, optional
        How many directions to keep; all by default.
    center : bool
        Take the mean off first. Inner products then are those of centered vectors; without, they stay as they are.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> pca = asx.PCA().fit(np.float32([[0, 2], [1, 0], [0, -3]]))
    >>> pca.transform([[0.0, 1.0], [1.0, 0.0]]).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    parameters = ("dims", "center")

    def __init__(self, dims: int | None = None, center: bool = False) -> None:
        super().__init__(dims, center)

    @property
    def orthogonal(self) -> bool:
        return not self.center

    def learn(self, sample: F32, name: str) -> None:
        directions, mean, _ = self._directions(sample, name)
        self._install(directions, mean)


class Whitening(_Linear):
    """Principal coordinates divided by their standard deviations: all dims then vary alike, and none is of a piece with another.

    Parameters
    ----------
    dims : int, optional
        How many directions to keep; all by default.
    ridge : float
        Added to every variance, as a part of the mean variance: directions that hardly vary would otherwise become noise.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> rows = np.random.default_rng(0).standard_normal((500, 4)).astype(np.float32) * np.float32([9, 3, 1, 0.3])
    >>> np.round(asx.Whitening(ridge=0.0).fit(rows).transform(rows).std(axis=0), 2).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """

    parameters = ("dims", "ridge")

    def __init__(self, dims: int | None = None, ridge: float = 1e-3) -> None:
        super().__init__(dims, True)
        self.ridge = as_float(ridge, "ridge", 0.0)

    def learn(self, sample: F32, name: str) -> None:
        directions, mean, centred = self._directions(sample, name)
        variances = np.square(mapped(current(), centred, directions), dtype=np.float64).mean(axis=0)
        total = np.square(centred, dtype=np.float64).mean()
        floor = max(self.ridge * float(total), 1e-30)
        self._install((directions / np.sqrt(variances + floor)[:, None]).astype(np.float32), mean)
