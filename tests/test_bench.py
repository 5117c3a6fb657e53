"""What benchmarks stand on: the made-up vectors, and a report that compares nobody at unequal recall. The peers are not needed here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bench import report
from bench.data import matryoshka_like


def test_made_up_vectors_are_unit_vectors_whose_first_dims_hold_most() -> None:
    rows, queries = matryoshka_like(2000, 768, 300, seed=1)
    assert rows.shape == (2000, 768)
    assert queries.shape == (300, 768)
    for vectors in (rows, queries):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
        energy = np.cumsum((vectors**2).mean(axis=0))
        np.testing.assert_allclose(energy[[63, 127, 255]], [0.37, 0.53, 0.70], atol=0.01)


def test_made_up_vectors_are_the_same_for_a_seed() -> None:
    first, again, other = (matryoshka_like(50, 8, 5, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.rows, again.rows)
    np.testing.assert_array_equal(first.queries, again.queries)
    assert not np.array_equal(first.rows, other.rows)


def entry(
    contender: str, backend: str | None, median: float, recall: float | None, ratios: dict[str, float], **more: Any
) -> dict[str, Any]:
    fields = {"contender": contender, "backend": backend, "family": None, "against": None, "ratios": ratios, "rate": 1.0, "unit": "GB/s"}
    fields |= {"recall": recall, "common_recall": recall, "judged": 10, "queries": 10, "all_queries": 10, "alone": False, "note": ""}
    fields |= {"judged_by": "recall@10", "order": ["avx2", "numba"], "targets": [], "settings": "full"}
    return {"group": "contest", "stats": {"median": median}, "extra_info": fields | more}


def run_of(*benchmarks: dict[str, Any]) -> dict[str, Any]:
    return {"benchmarks": list(benchmarks), "machine_info": {"cpu": {"brand_raw": "A CPU", "count": 2}}, "datetime": "2026-01-02T03:04:05"}


def page(*benchmarks: dict[str, Any]) -> str:
    run = run_of(*benchmarks)
    return report.markdown(run, report.contests(run), {})


def test_contenders_stand_fastest_first_with_their_ratio_to_the_best_peer() -> None:
    text = page(
        entry("slow peer", None, 4e-3, 1.0, {"peer": 0.5}),
        entry("peer", None, 2e-3, 1.0, {"peer": 1.0}),
        entry("avx2", "avx2", 1e-3, 1.0, {"peer": 1.98, "slow peer": 4.0}),
        entry("numba", "numba", 8e-3, 1.0, {"peer": 0.25, "slow peer": 0.5}),
    )
    lines = [line for line in text.splitlines() if line.startswith(("| **", "| peer"))]
    assert lines[0] == "| **avx2** | 1 ms | 1 | 1.98 | peer | 1.0000 |"
    assert lines[1].startswith("| peer | 2 ms | 1 | 1.00 | peer |")
    assert lines[2].startswith("| **numba** | 8 ms | 1 | 0.25 | peer |")


def test_a_peer_that_finds_less_is_no_rival() -> None:
    text = page(
        entry("careless", None, 1e-3, 0.9, {"careless": 1.0}),
        entry("careful", None, 5e-3, 0.989, {"careful": 1.0, "careless": 0.2}),
        entry("avx2", "avx2", 2e-3, 0.99, {"careless": 0.5, "careful": 2.5}),
    )
    assert "| **avx2** | 2 ms | 1 | 2.50 | careful | 0.9900 |" in text


def test_without_a_peer_that_finds_as_much_there_is_no_ratio() -> None:
    text = page(entry("careless", None, 1e-3, 0.9, {"careless": 1.0}), entry("avx2", "avx2", 2e-3, 0.99, {"careless": 0.5}))
    assert "| **avx2** | 2 ms | 1 |  | none finds as much | 0.9900 |" in text


@pytest.mark.parametrize(("ratio", "met"), [(1.5, "yes"), (1.49, "**no**")])
def test_targets_are_compared_with_what_was_measured(ratio: float, met: str) -> None:
    asked = [{"least": 1.5, "contender": None, "rival": None}, {"least": 0.25, "contender": "numba", "rival": "avx2"}]
    text = page(
        entry("peer", None, 2e-3, None, {"peer": 1.0}, targets=asked),
        entry("numba", "numba", 3e-3, None, {"avx2": 0.3, "peer": 0.6}, targets=asked),
        entry("avx2", "avx2", 1e-3, None, {"peer": ratio}, targets=asked),
    )
    assert f"| contest | avx2 | peer | 1.50 | {ratio:.2f} | {met} |" in text
    assert "| contest | numba | avx2 | 0.25 | 0.30 | yes |" in text


def test_what_was_measured_in_part_is_marked() -> None:
    text = page(entry("peer", None, 2.0, 0.5, {"peer": 1.0}, queries=5, judged=5), entry("avx2", "avx2", 1e-6, 0.5, {"peer": 3.0}))
    assert "| peer | ≈ 2 s | 1 | 1.00 | peer | ≈ 0.5000 |" in text
    assert "| **avx2** | 1 µs |" in text


def test_a_quick_run_says_that_it_means_nothing() -> None:
    assert "mean nothing" not in page(entry("peer", None, 1.0, None, {"peer": 1.0}))
    assert "mean nothing" in page(entry("peer", None, 1.0, None, {"peer": 1.0}, settings="quick"))


def test_a_run_without_benchmarks_is_an_error(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "bench.json"
    source.write_text('{"benchmarks": []}')
    assert report.main([str(source)]) == 2
    assert "no benchmark" in capsys.readouterr().err
    assert report.main([]) == 2
