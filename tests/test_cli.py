"""The command line: what it writes, what it shows, and that an error is one line and exit code 2."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import adaptive_search as asx

pytest.importorskip("typer")
pytest.importorskip("rich")

from rich.console import Console

from adaptive_search.cli import main
from adaptive_search.commands import parse_cascade
from adaptive_search.demo import recall, run

pytestmark = pytest.mark.usefixtures("few_repetitions")


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((1500, 40)).astype(np.float32)


@pytest.fixture
def vectors_file(tmp_path: Path, vectors: np.ndarray) -> Path:
    path = tmp_path / "vectors.npy"
    np.save(path, vectors)
    return path


@pytest.fixture
def built(tmp_path: Path, vectors_file: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    directory = tmp_path / "index"
    assert main(["build", str(vectors_file), "-o", str(directory), "--cascade", "binary:300,full"]) == 0
    capsys.readouterr()
    return directory


def failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a failing command writes to stderr."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("adaptive-search: error: ")
    return captured.err


def test_without_arguments_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    for command in ("demo", "build", "search", "compare", "info", "backends"):
        assert command in shown


@pytest.mark.parametrize("command", ["demo", "build", "search", "compare", "info", "backends"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert "Usage: adaptive-search" in capsys.readouterr().out


def test_build_saves_an_index_that_answers_like_the_library(built: Path, vectors: np.ndarray) -> None:
    index = asx.Index.open(built)
    assert (len(index), index.dim, index.metric) == (1500, 40, "cosine")
    exact = asx.top_k(vectors[:20], vectors, 5, metric="cosine")
    np.testing.assert_array_equal(index.search(vectors[:20], 5, recall=1.0).ids, exact.ids)


@pytest.mark.long
def test_build_with_queries_certifies_the_recall(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    # Two halves of which the first tells nearly all.
    rows, queries = (random.standard_normal((count, 96)) * np.repeat([1.0, 0.05], 48) for count in (6_000, 200))
    for name, array in (("rows", rows), ("queries", queries), ("few", queries[:5])):
        np.save(tmp_path / f"{name}.npy", array.astype(np.float32))
    given = ["build", str(tmp_path / "rows.npy"), "-o", str(tmp_path / "index"), "--recall", "0.9", "--queries"]
    assert "at least 9 calibration queries" in failure(capsys, *given, tmp_path / "few.npy")
    assert "--cascade" in failure(capsys, *given, tmp_path / "queries.npy", "--cascade", "exact")
    assert not (tmp_path / "index").exists()
    assert main([*given, str(tmp_path / "queries.npy")]) == 0
    assert main(["info", str(tmp_path / "index")]) == 0
    plan, shown = asx.Index.open(tmp_path / "index").plan, capsys.readouterr().out
    assert (plan.certified and "yes" in shown) or plan.stages == (asx.Full(),)
    assert "recall asked for" in shown


def test_build_with_the_default_cascade_ids_and_metric(tmp_path: Path, vectors_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = np.arange(1500) * 7 + 3
    np.save(tmp_path / "ids.npy", ids)
    directory = tmp_path / "other"
    assert main(["build", str(vectors_file), "-o", str(directory), "--metric", "l2", "--ids", str(tmp_path / "ids.npy")]) == 0
    assert "1,500 rows of 40 dims" in capsys.readouterr().out
    index = asx.Index.open(directory)
    assert index.metric == "l2"
    np.testing.assert_array_equal(index.ids, ids)


def test_search_writes_npz(built: Path, vectors: np.ndarray, vectors_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "found.npz"
    assert main(["search", str(built), str(vectors_file), "-k", "4", "-o", str(output), "--exact"]) == 0
    expected = asx.top_k(vectors, vectors, 4, metric="cosine")
    with np.load(output) as found:
        np.testing.assert_array_equal(found["ids"], expected.ids)
        np.testing.assert_array_equal(found["scores"], expected.scores)


def test_search_writes_tsv_with_all_digits(built: Path, vectors: np.ndarray, tmp_path: Path) -> None:
    queries, output = tmp_path / "queries.npy", tmp_path / "found.tsv"
    np.save(queries, vectors[:3])
    assert main(["search", str(built), str(queries), "-k", "2", "-o", str(output)]) == 0
    header, *lines = output.read_text().splitlines()
    assert header.split("\t") == ["query", "rank", "id", "score"]
    expected = asx.Index.open(built).search(vectors[:3], 2)
    columns = list(zip(*(line.split("\t") for line in lines), strict=True))
    assert [int(query) for query in columns[0]] == [0, 0, 1, 1, 2, 2]
    assert [int(rank) for rank in columns[1]] == [1, 2] * 3
    np.testing.assert_array_equal(np.array(columns[2], np.int64), expected.ids.ravel())
    np.testing.assert_array_equal(np.array(columns[3], np.float32), expected.scores.ravel())


def test_search_shows_a_table_of_the_first_queries(built: Path, vectors_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(built), str(vectors_file), "-k", "2", "--show", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["query", "rank", "id", "score"]
    assert [line.split()[0] for line in lines[1::2][:3]] == ["0", "1", "2"]
    assert lines[-1].startswith("1,497 more queries")


def test_search_takes_a_single_query(built: Path, vectors: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "query.npy", vectors[17])
    assert main(["search", str(built), str(tmp_path / "query.npy"), "-k", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["0", "1", "17"]


def test_compare_shows_all_representations_and_writes_files(
    vectors_file: Path, vectors: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "queries.npy", vectors[:20] + 0.5)
    given = ["compare", str(vectors_file), str(tmp_path / "queries.npy"), "--metric", "l2", "--k", "30"]
    stages = ["Binary()", "Int8(dims=8, rotation='pca')", "PQ(subspaces=41)", "Full()"]
    for stage in stages:
        given += ["--stage", stage]
    assert main([*given, "--json", str(tmp_path / "table.json"), "--csv", str(tmp_path / "table.csv")]) == 0
    shown = capsys.readouterr().out
    for text in (*stages, "recall@30", "in 50", "1,500 vectors of 40 dims (float32, l2), 20 queries", "41) needs at least a dim"):
        assert text in shown
    assert "…" not in shown, "nothing is cut off"
    written = json.loads((tmp_path / "table.json").read_text())
    assert (written["k"], written["among"], written["metric"]) == (30, [50, 100, 200], "l2")
    with (tmp_path / "table.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for records in (written["rows"], lines):
        assert [record["representation"] for record in records] == stages
        assert float(records[3]["recall"]) == float(records[3]["recall_in_50"]) == 1.0
        assert int(records[0]["bytes_per_row"]) == 8
        assert records[2]["recall"] in (None, "")


def test_compare_draws_a_picture(vectors_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert main(["compare", str(vectors_file), str(vectors_file), "--stage", "Binary()", "--plot", str(tmp_path / "plot.png")]) == 0
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_compare_without_matplotlib_says_what_to_install(
    vectors_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'adaptive-search[plots]'" in failure(capsys, "compare", vectors_file, vectors_file, "--plot", "plot.png")


def test_compare_explains_mistakes_before_it_measures(vectors_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("compare", vectors_file, vectors_file)
    for stage in ("binary", "Binary", "HNSW(32)", "Binary(", "PQ(x)", "PQ()", "PQ(8, bits=5)", "Binary(**{})", "__import__('os')"):
        assert "stage: " in failure(capsys, *given, "--stage", stage)
    assert ".png or .svg" in failure(capsys, *given, "--plot", tmp_path / "plot.gif")
    assert "no directory" in failure(capsys, *given, "--json", tmp_path / "nowhere" / "table.json")
    assert "k: expected" in failure(capsys, *given, "-k", "0")


def test_info_tells_what_is_there(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(built), "--verify"]) == 0
    shown = capsys.readouterr().out
    for part in ("1,500", "40", "cosine", "all bytes verified"):
        assert part in shown
    assert "transform" not in shown


def test_info_tells_of_a_transform(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asx.Index(40, transform=asx.PCA(8)).save(tmp_path)
    assert main(["info", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "PCA(dims=8, center=False)" in shown
    assert "40" in shown


def test_info_verify_finds_a_flipped_byte(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    segment = max(built.iterdir(), key=lambda path: path.stat().st_size)
    damaged = bytearray(segment.read_bytes())
    damaged[-100] ^= 1
    segment.write_bytes(damaged)
    assert segment.name in failure(capsys, "info", built, "--verify")


def test_backends_are_listed_with_the_one_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backends"]) == 0
    shown = capsys.readouterr().out
    for name in asx.backends():
        assert name in shown
    assert [line.split()[0] for line in shown.splitlines() if line.rstrip().endswith("in use")] == [asx.backend()]


def test_errors_are_one_line(tmp_path: Path, vectors_file: Path, built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.npy" in failure(capsys, "build", tmp_path / "nowhere.npy", "-o", tmp_path / "new")
    assert "-o" in failure(capsys, "build", vectors_file)
    assert "exists already" in failure(capsys, "build", vectors_file, "-o", built)
    assert "metric" in failure(capsys, "build", vectors_file, "-o", tmp_path / "new", "--metric", "manhattan")
    assert "not a readable .npy" in failure(capsys, "build", Path(__file__), "-o", tmp_path / "new")
    assert ".npz or .tsv" in failure(capsys, "search", built, vectors_file, "-o", "found.csv")
    assert "k" in failure(capsys, "search", built, vectors_file, "-k", "0")
    failure(capsys, "info", tmp_path)
    failure(capsys, "no-such-command")
    assert not (tmp_path / "new").exists()


def test_pickled_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    failure(capsys, "build", tmp_path / "objects.npy", "-o", tmp_path / "new")


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("binary:100,full", [asx.Binary(keep=100), asx.Full()]),
        ("binary@256:1000, int8:100, full", [asx.Binary(256, keep=1000), asx.Int8(keep=100), asx.Full()]),
        ("rabit:100,rabit@2:20,full", [asx.RaBit(keep=100), asx.RaBit(2, keep=20), asx.Full()]),
        ("pq@48:200,full", [asx.PQ(48, keep=200), asx.Full()]),
        ("pq@96x4:200,prefix@128:50,full", [asx.PQ(96, 4, keep=200), asx.Prefix(128, keep=50), asx.Full()]),
    ],
)
def test_cascades_are_read_as_written(text: str, stages: list[object]) -> None:
    assert parse_cascade(text) == asx.Cascade(stages)


def test_the_exact_cascade_is_none() -> None:
    assert parse_cascade("exact") is None


@pytest.mark.parametrize("text", ["", "binary", "binary:", "full:10", "pq:100,full", "prefix:9,full", "binary@8x4:10,full", "hnsw:10,full"])
def test_bad_cascades_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="cascade"):
        parse_cascade(text)


def test_recall_counts_shared_ids() -> None:
    assert recall(np.array([[1, 2, 3, 4]]), np.array([[4, 3, 9, 8]])) == 0.5


def test_the_demo_without_its_data_says_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--data" in failure(capsys, "demo", "--data", tmp_path)


def test_the_demo_runs_on_a_small_copy_of_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for name, rows in (("sentences", 600), ("questions", 8)):
        np.save(tmp_path / f"{name}.f16.npy", rng.standard_normal((rows, 96)).astype(np.float16))
        with gzip.open(tmp_path / f"{name}.txt.gz", "wt", encoding="utf-8") as file:
            file.writelines(f"{name} number {row}\n" for row in range(rows))
    np.save(tmp_path / "gold_sentences.i32.npy", np.full((8, 8), -1, np.int32))
    monkeypatch.setattr("adaptive_search.demo.SHOWN_QUESTIONS", (3,))
    shown = io.StringIO()
    run(tmp_path, Console(width=80, file=shown))
    text = shown.getvalue()
    assert "questions number 3" in text
    for name in asx.backends():
        assert name in text
