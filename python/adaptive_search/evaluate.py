"""Representations of some vectors side by side: what each costs and finds, in one table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .backends import backend
from .execution import get_threads, progress_bar
from .functional import top_k
from .measuring import Measurement, Task
from .quantizers.base import Quantizer
from .representations import PQ, Binary, Full, Int8, Prefix, RaBit, Stage
from .types import Kind, Metric
from .validation import as_int, as_k, as_metric, as_queries, as_rows, as_threads

__all__ = ["AMONG", "Comparison", "Measurement", "compare", "default_representations"]

AMONG = (20, 50, 100, 200)

MOST_ROTATED = 2_048
"""Rotations of more dims take minutes to learn: they are compared only if asked for."""


@dataclass(frozen=True)
class Comparison:
    """The table, and what it was measured on.

    Attributes
    ----------
    rows : tuple of Measurement
        In the order in which representations were given.
    count, dim, dtype, metric
        The vectors: how many, of how many dims, stored as what, compared how.
    queries : int
        How many there were.
    k : int
        True neighbors that were looked for.
    among : tuple of int
        Numbers of rows among which they were looked for, beside k.
    backend : str
    threads : int
    """

    rows: tuple[Measurement, ...]
    count: int
    dim: int
    dtype: Kind
    metric: Metric
    queries: int
    k: int
    among: tuple[int, ...]
    backend: str
    threads: int

    @property
    def title(self) -> str:
        """What was measured, in a line."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        vectors = f"{self.count:,} vectors of {self.dim} dims ({self.dtype}, {self.metric})"
        return f"{vectors}, {self.queries:,} queries, {self.backend}, {threads}"

    @property
    def header(self) -> tuple[str, ...]:
        """Titles of the columns that `cells` fills."""
        among = (f"in {rows}" for rows in self.among)
        return ("representation", "bytes/row", "fit s", "encode s", f"recall@{self.k}", "±", *among, "µs in a batch", "µs alone")

    def cells(self) -> Iterator[tuple[str, ...]]:
        """Every row as text; cells of what was not measured are empty."""
        for row in self.rows:
            recalls = [_text(value, ".4f") for value in (row.recall, row.recall_error, *self._shares(row))]
            seconds = [_text(value, ".2f") for value in (row.fit_seconds, row.encode_seconds)]
            times = [_text(value, ",.1f") for value in (row.batch_us, row.single_us)]
            yield (row.representation, _text(row.bytes_per_row, ","), *seconds, *recalls, *times)

    @property
    def notes(self) -> list[str]:
        """Which representations there are not, and why."""
        return [f"{row.representation}: {row.why}" for row in self.rows if row.why]

    def _shares(self, row: Measurement) -> Sequence[float | None]:
        return row.among or [None] * len(self.among)

    def to_markdown(self) -> str:
        """The table in Markdown, below a line that says what was measured, and above what could not be."""
        lines = [self.title, "", f"| {' | '.join(self.header)} |", f"|---|{'---:|' * (len(self.header) - 1)}"]
        lines += [f"| {' | '.join(cells)} |" for cells in self.cells()]
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)])

    def records(self) -> list[dict[str, Any]]:
        """A dict of plain values for every row, with a key such as ``recall_in_20`` for each number of `among`."""
        found = []
        for row in self.rows:
            record = {name: value for name, value in vars(row).items() if name not in ("among", "why")}
            record |= {f"recall_in_{rows}": share for rows, share in zip(self.among, self._shares(row), strict=True)}
            found.append({**record, "why": row.why})
        return found

    def __str__(self) -> str:
        return self.to_markdown()


def _text(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def compare(
    vectors: Any,
    queries: Any,
    representations: Iterable[Stage | Quantizer] | None = None,
    *,
    metric: Metric = "cosine",
    k: int = 10,
    among: Sequence[int] = AMONG,
    threads: int | None = None,
    progress: bool = False,
) -> Comparison:
    """Measure what each representation of the vectors costs and how many of the true k neighbors it finds.

    A stage is measured as an `Index` whose cascade is that stage alone, so that bytes and times are those that users get; it is learned
    from the rows that an index learns from. A quantizer is measured by itself, fitted if it was not (the one given stays as it is).
    Truth is `top_k`. One representation is held at a time, beside the vectors.

    Parameters
    ----------
    vectors : array_like, shape (n, dim)
        Stored as the dtype they have (float64 as float32).
    queries : array_like, shape (Q, dim) or (dim,)
        Like those to come: rows of the collection as queries would find themselves.
    representations : iterable of stages and quantizers, optional
        A stage's ``keep`` does not count. By default `default_representations`.
    metric : {"cosine", "ip", "l2"}
    k : int
        True neighbors to look for.
    among : sequence of int
        Numbers of rows among which they are looked for too, none below k.
    threads : int, optional
        Threads to search with; fitting and encoding take what `set_threads` says.
    progress : bool
        Show a bar (needs tqdm).

    Returns
    -------
    Comparison
        A representation that does not go with the vectors has the reason in its row.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Examples
    --------
    >>> import numpy as np, adaptive_search as asx
    >>> random = np.random.default_rng(0)
    >>> vectors = random.standard_normal((2000, 32), dtype=np.float32)
    >>> queries = random.standard_normal((50, 32), dtype=np.float32)
    >>> table = asx.evaluate.compare(vectors, queries, [asx.Binary(), asx.Int8(), asx.Full()])
    >>> [(row.representation, row.bytes_per_row) for row in table.rows]
    [('Binary()', 4), ('Int8()', 32), ('Full()', 132)]
    >>> table.rows[2].recall
    1.0
    >>> print(table.to_markdown())
    2,000 vectors of 32 dims (float32, cosine), 50 queries, ...
    """
    matrix = as_rows(vectors, "vectors")
    metric = as_metric(metric)
    batch = as_queries(queries, matrix.dim)[0]
    k, wanted = as_k(k), _as_among(among, k)
    threads = as_threads(threads)
    chosen = default_representations(matrix.dim) if representations is None else _as_representations(representations)
    if not len(matrix):
        raise ValueError(f"vectors: expected at least one row, got shape {matrix.array.shape}")
    if not len(batch):
        raise ValueError(f"queries: expected at least one, got shape {batch.shape}")
    bad = matrix.first_bad(0, len(matrix))
    if bad >= 0:
        raise matrix.bad_row_error(bad)
    with progress_bar(progress, "comparing", "representations") as bar:
        truth = top_k(batch, matrix.array, k, metric=metric, threads=threads).ids
        task = Task(matrix, batch, truth, metric, k, wanted, threads)
        rows = []
        for number, representation in enumerate(chosen, 1):
            rows.append(task.measure(representation))
            if bar is not None:
                bar(number, len(chosen))
    used = get_threads() if threads is None else threads
    return Comparison(tuple(rows), len(matrix), matrix.dim, matrix.kind, metric, len(batch), k, wanted, backend(), used)


def default_representations(dim: int) -> list[Stage | Quantizer]:
    """What `compare` looks at by default: sign bits of both sides and of rows alone, codes of dim / 8 and dim / 4 bytes, with and without
    rotation, bytes, prefixes, and the vectors.

    Examples
    --------
    >>> default_representations(96)[:3]
    [Binary(), RaBit(), PQ(subspaces=12)]
    """
    eighth, quarter = -(-dim // 8), -(-dim // 4)
    prefixes = [dims for dims in (64, 128, 256) if dims < dim]
    found: list[Stage | Quantizer] = [Binary(), RaBit(), PQ(eighth), PQ(quarter, bits=4), PQ(quarter)]
    found += [Int8(dims) for dims in prefixes]
    if dim <= MOST_ROTATED:
        found += [Binary(rotation="itq"), PQ(eighth, rotation="opq"), PQ(quarter, bits=4, rotation="opq")]
        found += [Int8(dims, rotation="pca") for dims in prefixes]
    return [*found, Int8(), *(Prefix(dims) for dims in prefixes), Full()]


def _as_among(among: Any, k: int) -> tuple[int, ...]:
    try:
        given = list(among)
    except TypeError:
        raise TypeError(f"among: expected numbers of rows such as {AMONG}, got {among!r}") from None
    return tuple(sorted({as_int(rows, "among", k) for rows in given}))


def _as_representations(representations: Any) -> list[Stage | Quantizer]:
    try:
        given = list(representations)
    except TypeError:
        raise TypeError(f"representations: expected a list such as [Binary(), PQ(48)], got {representations!r}") from None
    for one in given:
        if not isinstance(one, Stage | Quantizer):
            raise TypeError(f"representations: expected stages (Binary, RaBit, PQ, Int8, Prefix, Full) or quantizers, got {one!r}")
    if not given:
        raise ValueError("representations: expected at least one, got none")
    return given
