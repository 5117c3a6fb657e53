"""Fixtures of the benchmarks: what is searched, and contests that are held once and reported by every contender's benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import faiss
import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import adaptive_search as asx

from . import data
from .contest import Contest, Result, clock, description, replay, run
from .settings import SETTINGS

Held = tuple[Contest, dict[str, Result]] | Exception


def pytest_report_header() -> str:
    return f"benchmarks: {SETTINGS.name}, backends {', '.join(asx.backends())}, peers NumPy {np.__version__}, faiss {faiss.__version__}"


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if "hold" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=clock))


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    # The library may run from the tree; the others are installed.
    versions = {name: version(name) for name in ("numpy", "numba", "faiss-cpu", "usearch")}
    machine_info["versions"] = {"adaptive-search": asx.__version__, **versions}


@pytest.fixture(scope="session")
def held() -> dict[str, Held]:
    """Contests by test and parameters, and what came of them."""
    return {}


@pytest.fixture
def hold(request: pytest.FixtureRequest, held: dict[str, Held], contender: str) -> Callable[[Callable[[], Contest]], None]:
    """Hold a contest, unless another contender's test has, and report what this contender did."""

    def report(prepare: Callable[[], Contest]) -> None:
        others = {name: value for name, value in request.node.callspec.params.items() if name != "contender"}
        key = f"{request.node.nodeid.partition('[')[0]} {others}"
        if key not in held:
            try:
                contest = prepare()
                held[key] = contest, run(contest)
            except Exception as error:  # Reported by every contender, instead of being met again by each.
                held[key] = error
        outcome = held[key]
        if isinstance(outcome, Exception):
            raise outcome
        contest, results = outcome
        seconds = results[contender].seconds
        replay(seconds)
        # Asked for only now: pytest-benchmark takes it for a mistake when a test that failed has not used it.
        benchmark: BenchmarkFixture = request.getfixturevalue("benchmark")
        benchmark.group = contest.title
        benchmark.extra_info.update(description(contest, results, contender))
        benchmark.pedantic(lambda: None, rounds=len(seconds))

    return report


@pytest.fixture(scope="session")
def collection() -> data.Collection:
    return data.synthetic(SETTINGS.rows, 768, SETTINGS.queries)


@pytest.fixture(scope="session")
def embeddings() -> data.Embeddings:
    return data.real()
