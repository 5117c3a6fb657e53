"""What benchmarks stand on: the made-up vectors, the limits of the machine, and a report that compares nobody at unequal recall. The peers
are not needed here."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bench import cascades, equal_bytes, limits, matryoshka, prefixes, promise, report, rivals, timing
from bench.data import Clusters, Embeddings, matryoshka_like
from bench.limits import Floor

import adaptive_search as asx
from adaptive_search.plan import Plan
from adaptive_search.types import F32, I64


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
    fields |= {"fraction": None, "limit": "", "rates": {}}
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


def target(
    least: float, contender: str | None = None, rival: str | None = None, of: str = "speed", row: int | None = None
) -> dict[str, Any]:
    return {"least": least, "contender": contender, "rival": rival, "of": of, "row": row}


@pytest.mark.parametrize(("ratio", "met"), [(1.5, "yes"), (1.49, "**no**")])
def test_targets_are_compared_with_what_was_measured(ratio: float, met: str) -> None:
    asked = [target(1.5), target(0.25, "numba", "avx2")]
    text = page(
        entry("peer", None, 2e-3, None, {"peer": 1.0}, targets=asked),
        entry("numba", "numba", 3e-3, None, {"avx2": 0.3, "peer": 0.6}, targets=asked),
        entry("avx2", "avx2", 1e-3, None, {"peer": ratio}, targets=asked),
    )
    assert f"|  | contest | avx2 | ≥ 1.50 x | {ratio:.2f} x | peer |  | {met} |" in text
    assert "|  | contest | numba | ≥ 0.25 x | 0.30 x | avx2 |  | yes |" in text


def kernel_lines(*benchmarks: dict[str, Any]) -> list[str]:
    run = run_of(*benchmarks)
    return report.kernel_table(run, report.contests(run)).splitlines()


def test_a_fraction_of_the_floor_is_a_target_too() -> None:
    asked = [target(0.85, of="floor", row=1), target(0.9, "numba", of="floor", row=1)]
    lines = kernel_lines(
        entry("numba", "numba", 2e-3, None, {}, targets=asked, fraction=0.896, limit="memory"),
        entry("avx2", "avx2", 1e-3, None, {}, targets=asked, fraction=0.8512, limit="fma ymm", rates={"fma ymm": 59e9}),
    )
    assert "| 1 | contest | avx2 | ≥ 85% of floor | 85% of floor | fma ymm | 85% of fma ymm | yes |" in lines
    assert "| 1 | contest | numba | ≥ 90% of floor | 90% of floor | memory | 90% of memory | **no** |" in lines
    assert any("fma ymm 59" in line for line in lines)
    assert "1 of 2 targets met." in lines


def test_a_floor_that_nobody_measured_is_neither_reached_nor_missed() -> None:
    lines = kernel_lines(entry("avx2", "avx2", 1e-3, None, {}, targets=[target(0.85, of="floor", row=1)]))
    assert "| 1 | contest | avx2 | ≥ 85% of floor | ? | the floor |  | not measured |" in lines
    assert "0 of 1 targets met." in lines


@pytest.mark.parametrize(("fraction", "met"), [(0.81, "yes"), (0.80, "**no**")])
def test_scaling_is_compared_with_that_of_loops(fraction: float, met: str) -> None:
    asked = [target(0.9, "avx2, 2 threads", "avx2, 1 thread", of="scaling", row=15)]
    lines = kernel_lines(
        entry("avx2, 1 thread", "avx2", 2e-3, None, {}, targets=asked, fraction=0.9, limit="fma ymm x 1"),
        entry("avx2, 2 threads", "avx2", 1.1e-3, None, {}, targets=asked, fraction=fraction, limit="fma ymm x 2"),
    )
    expected = f"≥ 0.90 x scaling | {fraction / 0.9:.2f} x scaling | avx2, 1 thread, and loops | {fraction:.0%} of fma ymm x 2 | {met} |"
    assert f"| 15 | contest | avx2, 2 threads | {expected}" in lines


@pytest.mark.parametrize(("recall", "met"), [(0.9385, "yes"), (0.9375, "**no**")])
def test_recall_may_be_a_little_less_than_the_peers(recall: float, met: str) -> None:
    asked = [target(-0.002, rival="peer", of="recall", row=9)]
    lines = kernel_lines(
        entry("better", None, 1e-4, 0.99, {}, targets=asked),
        entry("peer", None, 2e-3, 0.94, {}, targets=asked),
        entry("avx2", "avx2", 1e-3, recall, {}, targets=asked),
    )
    assert f"| 9 | contest | avx2 | ≥ recall -0.0020 | recall {recall - 0.94:+.4f} | peer |  | {met} |" in lines


def test_what_the_library_lacks_and_what_was_not_measured_is_stated() -> None:
    lines = kernel_lines(
        entry("peer", None, 1e-3, None, {}, targets=[target(4.0, row=11)]),
        entry("other", None, 2e-3, None, {}, targets=[target(4.0, row=11)]),
    )
    assert "| 11 | contest | none | ≥ 4.00 x | not there |  |  | **no** |" in lines
    [missed] = [line for line in lines if line.startswith("Rows without")]
    assert "11 (" not in missed
    assert "12 (rescoring)" in missed


def test_rows_stand_in_order_and_leave_other_targets_to_the_page() -> None:
    lines = kernel_lines(
        {**entry("avx2", "avx2", 1e-3, None, {"peer": 2.0}, targets=[target(1.0, row=10), target(0.5)]), "group": "late"},
        {**entry("peer", None, 2e-3, None, {}, targets=[target(1.0, row=10), target(0.5)]), "group": "late"},
        {**entry("avx2", "avx2", 1e-3, None, {"peer": 2.0}, targets=[target(1.0, row=2)]), "group": "early"},
        {**entry("peer", None, 2e-3, None, {}, targets=[target(1.0, row=2)]), "group": "early"},
    )
    assert [line.split(" | ")[:2] for line in lines if " x |" in line] == [["| 2", "early"], ["| 10", "late"]]


def test_targets_of_contenders_that_this_machine_lacks_are_left_out() -> None:
    asked = [target(1.4, "avx2", row=7), target(1.0, rival="scann", row=7)]
    lines = kernel_lines(
        entry("numba", "numba", 1e-3, None, {"peer": 2.0}, targets=asked), entry("peer", None, 2e-3, None, {}, targets=asked)
    )
    assert "0 of 0 targets met." in lines


def test_peers_that_are_not_installed_are_named() -> None:
    run = run_of(entry("avx2", "avx2", 1e-3, None, {}))
    run["machine_info"]["missing"] = ["scann"]
    assert "Not installed, and in no contest: scann." in report.kernel_table(run, report.contests(run))


def test_the_table_of_kernels_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build").mkdir()
    run = run_of(entry("peer", None, 1e-3, None, {}, targets=[target(4.0, row=11)]))
    (tmp_path / "build" / "bench.json").write_text(json.dumps(run))
    assert report.main(["kernels"]) == 0
    assert "not there" in capsys.readouterr().out
    assert report.main(["kernels", "other.json"]) == 2
    assert "other.json" in capsys.readouterr().err


def test_a_floor_is_the_longer_of_computing_and_reading_and_what_a_call_costs() -> None:
    rates = {"fma zmm": 100e9, "memory": 20e9, "cache": 80e9, "fma zmm x 2": 200e9}
    assert Floor(1e9, "fma zmm", 1e9).seconds(rates) == (0.05, "memory")
    assert Floor(1e10, "fma zmm", 1e9).seconds(rates) == (0.1, "fma zmm")
    assert Floor(1e10, "fma zmm", threads=2).seconds(rates) == (0.05, "fma zmm x 2")
    assert Floor(bytes=1e9, threads=2).seconds({"memory x 2": 40e9}) == (0.025, "memory x 2")
    assert Floor(bytes=8e5, reading="cache", call=3e-6).seconds(rates) == (pytest.approx(13e-6), "cache")


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("c++"), reason="needs a compiler")
def test_limits_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "READ", {"memory": (16 << 20, 1), "cache": (1000 * 384 * 4, 2)})
    monkeypatch.setattr(limits, "LONG", limits.SHORT)
    assert limits.measured("memory") > 1e8
    assert limits.measured("memory x 2") > 1e8
    assert limits.measured("cache") > 1e8
    assert limits.measured("no such instruction") == 0
    rows = np.ones((64, 96), np.float32)
    assert limits.random_rows(rows, np.arange(64)) > 0
    for name in ("fma ymm", "fma ymm x 2"):
        rate = limits.measured(name)
        assert rate == 0 or rate > 1e8


def test_of_several_tries_the_first_in_which_nobody_else_had_the_cores_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "time", SimpleNamespace(perf_counter=count().__next__))  # Every call takes a second.
    for waits, chosen, made in (((1.0, 0.5, 0.7), 1, 3), ((1.0, 0.0, 0.7), 1, 2), ((0.0,), 0, 1)):
        clock = iter(np.cumsum([step for wait in waits for step in (0.0, wait)]))
        monkeypatch.setattr(limits, "waited", lambda clock=clock: float(next(clock)))
        calls: list[int] = []

        def work(calls: list[int] = calls) -> int:
            calls.append(len(calls))
            return calls[-1]

        assert limits.undisturbed(work, 3) == chosen
        assert len(calls) == made


def test_what_was_measured_in_part_is_marked() -> None:
    text = page(entry("peer", None, 2.0, 0.5, {"peer": 1.0}, queries=5, judged=5), entry("avx2", "avx2", 1e-6, 0.5, {"peer": 3.0}))
    assert "| peer | ≈ 2 s | 1 | 1.00 | peer | ≈ 0.5000 |" in text
    assert "| **avx2** | 1 µs |" in text


def test_a_quick_run_says_that_it_means_nothing() -> None:
    assert "mean nothing" not in page(entry("peer", None, 1.0, None, {"peer": 1.0}))
    assert "mean nothing" in page(entry("peer", None, 1.0, None, {"peer": 1.0}, settings="quick"))


def test_a_run_without_benchmarks_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "bench.json"
    source.write_text('{"benchmarks": []}')
    assert report.main([str(source)]) == 2
    assert "no benchmark" in capsys.readouterr().err
    assert report.main([]) == 2


@pytest.mark.long
def test_the_promise_is_measured_on_queries_that_no_plan_has_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = matryoshka_like(5_000, 96, 600)
    monkeypatch.setattr(promise, "collections", lambda _: iter([("clustered", drawn)]))
    tuned, tune = [], asx.Index.tune

    def noted(self: asx.Index, queries: Any, **options: Any) -> Any:
        tuned.append(queries)
        return tune(self, queries, **options)

    monkeypatch.setattr(asx.Index, "tune", noted)
    (one,) = promise.measure(replace(promise.QUICK, asked=(0.9,), fresh=200))
    assert len(tuned) == len(one.recalls) == 2
    assert not (np.concatenate(tuned)[:, None] == drawn.queries[None, :200]).all(axis=2).any()
    assert all(0.8 < recall <= 1 for recall in one.recalls)


def test_the_table_of_promises_says_what_came_of_each_plan() -> None:
    plan = Plan((asx.Int8(), asx.Full()), 0.9, 10, True, "", (0.89, 0.93), 100, 1.0, 500)
    exact = replace(plan, stages=(asx.Full(),), certified=False, interval=(1.0, 1.0))
    drawn = [
        promise.Drawn(plan, np.full(100, 0.88, np.float32), 20.0, 1e-6, 3e-6),
        promise.Drawn(plan, np.full(100, 0.92, np.float32), 40.0, 1e-6, 3e-6),
        promise.Drawn(exact, np.ones(100, np.float32), 600.0, 3e-6, 3e-6),
    ]
    one = promise.Delivered("vectors", 0.9, drawn)
    # Queries do not differ here: all of the interval comes from the draws.
    assert one.half == pytest.approx(1.96 * np.std([0.88, 0.92, 1.0], ddof=1) / 3**0.5, rel=1e-5)
    expected = "| vectors | 0.9 | 0.9333 ± 0.0691 | 0.8800 / 0.9200 / 1.0000 | 0.9267 to 0.9533 | 2 of 3, 1 exact |"
    expected += " Int8() → Full() (2); Full() (1) | 220 | 1 / 3 | 3.00 |"
    assert promise.table([one]).splitlines()[2] == expected


def test_prefixes_are_compared_with_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = matryoshka_like(1_000, 160, 50)
    monkeypatch.setattr(prefixes, "real", lambda: drawn)
    monkeypatch.setattr(asx, "LearnedRotation", partial(asx.LearnedRotation, steps=10))
    asked = prefixes.asked()
    shares = {(name, dims): found for name, dims, found in prefixes.prefixes(asked)}
    assert len(shares) == 9
    assert all(found == sorted(found) for found in shares.values())
    assert shares["PCA", 128][2] > shares["PCA", 32][2]
    assert prefixes.shares(asked.true, asked.true) == [1.0] * 4


def test_sign_codes_are_compared_with_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = matryoshka_like(1_000, 96, 50)
    monkeypatch.setattr(prefixes, "real", lambda: drawn)
    found = {name: (size, shares) for name, size, shares in prefixes.signs(prefixes.asked())}
    assert [size for size, _ in found.values()] == [4, 4, 4, 12, 12, 12, 20]
    assert all(shares == sorted(shares) for _, shares in found.values())
    assert found["ITQ, 96 bits"][1][1] > found["ITQ, 32 bits"][1][1]
    assert found["RaBitQ, one bit a dim, query not coded"][1][1] > found["ITQ, 96 bits"][1][1]


class Half(equal_bytes.Contender):
    """Finds every second row."""

    def fit(self, rows: Any) -> None:
        pass

    def encode(self, rows: Any) -> None:
        self.rows = rows[::2]

    def search(self, queries: Any, k: int) -> Any:
        return 2 * asx.top_k(queries, self.rows, k, metric="cosine").ids

    def bytes(self) -> int:
        return 50


def test_codes_are_compared_at_as_many_bytes() -> None:
    pytest.importorskip("bench.peers", exc_type=ImportError)
    rows, queries = matryoshka_like(1_000, 32, 50)
    group: list[equal_bytes.Contender] = [Half("half", "peer"), equal_bytes.Ours("half", asx.ProductQuantizer(8, 4, "cosine"))]
    found = list(equal_bytes.measure(lambda dim: iter([group]), Embeddings("made up", rows, queries)))
    assert [one.bytes for one in found] == [50, 4]
    assert 0.4 < found[0].shares[0] < 0.6
    assert 0.2 < found[1].shares[0] < found[1].shares[-1] <= 1


def test_all_kinds_of_our_codes_can_be_compared() -> None:
    pytest.importorskip("faiss")
    rows = np.random.default_rng(2).standard_normal((300, 96)).astype(np.float32)
    ours = [one for group in equal_bytes.contenders(96) for one in group if isinstance(one, equal_bytes.Ours) and "OPQ" not in one.name]
    assert {type(one.quantizer) for one in ours} == {asx.ProductQuantizer, asx.BinaryQuantizer, asx.RaBitQuantizer}
    for one in ours:
        one.fit(rows)
        one.encode(rows)
        assert (one.search(rows[:20], 100) == np.arange(20)[:, None]).any(axis=1).all(), one.name


def test_the_table_of_bytes_puts_the_best_of_a_size_first() -> None:
    lines = equal_bytes.table(
        [
            equal_bytes.Measured("PQ48x8", "faiss", 48, 8.0, 2.0, (0.7, 0.9, 0.99, 1.0)),
            equal_bytes.Measured("RaBitQ", "faiss", 56, 0.0, 1.0, (0.7, 0.93, 0.99, 1.0)),
            equal_bytes.Measured("PQ48x8, anisotropic", "adaptive_search", 48, 4.0, 3.0, (0.8, 0.95, 0.99, 1.0)),
            equal_bytes.Measured("PQ24x8", "adaptive_search", 24, 4.0, 3.0, (0.5, 0.6, 0.7, 0.8)),
        ]
    ).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["**PQ24x8**", "**PQ48x8, anisotropic**", "RaBitQ", "PQ48x8"]
    assert lines[3] == "| 48 | **PQ48x8, anisotropic** | adaptive_search | 0.800 | 0.950 | 0.990 | 1.000 | 4.0 | 3.00 | 0.50 | 1.50 |"


def brute(rows: F32) -> rivals.Refined:
    """A peer whose first pass knows a quarter of the dims."""

    def search(queries: F32, candidates: int) -> I64:
        dims = rows.shape[1] // 4
        ids = asx.top_k(queries[:, :dims], rows[:, :dims], candidates).ids
        return asx.rescore(queries, rows, ids, rivals.K).ids

    return search


def absent(_: F32) -> rivals.Refined:
    raise ImportError("no such module")


def hopeless(rows: F32) -> rivals.Refined:
    return lambda queries, _: np.zeros((len(queries), rivals.K), np.int64)


def refused(_: F32) -> rivals.Refined:
    raise ValueError("too many dims")


SETTINGS = [
    rivals.Setting("one", "hopeless", hopeless),
    rivals.Setting("two", "first", absent),
    rivals.Setting("two", "second", absent),
    rivals.Setting("one", "quarter", brute),
    rivals.Setting("one", "refused", refused),
]


def test_a_peer_scores_as_few_candidates_as_reach_the_recall() -> None:
    rows, queries = matryoshka_like(3_000, 64, 120)
    truth = asx.top_k(queries, rows, rivals.K).ids
    best = rivals.best(SETTINGS, rows, queries, truth, 0.95)
    assert best.batch == best.alone
    [one] = best.all()
    place = rivals.CANDIDATES.index(one.candidates)
    assert rivals.recall(one.search(queries), truth).mean() >= 0.95
    assert place > 0
    assert rivals.recall(brute(rows)(queries, rivals.CANDIDATES[place - 1]), truth).mean() < 0.95
    assert one.name == f"one quarter, {one.candidates} rescored"
    assert [note.partition(":")[0] for note in best.notes] == [
        "one hopeless does not reach 0.95 with 1200 candidates",
        "two is not installed",
        "one refused",
    ]


def test_of_each_library_the_fastest_settings_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"fast together": (1.0, 9.0), "fast alone": (2.0, 3.0), "slow": (4.0, 4.0)}

    def told(setting: rivals.Setting, *_: Any) -> rivals.Tuned:
        return rivals.Tuned(setting, 10, lambda _: np.zeros((0, 0), np.int64), *times[setting.name])

    monkeypatch.setattr(rivals, "tuned", told)
    nothing = np.zeros((0, 0), np.float32)
    best = rivals.best([rivals.Setting("peer", name, absent) for name in times], nothing, nothing, np.zeros((0, 0), np.int64), 0.9)
    assert [one.setting.name for one in best.all()] == ["fast together", "fast alone"]


def test_plans_are_compared_with_peers_at_the_same_recall() -> None:
    drawn = matryoshka_like(3_000, 64, 600)
    [one] = cascades.measure(iter([cascades.Case("made up", drawn, 0.9)]), lambda _: iter(SETTINGS))
    names = [line.name for line in one.lines]
    assert names[0].startswith("plan: ")
    assert names[1:3] == ["recall=1.0", "our flat search"]
    assert [line.recall for line in one.lines[1:3]] == [1.0, 1.0]
    assert one.lines[3].fastest == "batch, one query"
    assert one.lines[0].batch.ratio == one.lines[0].alone.ratio == 1
    text = cascades.table([one])
    assert f"| made up | 0.9 | {names[0]} |" in text
    assert "two is not installed" in text


def test_on_noise_exact_search_is_compared_with_a_flat_one() -> None:
    [one] = cascades.on_noise(2_000, 32, asked=(1.0,))
    assert one.equal
    assert one.batch.low <= one.batch.ratio <= one.batch.high
    assert "| 2,000 x 32, noise | 1 |" in cascades.noise_table([one])


def test_contenders_that_take_turns_are_compared_with_the_first() -> None:
    turns: list[str] = []

    def contender(name: str) -> rivals.Search:
        def search(queries: F32) -> I64:
            turns.append(name)
            return np.zeros((len(queries), 1), np.int64)

        return search

    times = timing.relative({name: contender(name) for name in "abc"}, [np.zeros((1, 1), np.float32)], 3)
    assert "".join(turns) == "abcbcacab"
    assert times["a"][1:] == (1, 1, 1)


@pytest.mark.long
def test_long_vectors_are_searched_by_a_plan_and_without() -> None:
    sizes = matryoshka.Sizes(3_000, 128, given=200, fresh=50, batch=20, alone=2, rounds=1)
    one = matryoshka.measure(sizes, 0.9)
    assert one.recall > 0.8
    assert one.exact
    assert one.batch["plan"].ratio == 1
    text = matryoshka.table(one)
    assert text.startswith("3,000 x 128 float16; plan for 0.9: ")
    assert "| our flat search |" in text


def test_rows_of_long_vectors_can_be_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(matryoshka, "measure", lambda sizes: sizes.rows)
    monkeypatch.setattr(matryoshka, "table", lambda rows: f"{rows} rows")
    assert report.main(["matryoshka", "500"]) == 0
    assert capsys.readouterr().out == "500 rows\n"
    assert report.main(["promise", "500"]) == 2


def test_vectors_made_in_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.data.BLOCK", 20)
    rows, queries = matryoshka_like(50, 8, 5)
    blocks = list(Clusters(8).blocks(55))
    assert [len(block) for block in blocks] == [20, 20, 15]
    np.testing.assert_array_equal(np.concatenate(blocks), np.concatenate([rows, queries]))


@pytest.mark.parametrize("library", ["faiss", "scann", "turbovec"])
def test_settings_of_peers_that_are_installed_find_neighbours(library: str) -> None:
    pytest.importorskip("usearch")
    pytest.importorskip("threadpoolctl")
    pytest.importorskip(library)
    rows, queries = matryoshka_like(2_000, 96, 30)
    truth = asx.top_k(queries, rows, rivals.K).ids
    chosen = [one for one in rivals.settings(96) if one.library == library and "OPQ" not in one.name]
    best = rivals.best(chosen[:1] + chosen[-1:], rows, queries, truth, 0.9)
    assert list(best.batch) == list(best.alone) == [library]
