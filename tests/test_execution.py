"""Threads: every range exactly once, never more threads than asked for, errors and Ctrl-C leave nothing running, fork, progress."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import adaptive_search as asx
from adaptive_search import execution
from adaptive_search.execution import CANDIDATE_BYTES, run_ranges, run_scan
from adaptive_search.types import F32, I64

PAUSE = 0.003
"""Long enough for a range that the rest of the work is worth helpers."""


class Watch:
    """Counts how many threads are inside at once, and which."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.most = 0
        self.threads: set[int] = set()

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.threads.add(threading.get_ident())

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1


@pytest.fixture(autouse=True)
def default_threads() -> Iterator[None]:
    yield
    asx.set_threads(None)


# --- ranges ---------------------------------------------------------------------------------------------------------------


@given(count=st.integers(0, 500), grain=st.integers(1, 70), threads=st.integers(1, 4))
@settings(deadline=None, max_examples=50)
def test_ranges_cover_every_item_once_and_begin_at_grains(count: int, grain: int, threads: int) -> None:
    seen = np.zeros(count, int)

    def work(first: int, last: int) -> None:
        assert first % grain == 0
        assert first < last
        seen[first:last] += 1

    run_ranges(work, count, threads=threads, grain=grain)
    assert (seen == 1).all()


def test_long_work_is_shared_by_no_more_threads_than_asked_for() -> None:
    for threads in (1, 2, 3):
        watch, pieces = Watch(), []

        def work(first: int, last: int, watch: Watch = watch, pieces: list[int] = pieces) -> None:
            with watch:
                pieces.extend(range(first, last))
                time.sleep(PAUSE * (last - first))

        run_ranges(work, 60, threads=threads)
        assert sorted(pieces) == list(range(60))
        assert watch.most <= threads
        assert len(watch.threads) == threads


def test_small_work_stays_on_the_calling_thread() -> None:
    watch = Watch()

    def work(first: int, last: int) -> None:
        with watch:
            pass

    for _ in range(20):
        run_ranges(work, 5, threads=4)
    assert watch.threads == {threading.get_ident()}


def test_calls_from_a_pool_of_the_user_share_the_helpers() -> None:
    asx.set_threads(3)
    watch = Watch()

    def work(first: int, last: int) -> None:
        with watch:
            time.sleep(PAUSE * (last - first))

    with ThreadPoolExecutor(4) as users:
        for done in [users.submit(run_ranges, work, 40) for _ in range(8)]:
            done.result()
    # Four callers, and the two helpers that set_threads(3) allows.
    assert watch.most <= 4 + 2


def test_calls_with_one_thread_from_a_pool_use_only_the_pool() -> None:
    watch = Watch()

    def work(first: int, last: int) -> None:
        with watch:
            time.sleep(PAUSE)

    with ThreadPoolExecutor(3) as users:
        for done in [users.submit(run_ranges, work, 10, threads=1) for _ in range(6)]:
            done.result()
        assert watch.threads <= {thread.ident for thread in users._threads}


def test_work_can_call_for_work() -> None:
    total = []

    def inner(first: int, last: int) -> None:
        time.sleep(PAUSE)
        total.append(last - first)

    run_ranges(lambda first, last: [run_ranges(inner, 5, threads=2) for _ in range(first, last)] and None, 8, threads=2)
    assert sum(total) == 40


def test_an_error_in_a_helper_is_raised_in_the_caller() -> None:
    caller = threading.get_ident()
    watch = Watch()

    def work(first: int, last: int) -> None:
        with watch:
            if threading.get_ident() != caller:
                raise ZeroDivisionError("in a helper")
            time.sleep(PAUSE)

    with pytest.raises(ZeroDivisionError, match="in a helper"):
        run_ranges(work, 200, threads=2)
    assert watch.inside == 0
    assert execution._pool.busy == 0


def test_an_error_in_the_caller_waits_for_helpers() -> None:
    caller = threading.get_ident()
    watch = Watch()

    def work(first: int, last: int) -> None:
        with watch:
            time.sleep(PAUSE)
            if threading.get_ident() == caller and len(watch.threads) > 1:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_ranges(work, 10_000, threads=3)
    assert watch.inside == 0
    assert execution._pool.busy == 0


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_leaves_nothing_running() -> None:
    watch, done, lock = Watch(), [], threading.Lock()

    def work(first: int, last: int) -> None:
        with watch:
            time.sleep(PAUSE)
            with lock:  # else two threads may both see eleven
                done.append(first)
                tenth = len(done) == 10
            if tenth:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell starts in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            run_ranges(work, 1_000_000, threads=2)
    finally:
        signal.signal(signal.SIGINT, before)
    count = len(done)
    assert watch.inside == 0
    assert execution._pool.busy == 0
    time.sleep(10 * PAUSE)
    assert len(done) == count


def test_progress_rises_to_the_total_in_the_calling_thread() -> None:
    reports: list[tuple[int, int, int]] = []
    run_ranges(
        lambda first, last: time.sleep(PAUSE),
        30,
        threads=2,
        progress=lambda done, total: reports.append((done, total, threading.get_ident())),
    )
    assert {total for _, total, _ in reports} == {30}
    assert {thread for _, _, thread in reports} == {threading.get_ident()}
    assert [done for done, _, _ in reports] == sorted(done for done, _, _ in reports)
    assert reports[-1][0] == 30


def test_a_progress_bar_is_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    with execution.progress_bar(False, "Working") as report:
        assert report is None
    assert capsys.readouterr().err == ""
    with execution.progress_bar(True, "Working") as report:
        assert report is not None
        run_ranges(lambda first, last: None, 7, progress=report)
    assert "Working" in (shown := capsys.readouterr().err)
    assert "7.00/7.00" in shown


# --- numbers of threads ---------------------------------------------------------------------------------------------------


def test_the_number_of_threads_is_set_and_reset() -> None:
    default = asx.get_threads()
    assert default == execution.available_cores() >= 1
    asx.set_threads(7)
    assert asx.get_threads() == 7
    asx.set_threads(None)
    assert asx.get_threads() == default


@pytest.mark.parametrize(("threads", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), ("2", TypeError), (True, TypeError)])
def test_bad_numbers_of_threads_are_refused(threads: Any, error: type[Exception]) -> None:
    before = asx.get_threads()
    with pytest.raises(error, match=r"^threads: expected"):
        asx.set_threads(threads)
    assert asx.get_threads() == before
    with pytest.raises(error, match=r"^threads: expected"):
        asx.top_k(np.ones(2), np.eye(2), 1, threads=threads)


# --- scans ----------------------------------------------------------------------------------------------------------------


class FakeRows:
    def __init__(self, visits: int) -> None:
        self.visits = visits

    def __len__(self) -> int:
        return self.visits


class FakeScan:
    """Records visits. Its result is the sum of the visits made, for every query."""

    def __init__(
        self, log: list[tuple[int, int, int, int]], first: int, last: int, k: int, pause: float = 0.0, bad: dict[int, int] | None = None
    ) -> None:
        self.log, self.first, self.last, self.k, self.pause = log, first, last, k, pause
        self.bad = bad or {}
        self.bad_row = -1
        self.total = 0
        self.owner = threading.get_ident()

    def run(self, first: int, last: int) -> None:
        assert threading.get_ident() == self.owner, "a state is used by the thread that made it"
        time.sleep(self.pause * (last - first))
        for visit in range(first, last):
            self.total += visit
            self.log.append((self.first, self.last, visit, threading.get_ident()))
            if visit in self.bad and not 0 <= self.bad_row <= self.bad[visit]:
                self.bad_row = self.bad[visit]

    def fork(self) -> FakeScan:
        return FakeScan(self.log, self.first, self.last, self.k, self.pause, self.bad)

    def merge(self, other: FakeScan) -> None:
        self.total += other.total

    def finish(self) -> tuple[F32, I64]:
        shape = (self.last - self.first, self.k)
        return np.full(shape, self.total, np.float32), np.repeat(np.arange(self.first, self.last)[:, None], self.k, axis=1)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("queries", "visits"), [(1, 1), (1, 50), (5, 30), (5, 2), (70, 3), (300, 4), (1000, 2), (3, 0)])
def test_every_query_makes_every_visit_once(queries: int, visits: int, threads: int) -> None:
    log: list[tuple[int, int, int, int]] = []
    scores, ids = run_scan(FakeRows(visits), lambda first, last: FakeScan(log, first, last, 4, 0.001), queries, 4, threads=threads)
    made = np.zeros((queries, visits), int)
    for first, last, visit, _ in log:
        made[first:last, visit] += 1
    assert (made == 1).all()
    assert scores.shape == ids.shape == (queries, 4)
    assert (ids == np.arange(queries)[:, None]).all()
    assert (scores == visits * (visits - 1) / 2).all()
    assert len({thread for *_, thread in log}) <= threads


@pytest.mark.parametrize(("queries", "visits"), [(1, 100), (640, 8)])
def test_long_scans_use_all_threads(queries: int, visits: int) -> None:
    log: list[tuple[int, int, int, int]] = []
    run_scan(FakeRows(visits), lambda first, last: FakeScan(log, first, last, 1, PAUSE), queries, 1, threads=2)
    assert len({thread for *_, thread in log}) == 2


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("k", [1, 1000, 40_000, 5_000_000])
def test_candidates_at_work_stay_within_the_budget(k: int, threads: int) -> None:
    made: list[tuple[int, int]] = []

    class Counted(FakeScan):
        def finish(self) -> tuple[F32, I64]:
            made.append((self.first, self.last))
            return np.zeros(1, np.float32), np.zeros(1, np.int64)  # broadcast into the result

    queries = 600 if k <= 1000 else 3
    run_scan(FakeRows(1), lambda first, last: Counted([], first, last, k), queries, k, threads=threads)
    assert sorted(made)[0][0] == 0
    assert sum(last - first for first, last in made) == queries
    largest = max(last - first for first, last in made)
    workers = max(1, min(threads, CANDIDATE_BYTES // ((2 * k + 64) * 16)))
    assert largest == 1 or largest * workers * (2 * k + 64) * 16 <= CANDIDATE_BYTES
    assert largest > 1 or k >= 1000


@pytest.mark.parametrize("queries", [1, 640])
def test_the_first_bad_row_is_named(queries: int) -> None:
    bad = {3: 91, 17: 12, 39: 13}
    for threads in (1, 2):
        with pytest.raises(ValueError, match="rows: row 12 holds NaN or infinity"):
            run_scan(FakeRows(40), lambda first, last: FakeScan([], first, last, 1, 0.001, bad), queries, 1, threads=threads)


def test_scan_progress_counts_visits_of_all_queries() -> None:
    for queries, threads in ((1, 1), (600, 1), (600, 2)):
        reports: list[tuple[int, int]] = []
        record: Callable[[int, int], None] = lambda done, total, reports=reports: reports.append((done, total))  # noqa: E731
        run_scan(FakeRows(7), lambda first, last: FakeScan([], first, last, 1), queries, 1, threads=threads, progress=record)
        assert {total for _, total in reports} == {7 * queries}
        assert [done for done, _ in reports] == sorted(done for done, _ in reports)
        assert reports[-1] == (7 * queries, 7 * queries)


# --- fork and exit, with real searches ------------------------------------------------------------------------------------

SEARCH = """
import os, sys, threading, warnings
import numpy as np, adaptive_search as asx
warnings.simplefilter("ignore")
asx.set_threads(2)
rng = np.random.default_rng(0)
rows, queries = rng.standard_normal((60_000, 64), dtype=np.float32), rng.standard_normal((300, 64), dtype=np.float32)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_searches_with_threads_of_its_own() -> None:
    code = (
        SEARCH
        + """
before = asx.top_k(queries, rows, 5)
print(any(thread.name.startswith("adaptive_search") for thread in threading.enumerate()), flush=True)
child = os.fork()
after = asx.top_k(queries, rows, 5)
same = np.array_equal(before.ids, after.ids) and np.array_equal(before.scores, after.scores)
helped = any(thread.name.startswith("adaptive_search") for thread in threading.enumerate())
if child == 0:
    os._exit(0 if same and helped else 1)
print(same, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert run.stdout == "True\nTrue 0\n", run.stderr


def test_searching_while_the_interpreter_exits_works() -> None:
    code = SEARCH + "import atexit\natexit.register(lambda: print(asx.top_k(queries, rows, 5).ids.shape))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert run.stdout == "(300, 5)\n", run.stderr


def test_importing_starts_no_threads() -> None:
    code = "import threading, adaptive_search as asx; asx.get_threads(); print(threading.active_count())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert run.stdout == "1\n", run.stderr
