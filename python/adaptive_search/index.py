"""The index: ids, adding, removing, fitting, searching, saving. It composes what the floors below compute."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from operator import index as integer
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np

from . import explaining, filters, fitting, persistence, searching, tuning, tuning_queries, ways
from .backends import current
from .calibration import Calibration
from .candidates import Candidate
from .cascade import Cascade, SearchStats, StageStats
from .execution import Progress, part_of, progress_bar
from .explaining import Explanation
from .intake import Intake
from .layout import Slabs
from .plan import Audit, Plan, as_recall
from .representations import Full, Prefix, Representation, Stage, fitted, linked
from .rows import RowStore, Span
from .running import Found
from .storage import read_state
from .transforms import Transform
from .types import F32, I64, MAX_DIM, Array, IndexFormatError, Kind, Metric, Neighbors
from .validation import as_id_list, as_ids, as_int, as_k, as_kind, as_metric, as_ndarray, as_queries, as_rows, as_threads, check_vectors
from .vectors import write_vectors
from .ways import Installed, Ways


class Index:
    """Vectors with ids, searched exactly or through a cascade.

    Searches may run in several threads at once; what changes the index (`add`, `remove`, `fit`, `save`) must not run at the same time as
    anything else. An error, or Ctrl-C, leaves the index as it was.

    Parameters
    ----------
    dim : int
        Dims of the vectors, 1 to 32,768.
    metric : {"cosine", "ip", "l2"}
        Similarity; scores of l2 are squared distances, smaller is better.
    dtype : {"float32", "float16", "bfloat16", "int8"}
        What the vectors are stored as. Floats are rounded to it; ``"int8"`` takes integers from -128 to 127.
    cascade : Cascade, optional
        Stages of a search; None searches exactly.
    fit_rows : int, optional
        Rows from which the stages are learned, at the `add` that brings the index there; until then searches are exact. By
        default the most that a stage asks for: 10,000 for `PQ`, 1,000 for `Binary`, `RaBit` and `Int8`.
    transform : Transform, optional
        Rows, queries and samples go through it, and what it makes of them is stored, rounded to ``dtype``, compared by ``metric`` and
        searched: exact search is exact search of that. One that is not fitted is fitted by `fit`, before rows are added. The index has
        its own copy.

    Examples
    --------
    >>> import numpy as np
    >>> import adaptive_search as asx
    >>> vectors = np.random.default_rng(0).standard_normal((2000, 96)).astype(np.float32)
    >>> index = asx.Index(96, "cosine", cascade=asx.Cascade([asx.Binary(keep=200), asx.Full()]))
    >>> index.add(vectors)
    >>> ids, scores = index.search(vectors[:3], k=5)
    >>> ids[:, 0].tolist()
    [0, 1, 2]
    """

    def __init__(
        self,
        dim: int,
        metric: Metric = "cosine",
        dtype: Any = "float32",
        cascade: Cascade | None = None,
        *,
        fit_rows: int | None = None,
        transform: Transform | None = None,
    ) -> None:
        if cascade is not None and not isinstance(cascade, Cascade):
            raise TypeError(f"cascade: expected a Cascade or None, got {type(cascade).__name__}")
        self._intake = Intake.of(as_int(dim, "dim", 1, MAX_DIM), as_kind(dtype), transform)
        width = self._intake.width
        self._metric = as_metric(metric)
        self._cascade = cascade
        given = cascade.stages if cascade else ()
        boundaries = {stage.dims for stage in given if isinstance(stage, Prefix) and stage.dims < width}
        self._slabs = Slabs(width, self._intake.kind, tuple(sorted(boundaries)))
        self._stages: tuple[Stage, ...] = given or (Full(),)
        self._parts: tuple[Representation, ...] = linked(
            stage.bind(self._slabs, self._metric, f"stage.{number}") for number, stage in enumerate(self._stages)
        )
        self._exact = Full().bind(self._slabs, self._metric, "full")
        default_rows = max(stage.fit_rows for stage in self._stages)
        self._fit_rows = default_rows if fit_rows is None else as_int(fit_rows, "fit_rows", 1)
        self._store = RowStore((*self._slabs.columns, *self._slabs.norm_columns))
        self._ways = Ways(self._store, self._exact)
        self._asked: tuple[float, int] | None = None
        self._tuned: Calibration | None = None
        self._chosen = cascade is None  # whether the cascade is up to tune()
        self._changed = 0
        self._warned = False
        self._files: persistence.Files | None = None

    @classmethod
    def build(
        cls,
        vectors: Any,
        ids: Any = None,
        metric: Metric = "cosine",
        recall: float = 0.95,
        k: int = 10,
        queries: Any = None,
        progress: bool = False,
        *,
        transform: Transform | None = None,
    ) -> Self:
        """An index of all vectors, tuned: `tune` says what for, and when the recall is certified.

        Fewer than 4,096 rows, and int8 vectors, are searched exactly.

        Parameters
        ----------
        vectors : array_like, shape (n, dim)
            Stored as the dtype they have (float64 as float32).
        ids : array_like of int, shape (n,), optional
            By default 0, 1, 2, …
        metric : {"cosine", "ip", "l2"}
        recall : float
            The recall@k to reach, above 0 and up to 1; 1.0 is exact search, through bounds that cannot fail where that is faster.
        k : int
            Neighbors that searches will ask for, at most.
        queries : array_like, shape (Q, dim), optional
            Like those that will be searched. Without, stored rows stand for queries, and the recall is an estimate.
        progress : bool
            Show a bar (needs tqdm).
        transform : Transform, optional
            See `Index`; not for int8 vectors. One that is not fitted is fitted to the vectors (at most 65,536 of them, evenly spread), not
            to the queries, which then could not certify anything.

        Examples
        --------
        >>> import numpy as np
        >>> import adaptive_search as asx
        >>> index = asx.Index.build(np.eye(4, dtype=np.float32))
        >>> index.search([1.0, 0.2, 0.0, 0.0], k=2).ids.tolist()
        [0, 1]
        """
        rows = as_rows(vectors, "vectors")
        wanted = as_recall(recall)
        k = as_k(k)
        batch = None if queries is None else as_queries(queries, rows.dim)[0]
        if batch is not None and wanted < 1.0:
            tuning_queries.split(len(batch), wanted)
        index = cls(rows.dim, as_metric(metric), rows.kind, transform=transform)
        if len(rows) and not index._intake.ready:
            index._intake = index._intake.fitted_to(rows, fitting.spread(len(rows), max(rows.dim, index._intake.width)))
        index._asked = (wanted, k)
        index.add(rows.array, ids, progress=progress)
        if len(index) >= ways.LEAST_ROWS and index.dtype != "int8":
            index.tune(batch, k=k, recall=wanted, progress=progress)
        return index

    @classmethod
    def open(cls, path: str | os.PathLike[str], mmap: bool = True) -> Self:
        """Open a saved index, which can then be searched, changed and saved again, here or elsewhere.

        Parameters
        ----------
        path : path
            A directory written by `save`.
        mmap : bool
            True maps vectors and codes: opening takes no time, and they are read from disk when used. False reads
            everything into memory and checks every byte.

        Raises
        ------
        FileNotFoundError
            If there is no such directory.
        IndexFormatError
            If it is not an index, or damaged.
        """
        content = read_state(path, mmap=mmap)
        described = persistence.Description.from_json(content.meta)
        transform = persistence.restore_transform(content, described)
        try:
            index = cls(described.dim, described.metric, described.dtype, described.cascade, transform=transform)
        except ValueError as error:
            raise IndexFormatError(f"the manifest describes an impossible index: {error}") from None
        index._fit_rows = described.fit_rows
        index._asked, index._tuned = described.asked, described.tuned
        index._changed, index._chosen = described.changed, described.chosen
        index._parts = persistence.restore(content, described, index._parts, index._store)
        index._files = persistence.Files(Path(path).absolute(), index._parts, index._intake.transform, content)
        return index

    # --- looking -----------------------------------------------------------------------------------------------------
    @property
    def dim(self) -> int:
        """Dims of the vectors that are added and searched for; a transform may store others."""
        return self._intake.dim

    @property
    def metric(self) -> Metric:
        """``"cosine"``, ``"ip"`` or ``"l2"``."""
        return self._metric

    @property
    def dtype(self) -> Kind:
        """What the vectors are stored as."""
        return self._slabs.kind

    @property
    def cascade(self) -> Cascade | None:
        """The cascade that was given, in use once `fitted`; None for exact search."""
        return self._cascade

    @property
    def transform(self) -> Transform | None:
        """A copy of the transform that vectors go through; None if they are stored as they are.

        Examples
        --------
        >>> import numpy as np
        >>> import adaptive_search as asx
        >>> rows = np.random.default_rng(0).standard_normal((500, 16)).astype(np.float32)
        >>> index = asx.Index(16, "l2", transform=asx.Whitening())
        >>> index.fit(rows[:200])
        >>> index.add(rows)
        >>> scores = index.search(rows[3], k=2).scores
        >>> near = index.transform.transform(rows[index.search(rows[3], k=2).ids])
        >>> bool(np.allclose(scores, np.square(near - near[0]).sum(axis=1), atol=1e-5))
        True
        """
        return copy.deepcopy(self._intake.transform)

    @property
    def ids(self) -> I64:
        """The ids of all rows (n,), in order of adding: a copy."""
        return self._store.live_ids()

    @property
    def fitted(self) -> bool:
        """Whether every stage of the cascade is learned, and searches go through it."""
        return self._installed.fitted

    @property
    def fit_rows(self) -> int:
        """Rows from which the stages are learned. A new value counts from the next `add` on."""
        return self._fit_rows

    @fit_rows.setter
    def fit_rows(self, rows: int) -> None:
        self._fit_rows = as_int(rows, "fit_rows", 1)

    def __len__(self) -> int:
        return self._store.live

    def __contains__(self, id: object) -> bool:  # noqa: A002
        try:
            wanted = integer(id)  # type: ignore[arg-type]
        except TypeError:
            return False
        return 0 <= wanted <= self._store.largest_id and bool(self._store.find(np.array([wanted]))[0] >= 0)

    @property
    def plan(self) -> Plan:
        """How searches run now, and what is known of their recall."""
        recall, k = self._asked or (None, None)
        tuned = self._tuned if self.fitted else None
        certified, interval = False, None
        if tuned is not None:
            recall, k = tuned.recall, tuned.k
        if self._installed.exact:
            recall, interval = 1.0, (1.0, 1.0)
            why = "searches are exact: there is nothing to certify"
        elif self._installed.needs_calibration:
            why = "a stage has keep=None, which needs calibration by tune()"
        elif not self.fitted:
            recall = 1.0
            why = f"searches are exact until the cascade is fitted, at {self._fit_rows:,} rows or by fit(); there are {len(self):,}"
        elif tuned is None:
            why = "fixed shortlists, not calibrated on queries; audit() measures their recall"
        else:
            interval = tuned.interval(tuned.recall)
            why = self._doubt(tuned)
            certified = not why
        return Plan(
            stages=self._stages if self.fitted else (Full(),),
            recall=recall,
            k=k,
            certified=certified,
            why=why,
            interval=interval,
            n_queries=None if tuned is None else tuned.queries,
            cost_us=None if tuned is None else tuned.cost_us,
            bytes_per_row=self._store.row_bytes() + searching.listed_bytes(self._parts if self.fitted else (), self._store),
        )

    def _doubt(self, tuned: Calibration) -> str:
        """Why the recall of a tuned plan is not certified; empty if it is."""
        if any(stage.shortlist is not None for stage in self._stages):
            return "a stage has a fixed keep, whose recall was measured, but cannot be widened"
        if not isinstance(self._stages[-1], Full):
            return "the last stage's estimates are the answer, which no margin makes exact"
        if not tuned.given:
            return "stored rows stood for queries: the recall of others may differ"
        if self._changed:
            return f"{self._changed:,} rows were added or removed since tuning"
        return ""

    def __repr__(self) -> str:
        return f"<Index: {len(self):,} rows, {self.dim} dims, {self._metric}, {self.dtype}>"

    def __str__(self) -> str:
        plan = self.plan
        lines = [
            ("rows", f"{len(self):,} of {self.dim} dims, {self.dtype}"),
            ("metric", self._metric),
            ("search", " → ".join(map(repr, plan.stages))),
            ("recall", "certified" if plan.certified else f"not certified: {plan.why}"),
            ("memory", f"{plan.bytes_per_row:,} bytes a row, {plan.bytes_per_row * self._store.total / 1e6:,.1f} MB"),
        ]
        if not self.fitted:
            lines.insert(3, ("cascade", f"{' → '.join(map(repr, self._stages))}, when fitted"))
        if self._intake.transform is not None:
            made = f"to {self._intake.width} dims" if self._intake.ready else "not fitted"
            lines.insert(1, ("through", f"{self._intake.transform!r}, {made}"))
        return "Index\n" + "\n".join(f"  {name:8} {text}" for name, text in lines)

    # --- changing ----------------------------------------------------------------------------------------------------
    def add(self, vectors: Any, ids: Any = None, *, progress: bool = False) -> None:
        """Add rows, and learn the cascade if that brings the index to `fit_rows`.

        Parameters
        ----------
        vectors : array_like, shape (n, dim)
            Copied, rounded to the index's dtype; transformed before if the index has a transform.
        ids : array_like of int, shape (n,), optional
            From 0 up, none of them in the index. By default they continue after the largest ever used.
        progress : bool
            Show a bar (needs tqdm).

        Raises
        ------
        TypeError, ValueError
            Naming the argument and the first bad row: a wrong shape or dtype, NaN or infinity, a number or norm that overflows, a
            negative, repeated or present id. Also while the transform is not fitted.
        """
        matrix = as_ndarray(vectors, "vectors")
        check_vectors(matrix, self.dtype, self.dim)
        count = len(matrix)
        new_ids = self._new_ids(ids, count)
        if not count:
            return
        if not self._intake.ready:
            raise ValueError(f"transform: {self._intake.transform!r} is not fitted: call fit(sample) before add()")
        learns = not self.fitted and len(self) + count >= self._fit_rows
        with progress_bar(progress, "adding", "steps" if learns else "rows") as bar:
            spans = self._store.stage(count)
            self._write(matrix, spans, part_of(bar, 0, 2) if learns else bar)
            if learns:
                self._learn(fitting.sample_rows(self._slabs, self._store, spans), spans, new_ids, part_of(bar, 1, 2))
            else:
                self._store.commit(spans, new_ids)
            self._changed += count

    def remove(self, ids: Any) -> None:
        """Remove the rows of one id or several.

        Raises
        ------
        TypeError, ValueError
            Naming an id that is unknown or named twice; then nothing is removed.
        """
        wanted = as_id_list(ids, "ids")
        positions = self._store.find(wanted)
        if len(wanted) and positions.min() < 0:
            raise ValueError(f"ids: {wanted[positions < 0][0]} is not in the index")
        if len(wanted) > 1:
            as_ids(wanted, len(wanted))
        self._store.kill(positions)
        self._changed += len(positions)

    def fit(self, sample: Any = None, *, progress: bool = False) -> None:
        """Learn every stage of the cascade that learns, and encode all rows; anew if that was done before.

        A transform that is not fitted is fitted to the sample first, once and for all: rows are stored as it makes them.

        Parameters
        ----------
        sample : array_like, shape (n, dim), optional
            Vectors to learn from, by default the rows of the index: at most 65,536 of them, evenly spread.
        progress : bool
            Show a bar (needs tqdm).

        Raises
        ------
        TypeError, ValueError
            If there is nothing to learn from, or the sample is bad.
        """
        intake = self._intake
        if sample is None:
            if not intake.ready:
                raise ValueError(f"sample: expected vectors to fit {intake.transform!r} to, got None")
            learned = fitting.sample_rows(self._slabs, self._store)
        else:
            intake, learned = intake.sample(sample)
        if not any(stage.fit_rows for stage in self._stages):
            self._intake = intake
            return
        if not len(learned):
            raise ValueError("sample: there are no rows to learn from")
        with progress_bar(progress, "fitting", "steps") as bar:
            self._learn(learned, (), np.empty(0, np.int64), bar, intake)

    def tune(self, queries: Any = None, *, k: int = 10, recall: float = 0.95, memory: int | None = None, progress: bool = False) -> Plan:
        """Learn the plan that searches for a recall at the least cost, and install it.

        A cascade that the index was made with keeps its stages, and gets the margins that it needs. Otherwise the cheapest is taken of
        a family for vectors of this dim and metric. Queries are shared out at random: some fit error models and choose the cascade; with
        the others, conformal risk control (see `adaptive_search.calibration`) finds the margin at which the expected recall@k is at least
        ``recall``. Called again for the same rows, it does not learn again the stages that are in use.

        Parameters
        ----------
        queries : array_like, shape (Q, dim), optional
            Exchangeable with those to come. At least ``recall / (1 - recall)``: 19 for 0.95, 99 for 0.99; a thousand leave less to
            chance. Without, stored rows stand for queries: then the recall is an estimate and not certified.
        k : int
            Neighbors that searches will ask for, at most.
        recall : float
            Above 0 and up to 1; 1.0 looks for the fastest exact search. Where a plan finds thresholds for that, searches for lower
            recalls go by it.
        memory : int, optional
            Most bytes that the index may hold per row, for a cascade that is to be chosen.
        progress : bool
            Show a bar (needs tqdm).

        Returns
        -------
        Plan
            The one in use from now on.

        Raises
        ------
        TypeError, ValueError
            Naming the argument: too few queries, no rows.
        """
        wanted, k = as_recall(recall), as_k(k)
        batch = None if queries is None else self._intake.queries(queries)[0]
        most = None if memory is None else as_int(memory, "memory", 1)
        if not len(self):
            raise ValueError("tune: the index is empty, there are no rows to search")
        own_cascade = None if self._chosen else self._cascade
        if batch is None and own_cascade is None and not tuning_queries.enough_rows(len(self), wanted):
            # What could be chosen could not be calibrated; exact search needs no calibration.
            self._adopt(None, None, (wanted, k))
            return self.plan
        with progress_bar(progress, "tuning", "steps") as bar:
            backend = current()
            ground = tuning_queries.Ground(backend, self._store, self._slabs, self._metric, self._ways.full(backend))
            tuners, judges = tuning_queries.queries_for(ground, batch, k, wanted)
            best, calibration = tuning.best_plan(
                ground,
                own_cascade,
                tuners,
                judges,
                k,
                wanted,
                given=batch is not None,
                memory=None if most is None else most - self._plain_bytes(),
                sample=lambda: fitting.sample_rows(self._slabs, self._store),
                # Learning from the same rows would give the same stages.
                known=(self._stages, self._parts) if self._tuned is not None and not self._changed else ((), ()),
                progress=bar,
            )
        self._adopt(best, calibration, (wanted, k))
        return self.plan

    def _plain_bytes(self) -> int:
        """Bytes per row without any stage's columns."""
        stages = sum(column.row_bytes for part in self._parts for column in part.columns if column.name in self._store.columns)
        return self._store.row_bytes() - stages

    def _adopt(self, candidate: Candidate | None, calibration: Calibration | None, asked: tuple[float, int]) -> None:
        """Install what was learned, at once."""
        store = self._store
        old = [column.name for part in self._parts for column in part.columns]
        cascade: Cascade | None = None
        stages: tuple[Stage, ...] = (Full(),)
        parts: tuple[Representation, ...] = (Full().bind(self._slabs, self._metric, "stage.0"),)
        arrays: list[dict[str, Array]] = [{} for _ in store.chunks]
        if candidate is not None:
            cascade, stages = candidate.cascade, candidate.cascade.stages
            parts = linked(part.named(f"stage.{number}") for number, part in enumerate(candidate.parts))
            names = {
                before.name: after.name
                for one, other in zip(candidate.parts, parts, strict=True)
                for before, after in zip(one.columns, other.columns, strict=True)
            }
            arrays = [{names[name]: array for name, array in chunk.items()} for chunk in candidate.arrays]
        columns, chunks = store.exchanged([column for part in parts for column in part.columns], arrays, old)
        # Plain assignments, between which Python delivers no Ctrl-C.
        store.columns, store.chunks, store.layout = columns, chunks, store.layout + 1
        self._cascade, self._stages, self._parts = cascade, stages, parts
        self._tuned, self._asked, self._changed, self._warned = calibration, asked, 0, False
        self._ways.forget()

    # --- searching ---------------------------------------------------------------------------------------------------
    @overload
    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        recall: float | None = None,
        filter: Any = None,
        threads: int | None = None,
        stats: Literal[False] = False,
        progress: bool = False,
    ) -> Neighbors: ...

    @overload
    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        recall: float | None = None,
        filter: Any = None,
        threads: int | None = None,
        stats: Literal[True],
        progress: bool = False,
    ) -> tuple[Neighbors, SearchStats]: ...

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        recall: float | None = None,
        filter: Any = None,  # noqa: A002
        threads: int | None = None,
        stats: bool = False,
        progress: bool = False,
    ) -> Neighbors | tuple[Neighbors, SearchStats]:
        """The best k rows of every query, through the cascade once it is fitted, with the margins that `tune` has learned.

        Ties go to the smaller id. Answers do not depend on batch, threads or backend, and those for a smaller k begin those for a
        larger one, as long as k is not above a stage's ``keep`` or the plan's k. A larger k than the plan's is searched with the plan's
        margins, without a promise, and warned of once.

        Parameters
        ----------
        queries : array_like, shape (Q, dim) or (dim,)
        k : int
            Neighbors per query.
        recall : float, optional
            1.0 searches exactly, whatever the cascade: through bounds that cannot fail where it has some, which is faster. Other values
            need a plan, and take its margin for that recall; where only exact search reaches it, that is done.
        filter : array_like, or list of Q such, optional
            Rows that may be found: a bool per row, aligned with `ids`, or the allowed ids (those not present are ignored).
            A list holds a filter of its own for every query. Few allowed rows are scored directly, without the cascade.
        threads : int, optional
            Threads to use at most; by default what `set_threads` says.
        stats : bool
            Return counters as well.
        progress : bool
            Show a bar (needs tqdm).

        Returns
        -------
        Neighbors
            Shape (Q, min(k, m)), m being the most rows that any query may find; a query with fewer ends in id -1, score NaN. ``(dim,)``
            queries give ``(k,)`` arrays.
        SearchStats
            If ``stats``: rows scored and kept by every stage.

        Raises
        ------
        TypeError, ValueError
            Naming the argument that is wrong; also for a cascade that needs calibration (`tune`), fitted or not, unless the index is
            empty.
        """
        if recall is None and filter is None and threads is None and not stats and not progress:
            quick = self._at_once(queries, k)
            if quick is not None:
                return quick
        threads = as_threads(threads)
        batch, single = self._intake.queries(queries, threads=threads)
        k = as_k(k)
        wanted_recall, installed = None if recall is None else as_recall(recall), self._installed
        if not len(self) and wanted_recall is not None:
            installed.margins(wanted_recall)
        way = self._ways.way(current(), wanted_recall, installed) if len(self) else None
        wanted = k if way is None else installed.run_k(way, k)
        if self._tuned is not None and way is not None and way.margins < math.inf and k > self._tuned.k and not self._warned:
            self._warned = True
            warnings.warn(f"k: the plan is for up to {self._tuned.k} neighbors; the recall of {k} is not certified", stacklevel=2)
        if way is not None and filter is None and not stats and not progress:
            found_at_once = way.at_once(batch, k, self._store, wanted)
            if found_at_once is not None:
                return _neighbors(*found_at_once, k, single)
        allowed = filters.resolve(filter, self._store, len(batch))
        if way is None:
            found = Found.empty(len(batch), 0, 1)
        else:
            # Without a bar, nobody is made to wait for one.
            with progress_bar(progress, "searching", "queries") if progress else nullcontext() as bar:
                found = searching.answer(way, self._store, batch, wanted, allowed, threads, bar)
        best = found.positions
        ids = np.where(best >= 0, self._store.ids[best], -1) if best.size else best
        neighbors = _neighbors(ids, found.scores, k, single)
        if not stats:
            return neighbors
        names, row_bytes = (way.names, way.row_bytes) if way is not None else (("Full()",), (0,))
        sizes = (scored * bytes_read for scored, bytes_read in zip(found.scored, row_bytes, strict=True))
        return neighbors, SearchStats(tuple(map(StageStats, names, found.scored, found.survivors, sizes)))

    def audit(self, queries: Any, k: int = 10, *, threads: int | None = None, progress: bool = False) -> Audit:
        """Measure the recall of searches as they run now against exact search, by id.

        Parameters
        ----------
        queries : array_like, shape (Q, dim) or (dim,)
        k : int
            Neighbors per query.

        Returns
        -------
        Audit
            recall, low, high, n: the mean over the queries and its 95% interval.
        """
        batch, _ = as_queries(queries, self.dim)
        if not len(batch) or not len(self):
            raise ValueError(f"queries: an audit needs at least one query and one row, got {len(batch)} and {len(self)}")
        truth = self.search(batch, k, recall=1.0, threads=threads, progress=progress).ids
        found = self.search(batch, k, threads=threads, progress=progress).ids
        hits = [len(np.intersect1d(mine, best)) for mine, best in zip(found, truth, strict=True)]
        return Audit.of(np.array(hits) / truth.shape[1])

    def explain(self, query: Any, id: int, k: int | None = None) -> Explanation:  # noqa: A002
        """Why a search finds a row, or does not: its score and rank, and what each stage made of it.

        Parameters
        ----------
        query : array_like, shape (dim,)
        id : int
            Of the row.
        k : int, optional
            Neighbors that the search asks for; by default the plan's, or 10.

        Raises
        ------
        TypeError, ValueError
            Naming the argument; also for an id that is not in the index.

        Examples
        --------
        >>> import numpy as np, adaptive_search as asx
        >>> index = asx.Index.build(np.eye(4, dtype=np.float32))
        >>> found = index.explain([1.0, 0.5, 0.0, 0.0], 1, k=1)
        >>> found.found, found.rank, found.lost_at
        (False, 2, 'Full()')
        """
        batch, single = self._intake.queries(query, "query")
        if not single:
            raise ValueError(f"query: expected shape ({self.dim},), got {np.shape(query)}")
        if id not in self:
            raise ValueError(f"id: {id!r} is not in the index")
        position = int(self._store.find(np.array([id]))[0])
        wanted = as_k(k) if k is not None else self._tuned.k if self._tuned is not None else 10
        way = self._ways.way(current(), None, self._installed)
        full = self._ways.full(way.backend)
        run_k = self._installed.run_k(way, wanted)
        return explaining.explain(way, full, batch, position, integer(id), wanted, run_k, self._store.alive, len(self))

    # --- files -------------------------------------------------------------------------------------------------------
    def save(self, path: str | os.PathLike[str]) -> None:
        """Save to a directory, whose former state stays complete until the new one is.

        Into the directory that the index was opened from or saved to last, only what has changed is written.

        Parameters
        ----------
        path : path
            A new or empty directory, or one that holds an index, which is replaced.

        Raises
        ------
        IndexFormatError
            If the directory holds something else.
        OSError
            From the filesystem.
        """
        transform = self._intake.transform
        description = persistence.Description(
            self.dim,
            self._metric,
            self.dtype,
            self._cascade,
            self._fit_rows,
            self.fitted,
            self._store.largest_id,
            self._asked,
            self._tuned,
            self._changed,
            self._chosen,
            None if transform is None else transform.spec(),
        )
        self._files = persistence.write(path, description, transform, self._parts, self._store, self._files)

    def verify(self) -> None:
        """Check every byte of the files that the index was opened from or saved to last; there are none if it never was.

        Raises
        ------
        IndexFormatError
            Naming the first file that is damaged.
        """
        if self._files is not None:
            self._files.verify()

    # --- inside ------------------------------------------------------------------------------------------------------
    @property
    def _installed(self) -> Installed:
        """What searches go by."""
        return Installed(self._stages, self._parts, self._tuned, self._asked)

    def _new_ids(self, ids: Any, count: int) -> I64:
        if ids is None:
            first = self._store.largest_id + 1
            if first + count - 1 > np.iinfo(np.int64).max:
                raise ValueError(f"ids: none are left above the largest ever used, {first - 1}; pass ids of your own")
            return np.arange(first, first + count, dtype=np.int64)
        given = as_ids(ids, count)
        present = self._store.find(given) >= 0
        if present.any():
            raise ValueError(f"ids: {given[present][0]} is in the index already")
        return given

    def _write(self, matrix: Array, spans: Sequence[Span], progress: Progress | None) -> None:
        """Convert rows block by block into the staged spans, with their norms and, if the cascade is fitted, their codes."""
        backend = current()
        encoded = self._parts if self.fitted else ()
        done = 0
        for chunk, first, last in spans:
            for start, stop in fitting.blocks(last - first, max(self.dim, self._slabs.dim)):
                block = matrix[done : done + stop - start]
                stored = self._intake.rows(block)
                bad = write_vectors(backend, self._slabs, chunk, first + start, stored)
                if bad.any():
                    raise self._intake.bad_row(block, stored, int(bad.argmax()), first=done)
                if encoded:
                    fitting.encode(self._slabs, encoded, chunk, first + start, first + stop, chunk.arrays)
                done += stop - start
                if progress is not None:
                    progress(done, len(matrix))

    def _learn(self, sample: F32, spans: Sequence[Span], new_ids: I64, progress: Progress | None, intake: Intake | None = None) -> None:
        """Learn all stages and encode all rows, those of ``spans`` included; then let the rows count, and what was learned."""
        parts = fitted(self._parts, sample, part_of(progress, 0, 2))
        arrays = fitting.encode_all(self._slabs, parts, self._store.extents(spans), part_of(progress, 1, 2))
        self._store.commit(spans, new_ids)
        store = self._store
        columns, chunks = store.exchanged([column for part in parts for column in part.columns], arrays)
        # Plain assignments, between which Python delivers no Ctrl-C.
        store.columns, store.chunks, store.layout = columns, chunks, store.layout + 1
        self._parts, self._tuned, self._intake = parts, None, intake or self._intake

    def _at_once(self, queries: Any, k: Any) -> Neighbors | None:
        """What `search` finds where nothing needs a second look, which takes a good part of a small search's time; else None."""
        tuned = self._tuned
        if tuned is None or self._intake.transform is not None or not self._store.live or type(k) is not int or k > tuned.k:
            return None
        found = self._ways.way(current(), None, self._installed).at_once(queries, k, self._store, tuned.k)
        return None if found is None else Neighbors._make(found)


def _neighbors(ids: I64, scores: F32, k: int, single: bool) -> Neighbors:
    """What was found, cut to k."""
    if single:
        return Neighbors(ids[0, :k], scores[0, :k])
    return Neighbors(ids, scores) if ids.shape[1] <= k else Neighbors(np.ascontiguousarray(ids[:, :k]), np.ascontiguousarray(scores[:, :k]))
