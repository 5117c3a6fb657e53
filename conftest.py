"""Chooses what also runs on emulated CPUs, `pytest -m emulated`: a sample of the tests of operations and of the public contract; and what
the suite on Numba alone leaves out, `pytest -m "not repeated"`: tests that are the same there, and all others but for a sample. Puts a
test's backends one after the other, so that what they share, data and right answers, need not be kept long."""

from __future__ import annotations

from collections import Counter

import pytest

SAMPLED = (
    *(f"tests/ops/test_dense_{subject}.py" for subject in ("places", "products", "scan")),
    *(f"tests/ops/test_{family}.py" for family in ("hamming", "integer", "pq", "pq_scaled")),
    *(f"tests/test_functional_{subject}.py" for subject in ("arrays", "distances", "errors", "plain", "rescore", "top_k")),
    *(f"tests/test_{subject}.py" for subject in ("quantizers", "index_search")),
)

STRIDE = 53
"""Of every test and backend, the first and each fifty-third after it: prime, so that it falls into step with no grid of parameters."""

PLAIN_STRIDE = 7
"""The same, for the suite on Numba alone, of tests that ask for no backend: they use the best one, which is another there."""

ALIKE = (
    "tests/storage/",
    *(f"tests/test_{subject}.py" for subject in ("architecture", "bench", "calibration", "validation")),
    "tests/ops/test_numba_only.py",
)
"""Tests that are the same on Numba alone: of what reaches no backend, of what is no part of the package, and of Numba by name."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    cases: Counter[tuple[str, object]] = Counter()
    first: dict[tuple[str, int], int] = {}
    places: dict[pytest.Item, int] = {}
    for place, item in enumerate(items):
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        name = item.nodeid.partition("[")[0]
        case = (name, parameters.get("backend"))
        places[item] = first.setdefault((name, cases[case]), place)
        if item.nodeid.startswith(ALIKE) or cases[case] % (STRIDE if "backend" in parameters else PLAIN_STRIDE):
            item.add_marker(pytest.mark.repeated)
        if cases[case] % STRIDE == 0 and item.nodeid.startswith(SAMPLED) and not item.get_closest_marker("unemulated"):
            item.add_marker(pytest.mark.emulated)
        cases[case] += 1
    items.sort(key=places.__getitem__)
