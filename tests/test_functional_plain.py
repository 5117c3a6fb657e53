"""Plain arguments of small searches, which the backend looks at itself, and all others, which it leaves to the caller."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from functional_cases import METRICS, assert_same, drawn

import adaptive_search as asx
from adaptive_search.backends.protocol import Backend


@pytest.mark.parametrize("metric", METRICS)
def test_plain_arguments_are_looked_at_by_the_backend(backend: Backend, metric: Any) -> None:
    rng = np.random.default_rng(6)
    wide, batch = drawn(rng, 200, 40), rng.standard_normal((32, 33)).astype(np.float32)
    for rows in (wide[:, :33], wide[::-3, :33], np.ascontiguousarray(wide[:9, :33])):
        for queries in (batch, batch[0], batch[:1]):
            plain = backend.plain_top_k(queries, rows, 12, metric, 1 << 20)
            assert (plain is None) == (backend.name == "numba")
            # mask= goes the other way.
            found = asx.top_k(queries, rows, 12, metric=metric, mask=np.ones(len(rows), bool))
            assert_same(asx.top_k(queries, rows, 12, metric=metric), found)
            assert_same(asx.top_k(queries, rows, 12, metric=metric, threads=2), found)
            if plain is not None:
                assert_same(asx.Neighbors(*plain), found)


def test_plain_codes_are_looked_at_by_the_backend(backend: Backend) -> None:
    rng = np.random.default_rng(7)
    for width in (1, 5, 8, 33, 64):
        wide, batch = rng.integers(0, 256, (200, width + 7), np.uint8), rng.integers(0, 256, (32, width), np.uint8)
        for codes in (wide[:, :width], wide[::-3, 7:], np.ascontiguousarray(wide[:9, :width])):
            for queries in (batch, batch[0], batch[:1]):
                plain = backend.plain_hamming_top_k(queries, codes, 12, 1 << 20)
                assert (plain is None) == (backend.name == "numba")
                found = asx.hamming_top_k(queries, codes, 12, bits=8 * width)
                assert_same(asx.hamming_top_k(queries, codes, 12), found)
                assert_same(asx.hamming_top_k(queries, codes, 12, threads=2), found)
                if plain is not None:
                    assert_same(asx.Neighbors(*plain), found)


class Subclass(np.ndarray):
    pass


QUERIES, ROWS = np.ones((2, 3), np.float32), np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize(
    "changed",
    [
        {"queries": QUERIES.tolist()},
        {"queries": QUERIES.astype(np.float64)},
        {"queries": QUERIES.astype(">f4")},
        {"queries": QUERIES.view(Subclass)},
        {"queries": np.ma.array(QUERIES)},
        {"queries": np.asfortranarray(QUERIES)},
        {"queries": np.frombuffer(bytes(25), np.uint8)[1:].view(np.float32).reshape(2, 3)},
        {"queries": QUERIES[:0]},
        {"queries": QUERIES[:, :2]},
        {"queries": QUERIES[None]},
        {"queries": np.ones((33, 3), np.float32)},
        {"queries": np.float32([0, np.inf, 0])},
        {"queries": np.float32([0, np.nan, 0])},
        {"rows": ROWS.astype(np.float16)},
        {"rows": ROWS.astype(np.int32)},
        {"rows": ROWS[:, ::-1]},
        {"rows": ROWS[:0]},
        {"rows": ROWS[0]},
        {"rows": np.where(ROWS == 5, np.float32(np.nan), ROWS)},
        {"k": 0},
        {"k": -1},
        {"k": True},
        {"k": 2.0},
        {"k": np.int64(2)},
        {"k": 1 << 70},
        {"metric": "dot"},
        {"metric": b"ip"},
        {"metric": None},
        {"most": 127},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_all_other_arguments_are_left_to_the_caller(backend: Backend, changed: dict[str, Any]) -> None:
    arguments = {"queries": QUERIES, "rows": ROWS, "k": 2, "metric": "ip", "most": 128}
    assert (backend.plain_top_k(**arguments) is None) == (backend.name == "numba")
    assert backend.plain_top_k(**arguments | changed) is None


CODES = np.arange(12, dtype=np.uint8).reshape(4, 3)


@pytest.mark.parametrize(
    "changed",
    [
        {"queries": CODES.tolist()},
        {"queries": CODES.astype(np.int8)},
        {"queries": CODES.view(Subclass)},
        {"queries": np.asfortranarray(CODES)},
        {"queries": CODES[:0]},
        {"queries": CODES[:, :2]},
        {"queries": np.ones((33, 3), np.uint8)},
        {"codes": CODES.astype(bool)},
        {"codes": CODES[:, ::-1]},
        {"codes": CODES[:0]},
        {"codes": CODES[:, :0]},
        {"codes": CODES[0]},
        {"k": 0},
        {"k": True},
        {"k": 1 << 70},
        {"most": 47},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_all_other_codes_are_left_to_the_caller(backend: Backend, changed: dict[str, Any]) -> None:
    arguments = {"queries": CODES, "codes": CODES, "k": 2, "most": 48}
    assert (backend.plain_hamming_top_k(**arguments) is None) == (backend.name == "numba")
    assert backend.plain_hamming_top_k(**arguments | changed) is None


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rotation", [None, "opq"])
@pytest.mark.parametrize("bits", [4, 8])
def test_plain_questions_of_pq_codes(backend: Backend, monkeypatch: pytest.MonkeyPatch, bits: int, rotation: Any, metric: Any) -> None:
    """The backend is asked where tables are made of queries as they are, and finds what is found the other way."""
    rng = np.random.default_rng(8)
    rows, batch = drawn(rng, 700, 33), rng.standard_normal((32, 33)).astype(np.float32)
    quantizer = asx.ProductQuantizer(5, bits, iterations=2, metric=metric, rotation=rotation).fit(rows)
    codes = quantizer.encode(rows)
    answered = []

    def noted(*arguments: Any) -> Any:
        answered.append(backend.plain_pq_top_k(*arguments))
        return answered[-1]

    for packed in (quantizer.pack(codes), quantizer.pack(codes[:9])):
        for queries in (batch, batch[0], batch[:1], batch.astype(np.float64)):
            everyone = np.ones(len(packed), bool)
            found = quantizer.top_k(queries, packed, 12, mask=everyone)
            answered.clear()
            with monkeypatch.context() as patch:
                patch.setattr("adaptive_search.quantizers.product.current", lambda: Noting(backend, noted))
                assert_same(quantizer.top_k(queries, packed, 12, threads=2), found)
            plain = rotation is None and metric != "cosine"
            assert [answer is None for answer in answered] == ([backend.name == "numba" or queries.dtype != np.float32] if plain else [])


class Noting:
    """A backend that has a function of its own for plain questions."""

    def __init__(self, backend: Backend, plain_pq_top_k: Any) -> None:
        self.plain_pq_top_k = plain_pq_top_k
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


PQ_BOOKS = np.arange(2 * 16 * 2, dtype=np.float32).reshape(2, 16, 2)
PQ_CODES = np.arange(64, dtype=np.uint8).reshape(1, 1, 64)
PQ_ARGUMENTS: dict[str, Any] = {
    "queries": QUERIES,
    "packed": PQ_CODES,
    "rows": 40,
    "codebooks": PQ_BOOKS,
    "dims": 3,
    "squared": False,
    "k": 2,
    "most": 160,
}


@pytest.mark.parametrize(
    "changed",
    [
        {"queries": QUERIES.tolist()},
        {"queries": QUERIES.astype(np.float64)},
        {"queries": QUERIES[:, :2]},
        {"queries": QUERIES[:0]},
        {"queries": np.ones((33, 3), np.float32)},
        {"queries": np.float32([0, np.nan, 0])},
        {"queries": np.full(3, 3e38, np.float32)},
        {"rows": 0},
        {"k": 0},
        {"k": True},
        {"k": 1 << 70},
        {"most": 159},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_all_other_questions_of_pq_codes_are_left_to_the_caller(backend: Backend, changed: dict[str, Any]) -> None:
    assert (backend.plain_pq_top_k(**PQ_ARGUMENTS) is None) == (backend.name == "numba")
    assert backend.plain_pq_top_k(**PQ_ARGUMENTS | changed) is None


@pytest.mark.parametrize(
    "changed",
    [{"rows": 65}, {"packed": PQ_CODES[:, :0]}, {"codebooks": PQ_BOOKS[:, :15].copy()}, {"dims": 5}],
    ids=lambda changed: next(iter(changed)),
)
def test_codes_and_codebooks_that_do_not_fit_are_refused(backend: Backend, changed: dict[str, Any]) -> None:
    if backend.name == "numba":
        assert backend.plain_pq_top_k(**PQ_ARGUMENTS | changed) is None
        return
    with pytest.raises(ValueError, match=r"packed codes|codebooks"):
        backend.plain_pq_top_k(**PQ_ARGUMENTS | changed)


@pytest.mark.parametrize("threads", [0, -1, 1.0, True, "2"])
def test_small_work_looks_at_threads(threads: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="threads"):
        asx.top_k(QUERIES, ROWS, 2, threads=threads)
    with pytest.raises((TypeError, ValueError), match="threads"):
        asx.hamming_top_k(CODES, CODES, 2, threads=threads)
