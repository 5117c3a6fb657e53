"""Comparisons of representations: what is counted, what is found, what is refused; and the pictures of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import oracles
import pytest

import adaptive_search as asx
from adaptive_search.evaluate import Comparison, compare, default_representations
from adaptive_search.measuring import found_shares

pytestmark = pytest.mark.usefixtures("few_repetitions")

DIM = 40


def normal(count: int, seed: int, dim: int = DIM) -> Any:
    # Early dims tell more, so that prefixes and directions find something.
    return np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32) * np.linspace(2, 0.2, dim, dtype=np.float32)


VECTORS, QUERIES = normal(3000, 0), normal(60, 1)


@pytest.fixture(scope="module")
def default() -> Comparison:
    return compare(VECTORS, QUERIES, k=5, among=(50, 10, 3000))


def test_the_vectors_themselves_find_everything_and_what_is_smaller_less(default: Comparison) -> None:
    assert [row.representation for row in default.rows] == [repr(one) for one in default_representations(DIM)]
    found = {row.representation: row for row in default.rows}
    assert (found["Full()"].recall, found["Full()"].recall_error) == (1.0, 0.0)
    assert 0 < (found["Binary()"].recall or 0) < (found["Int8()"].recall or 0) < 1


def test_more_rows_hold_no_less(default: Comparison) -> None:
    assert default.among == (10, 50, 3000)
    for row in default.rows:
        shares = [row.recall or 0.0, *row.among]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0, "all rows hold all neighbors"


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16, np.int8])
def test_recall_is_that_of_searching(metric: Any, dtype: Any) -> None:
    vectors = (20 * VECTORS).astype(dtype)
    row = compare(vectors, QUERIES, [asx.Int8(16)], metric=metric, k=7, among=[30]).rows[0]
    index = asx.Index(DIM, metric, np.float32 if dtype is np.float64 else dtype, asx.Cascade([asx.Int8(16)]))
    index.add(vectors)
    truth = asx.top_k(QUERIES, vectors, 7, metric=metric).ids
    for k, measured in ((7, row.recall), (30, row.among[0])):
        found = index.search(QUERIES, k).ids
        shares = [len(set(mine) & set(best)) / 7 for mine, best in zip(found.tolist(), truth.tolist(), strict=True)]
        assert measured == pytest.approx(np.mean(shares))
    np.testing.assert_array_equal(truth, oracles.best(oracles.score(metric, QUERIES, vectors), 7, largest=metric != "l2")[1])


def test_bytes_are_those_that_are_held() -> None:
    stages = [
        asx.Binary(),
        asx.Binary(9, rotation="itq"),
        asx.PQ(6),
        asx.PQ(7, bits=4),
        asx.RaBit(),
        asx.Int8(),
        asx.Int8(24),
        asx.Int8(12, rotation="pca"),
    ]
    plain = asx.Index(DIM, "l2")
    plain.add(VECTORS)
    for row, stage in zip(compare(VECTORS, QUERIES, stages, metric="l2").rows, stages, strict=True):
        index = asx.Index(DIM, "l2", cascade=asx.Cascade([stage]), fit_rows=100)
        index.add(VECTORS)
        assert row.bytes_per_row == index.plan.bytes_per_row - plain.plan.bytes_per_row, stage
    # 40 and 16 float32, and the norm.
    assert [row.bytes_per_row for row in compare(VECTORS, QUERIES, [asx.Full(), asx.Prefix(16)]).rows] == [192 + 4, 64 + 4]


def test_quantizers_are_measured_by_themselves_and_stay_as_they_are() -> None:
    fitted, fresh = asx.ProductQuantizer(5, metric="ip").fit(VECTORS[:500]), asx.BinaryQuantizer(metric="ip")
    before = fitted.codebooks.copy()
    one, other, stranger = compare(VECTORS, QUERIES, [fitted, fresh, asx.Int8Quantizer("l2")], metric="ip").rows
    assert (one.bytes_per_row, other.bytes_per_row) == (fitted.encode(VECTORS).nbytes / 3000, 5)
    truth = asx.top_k(QUERIES, VECTORS, 10).ids
    assert one.recall == pytest.approx(found_shares(fitted.top_k(QUERIES, fitted.encode(VECTORS), 10).ids, truth, [10]).mean())
    assert one.fit_seconds == 0.0
    assert (other.fit_seconds or 0) > 0
    assert not fresh.fitted
    np.testing.assert_array_equal(fitted.codebooks, before)
    assert "'l2'" in stranger.why
    assert stranger.recall is None


def test_what_cannot_be_built_says_why_and_stops_nothing() -> None:
    table = compare(VECTORS, QUERIES, [asx.PQ(41), asx.Prefix(41), asx.Lists(4), asx.Binary()], metric="l2", among=(20, 30))
    *impossible, binary = table.rows
    for row in impossible:
        assert row.why
        assert row.recall is row.bytes_per_row is row.batch_us is None
        assert f"{row.representation}: {row.why}" in table.notes
        assert row.why in table.to_markdown()
    assert (binary.why, len(table.notes)) == ("", 3)
    assert [record["recall_in_30"] is None for record in table.records()] == [True, True, True, False]


def test_the_text_has_all_rows_and_columns(default: Comparison) -> None:
    title, empty, header, rule, *lines = default.to_markdown().splitlines()
    assert "3,000 vectors of 40 dims (float32, cosine), 60 queries" in title
    assert not empty
    assert header.count("|") == rule.count("|")
    assert "recall@5" in header
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == [row.representation for row in default.rows]
    assert all(line.count("|") == header.count("|") for line in lines)
    assert str(default) == default.to_markdown()


def test_times_are_those_of_one_query_and_of_many() -> None:
    row = compare(VECTORS, QUERIES, [asx.Full()]).rows[0]
    assert (row.batch_us or 0) > 0
    assert (row.single_us or 0) > 0
    assert (row.encode_seconds or 0) > 0


def test_few_rows_are_all_found_and_one_query_is_enough() -> None:
    table = compare(VECTORS[:4], QUERIES[0], [asx.Full(), asx.Binary(), asx.Int8(keep=3)])
    assert [row.recall for row in table.rows] == [1.0] * 3
    assert table.rows[2].among == (1.0,) * 4
    assert (table.queries, table.rows[0].recall_error) == (1, 0.0)


def test_shares_count_each_neighbor_where_it_stands() -> None:
    found, truth = np.array([[4, 1, 9, -1], [0, 2, 3, 8]]), np.array([[1, 9], [8, 7]])
    assert found_shares(found, truth, [1, 2, 3, 4, 9]).tolist() == [[0, 0.5, 1, 1, 1], [0, 0, 0, 0.5, 0.5]]


@pytest.mark.parametrize(
    ("argument", "error", "given"),
    [
        ("vectors", ValueError, {"vectors": VECTORS[0]}),
        ("vectors", ValueError, {"vectors": VECTORS[:0]}),
        ("vectors", ValueError, {"vectors": np.where(np.arange(DIM) == 3, np.nan, VECTORS)}),
        ("vectors", TypeError, {"vectors": VECTORS.astype(np.int32)}),
        ("queries", ValueError, {"queries": QUERIES[:, :7]}),
        ("queries", ValueError, {"queries": QUERIES[:0]}),
        ("metric", ValueError, {"metric": "manhattan"}),
        ("k", ValueError, {"k": 0}),
        ("among", ValueError, {"among": (20, 9)}),
        ("among", TypeError, {"among": 20}),
        ("among", TypeError, {"among": (20.0,)}),
        ("threads", ValueError, {"threads": 0}),
        ("representations", TypeError, {"representations": asx.Binary()}),
        ("representations", TypeError, {"representations": ["Binary()"]}),
        ("representations", ValueError, {"representations": []}),
    ],
)
def test_bad_arguments_are_named(argument: str, error: type[Exception], given: dict[str, Any]) -> None:
    with pytest.raises(error, match=rf"^{argument}: "):
        compare(**({"vectors": VECTORS, "queries": QUERIES} | given))


@pytest.mark.long
def test_defaults_go_with_every_dim() -> None:
    for dim in (1, 7, 64, 65, 300):
        table = compare(normal(60, 0, dim), normal(2, 1, dim), among=())
        assert not table.notes, dim
        assert table.rows[-1].recall == 1.0


# --- pictures -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def matplotlib() -> None:
    pytest.importorskip("matplotlib")


@pytest.mark.usefixtures("matplotlib")
def test_names_cover_neither_marks_nor_each_other(default: Comparison) -> None:
    # Crowded: every point twice, in two families.
    crowd = replace(default, rows=(*default.rows, *(replace(row, representation=f"Other{row.representation}") for row in default.rows)))
    figure = asx.plots.draw_comparison(crowd)
    for axes in figure.axes:
        boxes = {text.get_text(): text.get_window_extent() for text in axes.texts if text.get_text()}
        assert len(boxes) == len(crowd.rows)
        marks = np.concatenate([axes.transData.transform(line.get_xydata()) for line in axes.lines])
        frame = axes.get_window_extent()
        for name, box in boxes.items():
            assert not any(box.overlaps(other) for another, other in boxes.items() if another != name), name
            assert not any(box.contains(*mark) for mark in marks), name
            assert frame.x0 <= box.x0 < box.x1 <= frame.x1, name


@pytest.mark.usefixtures("matplotlib")
def test_both_panels_show_what_was_measured(default: Comparison) -> None:
    figure = asx.plots.draw_comparison(default)
    left, right = figure.axes
    assert left.get_xlabel() == "bytes per row"
    assert "µs per query" in right.get_xlabel()
    assert "true 5" in left.get_ylabel()
    shown = {(float(x), float(y)) for line in left.lines for x, y in line.get_xydata()}
    among = default.among.index(3000)
    expected = {(row.bytes_per_row, share) for row in default.rows for share in (row.recall, row.among[among])}
    assert shown == expected


@pytest.mark.usefixtures("matplotlib")
@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_pictures_are_written(tmp_path: Path, default: Comparison, suffix: str, begins: bytes) -> None:
    asx.plots.save_comparison(default, tmp_path / f"picture{suffix}")
    assert (tmp_path / f"picture{suffix}").read_bytes().startswith(begins)


@pytest.mark.usefixtures("matplotlib")
def test_what_cannot_be_drawn_is_refused(tmp_path: Path, default: Comparison) -> None:
    with pytest.raises(ValueError, match=r"^path: expected .* got 'picture.jpg'"):
        asx.plots.save_comparison(default, tmp_path / "picture.jpg")
    nothing = replace(default, rows=tuple(replace(row, why="it is not there") for row in default.rows))
    with pytest.raises(ValueError, match="nothing to draw"):
        asx.plots.draw_comparison(nothing)
    assert not list(tmp_path.iterdir())
