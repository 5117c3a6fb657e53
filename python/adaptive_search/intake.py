"""What comes into an index: a user's rows, queries and samples, and what is stored and searched of them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from .arrays import Matrix, finite_rows, float32, rounded, widened
from .fitting import spread
from .transforms import TRANSFORMS, Chain, Transform
from .types import F32, I64, MAX_DIM, Array, Kind
from .validation import as_queries, as_vectors


@dataclass(frozen=True)
class Intake:
    """The way in: as the vectors are, or through a transform.

    Attributes
    ----------
    dim : int
        Dims of a user's vectors.
    kind : Kind
        What vectors are stored as.
    transform : Transform or None
        A copy that is never changed: another intake replaces this one when it is fitted.
    """

    dim: int
    kind: Kind
    transform: Transform | None = None

    @classmethod
    def of(cls, dim: int, kind: Kind, transform: Any) -> Self:
        """Checked; a `TypeError` or `ValueError` for a transform that does not go with such vectors, or could not be saved."""
        if transform is None:
            return cls(dim, kind)
        if not isinstance(transform, Transform):
            raise TypeError(f"transform: expected a transform such as PCA() or None, got {type(transform).__name__}")
        if not _can_be_saved(transform):
            raise TypeError(f"transform: expected one of {', '.join(TRANSFORMS)}, which can be saved, got {transform!r}")
        if kind == "int8":
            raise ValueError("dtype: a transform makes floats: expected 'float32', 'float16' or 'bfloat16', got 'int8'")
        if transform.fitted and transform.dim != dim:
            raise ValueError(f"transform: expected one that was fitted to {dim} dims, got {transform!r}, fitted to {transform.dim}")
        try:
            width = transform.width(dim)
        except ValueError as error:
            raise ValueError(f"transform: {error}") from None
        if width > MAX_DIM:
            raise ValueError(f"transform: expected one that makes at most {MAX_DIM:,} dims, got {transform!r}, which makes {width:,}")
        return cls(dim, kind, deepcopy(transform))

    @property
    def width(self) -> int:
        """Dims of the vectors that are stored."""
        return self.dim if self.transform is None else self.transform.width(self.dim)

    @property
    def ready(self) -> bool:
        """Whether rows can come in."""
        return self.transform is None or self.transform.fitted

    def rows(self, block: Array) -> Array:
        """Rows (n, dim) as they are stored (n, width): what cannot be is infinite or NaN, and `bad_row` says what is wrong with it."""
        if self.kind == "int8":
            return as_vectors(block, "int8")
        if self.transform is None:
            return rounded(block, self.kind)
        vectors = np.require(float32(block), requirements=("C", "A"))
        bad = ~finite_rows(vectors)
        if bad.any():
            vectors = np.where(bad[:, None], np.float32(0), vectors)
        out = self.transform.by_ranges(vectors)
        out[bad] = np.nan
        return rounded(out, self.kind)

    def bad_row(self, block: Array, stored: Array, row: int, name: str = "vectors", first: int = 0) -> ValueError:
        """What to raise about a row that `rows` made something of that may not be stored."""
        given = block[row : row + 1]
        came = "" if self.transform is None else " once transformed"
        if not finite_rows(given)[0]:
            what = "holds NaN or infinity"
        elif self.transform is not None and not finite_rows(float32(given))[0]:
            what = "holds a number too large for float32"
        elif not finite_rows(stored[row : row + 1])[0]:
            what = f"holds a number too large for {self.kind}{came}"
        else:
            what = f"has a norm too large for float32{came}"
        return ValueError(f"{name}: row {first + row} {what}")

    def queries(self, value: Any, name: str = "queries", threads: int | None = None) -> tuple[F32, bool]:
        """Queries (Q, dim) as they are searched (Q, width), and whether it was a single one (dim,). As they are while not `ready`."""
        batch, single = as_queries(value, self.dim, name)
        if self.transform is None or not self.ready:
            return batch, single
        return self.transform.applied(batch, name, threads), single

    def sample(self, value: Any) -> tuple[Self, F32]:
        """What stages learn from of a sample (n, dim), as it is stored (n, width): all of it, or as much as of an index's own rows, evenly
        spread. And the way in: its transform is fitted to the same rows if it was not."""
        intake = self
        vectors = as_vectors(value, self.kind if self.transform is None else "float32", self.dim, "sample")
        chosen = spread(len(vectors), max(self.dim, self.width))
        some = vectors if len(chosen) == len(vectors) else vectors[chosen]
        stored: Array = some
        if self.transform is not None:
            if not self.transform.fitted:
                if not len(some):
                    raise ValueError("sample: there are no rows to learn from")
                intake = self._learned(some, "sample")
            stored = intake.rows(some)
            bad = ~finite_rows(stored)
            if bad.any():
                row = int(bad.argmax())
                raise self.bad_row(some, stored, row, "sample", first=int(chosen[row]) - row)
        return intake, widened(stored) if self.kind == "bfloat16" else float32(stored)

    def fitted_to(self, matrix: Matrix, rows: I64) -> Self:
        """The way in, its transform fitted to some rows of a user's."""
        vectors = np.require(float32(matrix.array[rows]), requirements=("C", "A"))
        bad = ~finite_rows(vectors)
        if bad.any():
            raise matrix.bad_row_error(int(rows[bad.argmax()]))
        return self._learned(vectors, matrix.name)

    def _learned(self, vectors: F32, name: str) -> Self:
        transform = deepcopy(self.transform)
        if transform is None:
            raise RuntimeError("there is no transform to be fitted")
        transform.learn(vectors, name)
        return replace(self, transform=transform)


def _can_be_saved(transform: Transform) -> bool:
    return type(transform) in TRANSFORMS.values() and (not isinstance(transform, Chain) or all(map(_can_be_saved, transform.transforms)))
