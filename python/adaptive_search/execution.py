"""Threads: how an operation is cut into ranges, shared between threads, interrupted and reported.

The calling thread always works itself and checks for Ctrl-C between ranges of about 50 ms. Helpers from one shared executor join in when
the work left, judged by the ranges done so far, is worth waking them. Helpers are never waited for to become free: a call that
finds none works alone, so that many calls at once (a user's own thread pool) do not add up to more threads than were asked for.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

import numpy as np

from . import arrays
from .backends.protocol import Rows, Scan
from .types import F32, I64
from .validation import as_threads

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)`` between ranges, by the calling thread."""

STEPS = 1_000
"""Of a part, in progress that is put together from parts."""

RANGE_SECONDS = 0.05
"""How long a range should take: short enough for Ctrl-C, long enough that its overhead does not show."""

WORTH_SECONDS = 0.002
"""Less work than this is not worth a helper: waking a thread and getting its result takes some 0.1 ms."""

CANDIDATE_BYTES = 64 << 20
"""Most memory for candidates of the scans of one call."""

MAX_GROUP = 1024
"""Most queries packed together: what a kernel does to a block of rows before it scores them is shared by so many."""

VISIT_WORK = 1 << 20
"""Most products (queries times width) per row of a visit, so that one visit of 4,096 rows stays far below a second."""


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Pool:
    """The shared executor, and how many of its threads are at work."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.busy = 0
        self.executor: ThreadPoolExecutor | None = None

    def call_in(self, work: Callable[[], None], wanted: int, limit: int) -> list[Future[None]]:
        """Start ``work`` on up to ``wanted`` threads, with no more than ``limit`` at work over all calls."""
        with self.lock:
            count = max(0, min(wanted, limit - self.busy))
            if not count:
                return []
            if self.executor is None:
                # Threads are only started as needed, and `busy` is what bounds them.
                self.executor = ThreadPoolExecutor(4096, thread_name_prefix="adaptive_search")
            futures: list[Future[None]] = []
            for _ in range(count):
                try:
                    futures.append(self.executor.submit(self._tracked, work))
                except RuntimeError:
                    # The interpreter is shutting down, or the machine has no more threads: the caller does the work.
                    break
                self.busy += 1
            return futures

    def _tracked(self, work: Callable[[], None]) -> None:
        try:
            work()
        finally:
            with self.lock:
                self.busy -= 1


_pool = _Pool()
_threads: int | None = None


def _after_fork() -> None:
    # Threads do not survive a fork, and a lock may have been held at that moment.
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def set_threads(threads: int | None) -> None:
    """Set how many threads a call may use when it is not told by ``threads=``.

    Parameters
    ----------
    threads : int or None
        At least 1; None is the default again: the cores that this process may use.

    Examples
    --------
    >>> import adaptive_search as asx
    >>> asx.set_threads(2)
    >>> asx.get_threads()
    2
    >>> asx.set_threads(None)
    """
    global _threads
    _threads = as_threads(threads)


def get_threads() -> int:
    """How many threads a call may use when it is not told by ``threads=``."""
    return available_cores() if _threads is None else _threads


class _Job:
    """One call's work, counted in units: how much is left, who works at it, and whether it was stopped."""

    def __init__(self, units: int, threads: int, progress: Progress | None) -> None:
        self.threads = threads
        self.stopped = False
        self._lock = threading.Lock()
        self._units = units
        self._done = 0
        self._pace = 0.0
        self._progress = progress
        self._caller = threading.get_ident()
        self._loop: Callable[[], None]
        self._helpers: list[Future[None]] = []

    def run(self, loop: Callable[[], None]) -> None:
        """Run ``loop``, which works until nothing is left or the job is stopped, on this thread and its helpers."""
        self._loop = loop
        try:
            loop()
            if self._helpers:
                wait(self._helpers)
        except BaseException:
            self.stopped = True
            # Helpers write into the caller's arrays: none may be at work once this has returned.
            wait(self._helpers)
            raise
        finally:
            # The loop knows this job: without the circle, what it works on is freed at once.
            del self._loop
        for helper in self._helpers:
            helper.result()
        if self._helpers and self._progress is not None:
            self._progress(self._done, self._units)

    def _help(self) -> None:
        try:
            self._loop()
        except BaseException:
            self.stopped = True
            raise

    def note(self, units: int, seconds: float) -> None:
        """Report a range that was done, in how many seconds of its thread."""
        with self._lock:
            self._done += units
            self._pace = seconds / units
            done, left = self._done, self._units - self._done
        if threading.get_ident() != self._caller:
            return
        if not self._helpers and self.threads > 1 and left * self._pace > WORTH_SECONDS:
            self._helpers = _pool.call_in(self._help, self.threads - 1, max(self.threads, get_threads()) - 1)
        if self._progress is not None:
            self._progress(done, self._units)

    def size(self, left: int, units: int) -> int:
        """How many of the ``left`` items, of ``units`` each, the next range should have."""
        if not self._pace:
            return 1
        fitting = int(RANGE_SECONDS / (self._pace * units))
        # The last ranges shrink, so that threads end together.
        fair = -(-left // (2 * self.threads)) if self._helpers else left
        return max(1, min(fitting, fair))


class _Ranges:
    """Hands out consecutive ranges of ``range(count)``, beginning at multiples of ``grain``, to any number of threads.

    ``units`` says how many units of the job a grain has.
    """

    def __init__(self, job: _Job, count: int, grain: int, units: int, begin: int = 0) -> None:
        self._job = job
        self._lock = threading.Lock()
        self._next = begin
        self._count = count
        self._grain = grain
        self._units = units

    def __iter__(self) -> Iterator[tuple[int, int]]:
        while not self._job.stopped:
            with self._lock:
                first = self._next
                left = -(-(self._count - first) // self._grain)
                if left <= 0:
                    return
                last = min(self._count, first + self._grain * self._job.size(left, self._units))
                self._next = last
            start = time.perf_counter()
            yield first, last
            # The consumer comes back for the next range when it is done with this one.
            self._job.note(max(1, (last - first) * self._units // self._grain), time.perf_counter() - start)


def run_ranges(
    work: Callable[[int, int], None], count: int, *, threads: int | None = None, grain: int = 1, progress: Progress | None = None
) -> None:
    """Call ``work(first, last)`` for ranges that cover ``range(count)``, on several threads if there is enough to do.

    Parameters
    ----------
    work : callable
        Releases the GIL for most of its time; ranges come in any order, each exactly once.
    count : int
        How many items there are.
    threads : int, optional
        At most this many, the calling one included.
    grain : int
        Ranges begin at multiples of it; also the size of the first one, from which the others are judged.
    progress : callable, optional
        ``progress(done, count)``.
    """
    if 0 < count <= grain:
        work(0, count)
        if progress is not None:
            progress(count, count)
        return
    job = _Job(count, _asked(threads), progress)
    ranges = _Ranges(job, count, grain, grain)

    def loop() -> None:
        for first, last in ranges:
            work(first, last)

    job.run(loop)


def _asked(threads: int | None) -> int:
    asked = as_threads(threads)
    return get_threads() if asked is None else asked


def queries_at_once(width: int) -> int:
    """Most queries to be scored together against rows of so many numbers."""
    return min(MAX_GROUP, max(32, VISIT_WORK // width))


def _raise_bad_row(row: int) -> None:
    raise ValueError(f"rows: row {row} holds NaN or infinity")


def run_scan(
    rows: Rows,
    make: Callable[[int, int], Scan],
    queries: int,
    k: int,
    *,
    width: int = 1024,
    query_bytes: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
    bad_row: Callable[[int], None] = _raise_bad_row,
    finished: Callable[[int, int, Scan], None] | None = None,
) -> tuple[F32, I64]:
    """Run a top-k scan for all queries: scores (queries, k) and row numbers, as `Scan.finish` gives them.

    Threads share out the rows, each scanning its part for all queries of a group. Where there are too few rows for that, they share out
    the queries.

    Parameters
    ----------
    rows : Rows
        What is scanned.
    make : callable
        ``make(first, last)`` gives the scan for queries first..last; called from any thread.
    queries, k : int
        How many queries there are, and the k that ``make`` gives its scans.
    width : int
        How many numbers a row is scored from, roughly.
    query_bytes : int
        Memory that a query takes beside its candidates, such as its tables.
    threads : int, optional
        At most this many, the calling one included.
    progress : callable, optional
        ``progress(done, total)``, counted in visits times queries.
    bad_row : callable, optional
        Called with the smallest row found to hold NaN or infinity; by default raises a ValueError that names it.
    finished : callable, optional
        ``finished(first, last, scan)`` for every scan that is done, from any thread.
    """
    candidate_bytes = (2 * k + 64) * 16
    scores = np.empty((queries, k), np.float32)
    found = np.empty((queries, k), np.int64)
    workers = max(1, min(_asked(threads), CANDIDATE_BYTES // candidate_bytes))
    fitting = CANDIDATE_BYTES // ((candidate_bytes + query_bytes) * workers)
    group = max(1, min(queries_at_once(width), fitting))
    visits = rows.visits

    def finish(first: int, last: int, scan: Scan, bad: int) -> None:
        if bad >= 0:
            bad_row(bad)
        scores[first:last], found[first:last] = scan.finish()
        if finished is not None:
            finished(first, last, scan)

    if workers > 1 and visits < 4 * workers and queries >= 2 * workers:
        _by_queries(make, visits, list(_groups(queries, group, workers)), workers, progress, finish)
    else:
        for first, last in arrays.ranges(queries, group):
            scan, shown = make(first, last), None if progress is None else _share(progress, visits * first, visits * queries)
            finish(first, last, scan, run_rows(scan, visits, last - first, threads=workers, progress=shown))
    return scores, found


def part_of(progress: Progress | None, number: int, of: int) -> Progress | None:
    """Progress of one of so many parts of some work as that of the whole, a thousand steps to each."""
    if progress is None:
        return None
    return lambda done, total: progress(STEPS * number + STEPS * done // max(total, 1), STEPS * of)


def _share(progress: Progress, before: int, total: int) -> Progress:
    """Progress of a part, of which so much was done before, as that of the whole."""
    return lambda done, _: progress(before + done, total)


Finish = Callable[[int, int, Scan, int], None]


def _groups(queries: int, largest: int, workers: int) -> Iterator[tuple[int, int]]:
    """Groups of queries of about equal size, as many for each worker."""
    count = -(-queries // (largest * workers)) * workers
    size = -(-queries // count)
    # Kernels take up to 32 queries at a time.
    return arrays.ranges(queries, min(largest, -(-size // 32) * 32 if size > 32 else size))


def _by_queries(
    make: Callable[[int, int], Scan],
    visits: int,
    groups: list[tuple[int, int]],
    workers: int,
    progress: Progress | None,
    finish: Finish,
) -> None:
    """Every thread takes groups of queries, and scans all rows for them."""
    job = _Job(visits * groups[-1][1], workers, progress)
    waiting = deque(groups)

    def loop() -> None:
        while True:
            try:
                first, last = waiting.popleft()
            except IndexError:
                return
            scan = make(first, last)
            for start, stop in _Ranges(job, visits, 1, last - first):
                scan.run(start, stop)
            if job.stopped:
                return
            finish(first, last, scan, scan.bad_row)

    job.run(loop)


def run_rows(scan: Scan, visits: int, queries: int, *, threads: int | None = None, progress: Progress | None = None) -> int:
    """Make some visits of a scan for all its queries, all threads sharing out the rows. Returns ``bad_row`` of all forks.

    Parameters
    ----------
    scan : Scan
        Holds what was found, when this returns.
    visits : int
        How many, from the first on.
    queries : int
        That the scan is for.
    threads : int, optional
        At most this many, the calling one included.
    progress : callable, optional
        ``progress(done, total)``, counted in visits times queries.
    """
    if not visits:
        return scan.bad_row
    # Most scans for one query end before a helper would have come: they need none of what follows.
    start = time.perf_counter()
    scan.run(0, 1)
    pace = time.perf_counter() - start
    if pace * (visits - 1) <= WORTH_SECONDS:
        scan.run(1, visits)
        if progress is not None:
            progress(visits * queries, visits * queries)
        return scan.bad_row
    job = _Job(visits * queries, _asked(threads), progress)
    ranges = _Ranges(job, visits, 1, queries, begin=1)
    caller = threading.get_ident()
    forks: list[Scan] = []

    def loop() -> None:
        mine = scan
        if threading.get_ident() == caller:
            job.note(queries, pace)
        else:
            mine = scan.fork()
            forks.append(mine)
        for first, last in ranges:
            mine.run(first, last)

    job.run(loop)
    bad = min((fork.bad_row for fork in (scan, *forks) if fork.bad_row >= 0), default=-1)
    for fork in forks:
        scan.merge(fork)
    return bad


@contextmanager
def progress_bar(shown: bool, title: str, unit: str = "rows") -> Iterator[Progress | None]:
    """A tqdm bar as a `Progress`, or None if not ``shown``.

    Raises
    ------
    ImportError
        ``shown``, but tqdm is not installed.
    """
    if not shown:
        yield None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm (pip install tqdm)") from error
    with tqdm(desc=title, unit=unit, unit_scale=True) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
