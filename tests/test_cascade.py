"""What a cascade may be made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from index_cases import assert_same, collection, expected, filled, questions, shuffled_ids

import adaptive_search as asx
from adaptive_search.cascade import GROUP_BYTES
from adaptive_search.representations import STAGES, stage_of


def test_stages_are_as_they_are_written() -> None:
    stages = [
        asx.Binary(keep=1000),
        asx.RaBit(keep=500),
        asx.PQ(48, bits=4, keep=200),
        asx.Int8(dims=64, keep=50),
        asx.Prefix(128, keep=20),
        asx.Full(),
    ]
    cascade = asx.Cascade(stages)
    text = (
        "Binary(keep=1000), RaBit(keep=500), PQ(subspaces=48, bits=4, keep=200), Int8(dims=64, keep=50), Prefix(dims=128, keep=20), Full()"
    )
    assert repr(cascade) == f"Cascade([{text}])"
    assert eval(repr(cascade), {name: getattr(asx, name) for name in ("Cascade", *STAGES)}) == cascade
    assert repr(asx.Prefix(3, renormalize=False)) == "Prefix(dims=3, renormalize=False)"
    assert len({cascade, asx.Cascade(cascade.stages), asx.Cascade([asx.Full()])}) == 2
    assert cascade != list(cascade.stages)


def test_stages_survive_being_plain_values() -> None:
    for stage in (
        asx.Binary(9, 8),
        asx.PQ(3, 4, 7),
        asx.RaBit(2, 7, 5, "pca"),
        asx.Int8(None, 5),
        asx.Int8(3, 5, rotation="pca"),
        asx.Prefix(6, 5, False),
        asx.Full(),
    ):
        assert stage_of(stage.spec()) == stage


def test_a_shortlist_at_the_end_is_for_the_full_vectors() -> None:
    assert asx.Cascade([asx.Binary(keep=9)]) == asx.Cascade([asx.Binary(keep=9), asx.Full()])
    assert asx.Cascade([asx.Binary()]).stages == (asx.Binary(),)
    assert not asx.Cascade([asx.Binary()]).needs_calibration
    assert asx.Cascade([asx.Binary(), asx.Full()]).needs_calibration


@pytest.mark.parametrize(
    ("stages", "error", "words"),
    [
        ([], ValueError, "at least one"),
        ([asx.Full(), asx.Full()], ValueError, "only as the last"),
        ([asx.Full(), asx.Binary(keep=5)], ValueError, "only as the last"),
        ([asx.Binary(keep=5), "Full"], TypeError, "stages: expected Binary, RaBit, PQ"),
        ([asx.Full], TypeError, "stages: expected Binary, RaBit, PQ"),
        (asx.Full(), TypeError, "stages: expected a list"),
        (None, TypeError, "stages: expected a list"),
    ],
)
def test_bad_lists_of_stages(stages: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        asx.Cascade(stages)


@pytest.mark.parametrize(
    ("stage", "arguments", "error", "words"),
    [
        (asx.Binary, {"keep": 0}, ValueError, "keep: expected at least 1"),
        (asx.Binary, {"keep": 2.5}, TypeError, "keep: expected an integer"),
        (asx.Binary, {"keep": True}, TypeError, "keep: expected an integer"),
        (asx.Binary, {"bits": 0}, ValueError, "bits"),
        (asx.PQ, {"subspaces": 0}, ValueError, "subspaces"),
        (asx.PQ, {"subspaces": None}, TypeError, "subspaces"),
        (asx.PQ, {"subspaces": 4, "bits": 5}, ValueError, "bits: expected 4 or 8, got 5"),
        (asx.PQ, {"subspaces": 4, "bits": None}, TypeError, "bits"),
        (asx.Int8, {"dims": -3}, ValueError, "dims"),
        (asx.Int8, {"rotation": "itq"}, ValueError, "rotation"),
        (asx.PQ, {"subspaces": 4, "rotation": "itq"}, ValueError, "rotation"),
        (asx.PQ, {"subspaces": 4, "dims": 0}, ValueError, "dims"),
        (asx.Int8, {"rotation": "pca", "bounded": True}, ValueError, "rotat"),
        (asx.Prefix, {"dims": 0}, ValueError, "dims"),
        (asx.Prefix, {"dims": None}, TypeError, "dims"),
        (asx.Prefix, {"dims": 4, "renormalize": 1}, TypeError, "renormalize: expected True or False"),
    ],
)
def test_bad_stages(stage: Any, arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        stage(**arguments)


def test_numpy_integers_are_integers() -> None:
    assert asx.Prefix(np.int64(5), keep=np.uint8(9)) == asx.Prefix(5, keep=9)


def test_many_queries_with_long_shortlists_go_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates of all queries at once would be as large as queries times rows."""
    assert GROUP_BYTES == 64 << 20
    rows, ids, queries = collection(300), shuffled_ids(300), questions(50)
    index = filled(rows, "cosine", cascade=asx.Cascade([asx.Prefix(5, keep=300), asx.Prefix(9, keep=200), asx.Full()]), ids=ids)
    answer, allowed = index.search(queries, 10), np.random.default_rng(0).random((50, 300)) < 0.5
    lengths = []
    run_rows = asx.cascade.run_rows

    def counting(scan: Any, visits: int, queries: int, **options: Any) -> Any:
        lengths.append(queries)
        return run_rows(scan, visits, queries, **options)

    monkeypatch.setattr("adaptive_search.cascade.GROUP_BYTES", 7 * 16 * (2 * 300 + 64))
    monkeypatch.setattr("adaptive_search.cascade.run_rows", counting)
    monkeypatch.setattr("adaptive_search.searching.DIRECT_ROWS", 1)
    assert_same(index.search(queries, 10, threads=1), answer.ids, answer.scores)
    assert lengths == [7] * 7 + [1]
    exact = filled(rows, "cosine", ids=ids)
    assert_same(exact.search(queries, 10, filter=list(allowed)), *expected("cosine", rows, ids, queries, 10, allowed))
