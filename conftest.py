"""Chooses what also runs on emulated CPUs, `pytest -m emulated`: a sample of the tests of operations and of the public contract."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

SAMPLED = (
    *(f"tests/ops/test_{family}" for family in ("dense", "hamming", "integer", "pq")),
    *(f"tests/test_{subject}" for subject in ("functional", "quantizers.py", "index_search")),
)

STRIDE = 53
"""Of every test and backend, the first and each fifty-third after it: prime, so that it falls into step with no grid of parameters."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    cases: Counter[tuple[str, object]] = Counter()
    for item in items:
        if not item.nodeid.startswith(SAMPLED):
            continue
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        case = (item.nodeid.partition("[")[0], parameters.get("backend"))
        if cases[case] % STRIDE == 0:
            item.add_marker(pytest.mark.emulated)
        cases[case] += 1
