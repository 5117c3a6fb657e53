"""Indexes saved by earlier versions of the format keep opening, searching and verifying as they did."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import adaptive_search as asx
from adaptive_search.storage import VERSION
from adaptive_search.transforms import Transform

SAMPLES = sorted((Path(__file__).parent / "data").glob("format-*"))

RABIT = Path(__file__).parent / "data" / "rabit-1"
"""RaBit codes for cosine as they were at first, without what rows have along the mean."""


def make(directory: Path, transform: Transform | None = None) -> None:
    """How a sample is made: every kind of stage and file, ids that do not rise, rows removed, and two commits.

    Format 2 is that of indexes with a transform: ``Chain([PCA(10, center=True), RandomRotation(5)])``.
    """
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((96, 12)).astype(np.float16)
    stages = [asx.Binary(keep=60), asx.PQ(5, bits=4, keep=50), asx.Int8(keep=40), asx.Prefix(7, keep=30), asx.Full()]
    index = asx.Index(12, metric="cosine", dtype="float16", cascade=asx.Cascade(stages), fit_rows=64, transform=transform)
    if transform is not None:
        index.fit(rows)
    index.add(rows[:80], ids=np.arange(80)[::-1] * 3)
    index.save(directory / "index")
    index.remove([3, 30, 237])
    index.add(rows[80:])
    index.save(directory / "index")
    queries = rng.standard_normal((4, 12)).astype(np.float32)
    ids, scores = index.search(queries, 8)
    np.savez(directory / "expected.npz", queries=queries, ids=ids, scores=scores, all_ids=index.ids)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("sample", [*SAMPLES, RABIT], ids=lambda path: path.name)
def test_a_sample_opens_and_answers_as_it_did(sample: Path, mmap: bool, tmp_path: Path) -> None:
    shutil.copytree(sample / "index", tmp_path / "index")
    expected = np.load(sample / "expected.npz")
    index = asx.Index.open(tmp_path / "index", mmap=mmap)
    index.verify()
    np.testing.assert_array_equal(index.ids, expected["all_ids"])
    found = index.search(expected["queries"], 8)
    np.testing.assert_array_equal(found.ids, expected["ids"])
    np.testing.assert_array_equal(found.scores.view(np.int32), expected["scores"].view(np.int32))


def test_there_is_a_sample_of_every_format() -> None:
    assert [sample.name for sample in SAMPLES] == [f"format-{version}" for version in range(1, VERSION + 1)]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_a_sample_can_be_changed_and_saved_again(sample: Path, tmp_path: Path) -> None:
    shutil.copytree(sample / "index", tmp_path / "index")
    index = asx.Index.open(tmp_path / "index")
    count = len(index)
    index.add(np.ones((1, 12), np.float16))
    index.save(tmp_path / "index")
    assert len(asx.Index.open(tmp_path / "index")) == count + 1
