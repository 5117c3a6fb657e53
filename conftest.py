"""Chooses what also runs on emulated CPUs, `pytest -m emulated`: a sample of the tests of operations and of the public contract."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

SAMPLED = ("tests/ops/", "tests/test_functional", "tests/test_quantizers", "tests/test_index_search")

STRIDE = 7
"""Of every test and backend, each seventh case: prime, so that it falls into step with no grid of parameters."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    cases: Counter[tuple[str, object]] = Counter()
    for item in items:
        if not item.nodeid.startswith(SAMPLED):
            continue
        parameters = getattr(item, "callspec", None)
        case = (item.nodeid.partition("[")[0], parameters and parameters.params.get("backend"))
        if cases[case] % STRIDE == 0:
            item.add_marker(pytest.mark.emulated)
        cases[case] += 1
