"""Fixtures of the benchmarks: what is searched, and contests that are held once and reported by every contender's benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any, NamedTuple

import faiss
import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import adaptive_search as asx

from . import data
from .contest import Contest, clock, description, replay, run
from .peers import MISSING, OPTIONAL
from .settings import SETTINGS


class Outcome(NamedTuple):
    """What is kept of a contest: not its arrays."""

    title: str
    seconds: dict[str, list[float]]
    descriptions: dict[str, dict[str, Any]]


def pytest_report_header() -> list[str]:
    header = [f"benchmarks: {SETTINGS.name}, backends {', '.join(asx.backends())}, peers NumPy {np.__version__}, faiss {faiss.__version__}"]
    return header + [f"benchmarks without {name}: {reason}" for name, reason in MISSING.items()]


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if "hold" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=clock))


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    # The library may run from the tree; the others are installed.
    versions = {name: version(name) for name in ("numpy", "numba", "faiss-cpu", "usearch", *OPTIONAL) if name not in MISSING}
    machine_info["versions"] = {"adaptive-search": asx.__version__, **versions}
    machine_info["missing"] = list(MISSING)


@pytest.fixture(scope="session")
def held() -> dict[str, Outcome | Exception]:
    """Contests by test and parameters, and what came of them."""
    return {}


def outcome_of(contest: Contest) -> Outcome:
    results = run(contest)
    seconds = {name: result.seconds for name, result in results.items()}
    return Outcome(contest.title, seconds, {name: description(contest, results, name) for name in results})


@pytest.fixture
def hold(request: pytest.FixtureRequest, held: dict[str, Outcome | Exception], contender: str) -> Callable[[Callable[[], Contest]], None]:
    """Hold a contest, unless another contender's test has, and report what this contender did."""

    def report(prepare: Callable[[], Contest]) -> None:
        others = {name: value for name, value in request.node.callspec.params.items() if name != "contender"}
        key = f"{request.node.nodeid.partition('[')[0]} {others}"
        if key not in held:
            try:
                held[key] = outcome_of(prepare())
            except Exception as error:  # Reported by every contender, instead of being met again by each.
                held[key] = error
        outcome = held[key]
        if isinstance(outcome, Exception):
            raise outcome
        seconds = outcome.seconds[contender]
        replay(seconds)
        # Asked for only now: pytest-benchmark takes it for a mistake when a test that failed has not used it.
        benchmark: BenchmarkFixture = request.getfixturevalue("benchmark")
        benchmark.group = outcome.title
        benchmark.extra_info.update(outcome.descriptions[contender])
        benchmark.pedantic(lambda: None, rounds=len(seconds))

    return report


@pytest.fixture(scope="session")
def collection() -> data.Collection:
    return data.Collection(*map(np.array, data.synthetic(SETTINGS.rows, 768, SETTINGS.queries)))


@pytest.fixture(scope="session")
def large() -> data.Collection:
    """So many rows that they stay in their file: a test copies what it needs."""
    return data.synthetic(SETTINGS.many, 768, SETTINGS.queries)


@pytest.fixture(scope="session")
def first_dims(collection: data.Collection, large: data.Collection) -> Callable[[int, int], data.Collection]:
    """``first_dims(rows, dims)``: contiguous copies, one at a time, because they are large."""

    @lru_cache(maxsize=1)
    def cut(rows: int, dims: int) -> data.Collection:
        source = collection if rows <= SETTINGS.rows else large
        return data.Collection(np.array(source.rows[:rows, :dims]), np.array(source.queries[:, :dims]))

    return cut


@pytest.fixture(scope="session")
def embeddings() -> data.Embeddings:
    return data.real()
