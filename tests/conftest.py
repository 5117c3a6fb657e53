"""Every test that asks for `backend` runs on every backend of the machine.

ADAPTIVE_SEARCH_BACKEND
    Only this one is tested.
ADAPTIVE_SEARCH_EXPECT
    Names, separated by commas, of backends that must be present; a missing one fails the run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import adaptive_search
from adaptive_search import index, measuring
from adaptive_search.backends import backends, get, missing, use_backend
from adaptive_search.backends.protocol import Backend

FORCED = os.environ.get("ADAPTIVE_SEARCH_BACKEND", "")
NAMES = [FORCED] if FORCED else backends()

# The backend is the one fixture that tests of properties share, and examples do not change it.
for name, examples in (("default", 25), ("thorough", 1000), ("emulated", 5)):
    hypothesis.settings.register_profile(
        name,
        deadline=None,
        max_examples=examples,
        print_blob=True,
        suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
    )
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_configure(config: pytest.Config) -> None:
    expected = [name.strip() for name in os.environ.get("ADAPTIVE_SEARCH_EXPECT", "").split(",") if name.strip()]
    lacking = {name: missing(name) or f"ADAPTIVE_SEARCH_BACKEND={FORCED} excludes it" for name in expected if name not in NAMES}
    if lacking:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in lacking.items())
        raise pytest.UsageError(f"ADAPTIVE_SEARCH_EXPECT names backends that are not tested here: {reasons}")
    _cache_numba_by_content(config)


def _cache_numba_by_content(config: pytest.Config) -> None:
    """Numba notices only changes of the file that a function stands in, not of the functions that it was compiled with."""
    sources = sorted((Path(adaptive_search.__file__).parent / "backends" / "numba_ops").glob("*.py"))
    digest = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    if hasattr(config, "cache"):
        os.environ.setdefault("NUMBA_CACHE_DIR", str(config.cache.mkdir(f"numba-{digest}")))


def pytest_report_header() -> str:
    return f"backends: {', '.join(NAMES)}"


@pytest.fixture(params=NAMES)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """A backend, also the one in use."""
    with use_backend(request.param):
        yield get(request.param)


@pytest.fixture(scope="session")
def few_repetitions() -> Iterator[None]:
    """Comparisons that measure times do so with a few searches, where what they say of them is not the point."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "BATCHES", 2)
        patch.setattr(measuring, "SINGLES", 3)
        yield


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What an index tells its bars, (done, total) each."""
    found: list[tuple[int, int]] = []

    @contextmanager
    def bar(*_: Any) -> Iterator[Any]:
        yield lambda done, total: found.append((done, total))

    monkeypatch.setattr(index, "progress_bar", bar)
    return found
