"""RaBitQ: unbiased estimates, the order of its own estimates, the same on every backend, odd sizes and bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest

import adaptive_search as asx
from adaptive_search.types import F32

METRICS = ("ip", "cosine", "l2")


def collection(rows: int, dim: int, seed: int = 0) -> F32:
    random = np.random.default_rng(seed)
    return (random.standard_normal((rows, dim)) / np.sqrt(1 + np.arange(dim)) + 0.2).astype(np.float32)


def estimates(quantizer: asx.RaBitQuantizer, queries: F32, codes: Any) -> Any:
    """In float64, of queries that are not rounded."""
    wide = queries.astype(np.float64)
    if quantizer.metric == "cosine":
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    products = wide @ quantizer.decode(codes).T.astype(np.float64)
    if quantizer.metric != "l2":
        return products
    # |q - x|^2 = |q - mean|^2 + |x - mean|^2 - 2 <q - mean, x - mean>, of which the last is estimated.
    mean = quantizer.mean.astype(np.float64)
    norms2 = np.ascontiguousarray(codes[:, -4:]).view("<f4")[:, 0].astype(np.float64)
    centred = (wide - mean) @ (quantizer.decode(codes) - mean).T
    return np.square(wide - mean).sum(axis=1)[:, None] + norms2 - 2 * centred


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [1, 7, 33, 64, 100])
def test_scores_are_those_of_the_codes(dim: int, metric: Any, bits: int, backend: Any) -> None:
    rows, queries = collection(300, dim), collection(9, dim, seed=1)
    quantizer = asx.RaBitQuantizer(bits, metric).fit(rows)
    codes = quantizer.encode(rows)
    assert codes.shape == (300, quantizer.code_bytes)
    assert quantizer.code_bytes == -(-dim * bits // 8) + 8
    ids, scores = quantizer.top_k(queries, codes, 300)
    assert (np.sort(ids, axis=1) == np.arange(300)).all()
    wanted = np.take_along_axis(estimates(quantizer, queries, codes), ids, axis=1)
    # Entries, of 4, 2 or 1 dims, are at most so many times the query's length, and rounded to 1/63 of their range; those of 4 bits are not.
    lengths = np.linalg.norm(queries - (quantizer.mean if metric == "l2" else 0), axis=1, keepdims=True) if metric != "cosine" else 1.0
    factors = np.ascontiguousarray(codes[:, -(-dim * bits // 8) :]).view("<f4")[:, 0][ids]
    error = 0.0 if bits == 4 else (2 if metric == "l2" else 1) * (2**bits - 1) * np.sqrt(4 / bits) / 63
    limit = error * lengths * factors
    assert (np.abs(scores - wanted) <= -(-dim * bits // 4) * limit + 1e-4).all()
    assert np.sqrt(np.square(scores - wanted).mean()) <= 0.5 * np.sqrt(dim * bits / 4 + 1) * np.mean(limit) + 1e-4
    with asx.use_backend(asx.backends()[0]):
        again = asx.RaBitQuantizer(bits, metric).fit(rows)
        expected = again.top_k(queries, again.encode(rows), 20)
    found = quantizer.top_k(queries, codes, 20, threads=2)
    np.testing.assert_array_equal(found.ids, expected.ids)
    assert oracles.same_bits(found.scores, expected.scores)
    one = quantizer.top_k(queries[3], codes, 20)
    assert oracles.same_bits(one.scores, expected.scores[3])


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_estimates_are_unbiased_and_better_with_more_bits(bits: int) -> None:
    rows, queries = collection(400, 96), collection(300, 96, seed=1)
    exact = oracles.dot(queries, rows)
    errors = np.zeros(exact.shape)
    rotations = 12
    for seed in range(rotations):
        quantizer = asx.RaBitQuantizer(bits, seed=seed).fit(rows)
        errors += (queries.astype(np.float64) @ quantizer.decode(quantizer.encode(rows)).T - exact) / rotations
    size = oracles.norms(queries)[:, None] * np.linalg.norm(rows - rows.mean(axis=0), axis=1)
    relative = errors / size
    # Of one rotation the error is about 0.08, 0.04 and 0.01 of both lengths for 1, 2 and 4 bits.
    limit = {1: 0.045, 2: 0.022, 4: 0.006}[bits]
    assert np.sqrt(np.square(relative).mean()) < limit
    assert abs(relative.mean()) < limit / 10


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_what_queries_have_along_the_mean_is_exact(metric: Any) -> None:
    rows = collection(400, 33)
    quantizer = asx.RaBitQuantizer(1, metric).fit(rows)
    decoded = quantizer.decode(quantizer.encode(rows)).astype(np.float64)
    exact = (rows / oracles.norms(rows)[:, None] if metric == "cosine" else rows) @ quantizer.mean.astype(np.float64)
    np.testing.assert_allclose(decoded @ quantizer.mean, exact, rtol=1e-5, atol=1e-6)
    for factor in (1e-3, 7.0, -2.0):
        scores = quantizer.top_k(np.float32(factor) * quantizer.mean, quantizer.encode(rows), 400)
        wanted = exact[scores.ids] * (np.sign(factor) / np.linalg.norm(quantizer.mean) if metric == "cosine" else factor)
        np.testing.assert_allclose(scores.scores, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-17, 1e17, 1e25])
def test_rows_whose_products_with_the_mean_are_beyond_kernels(scale: float, backend: Any) -> None:
    rows = (collection(400, 33) + 1) * np.float32(scale)
    quantizer = asx.RaBitQuantizer(4).fit(rows)
    query = collection(1, 33, seed=2)[0]
    scores = quantizer.top_k(query, quantizer.encode(rows), 400)
    exact = rows.astype(np.float64) @ query
    assert np.corrcoef(scores.scores, exact[scores.ids])[0, 1] > 0.98
    decoded = quantizer.decode(quantizer.encode(rows)).astype(np.float64)
    np.testing.assert_allclose(scores.scores / scale, decoded[scores.ids] @ query / scale, atol=1e-3)


def test_more_of_the_true_neighbours_than_symmetric_codes() -> None:
    rows, queries = collection(3_000, 64), collection(60, 64, seed=1)
    true = asx.top_k(queries, rows, 10, metric="cosine").ids
    found = []
    for quantizer in (asx.BinaryQuantizer(metric="cosine").fit(rows), asx.RaBitQuantizer(1, "cosine").fit(rows)):
        ids = quantizer.top_k(queries, quantizer.encode(rows), 50).ids
        found.append((ids[:, :, None] == true[:, None, :]).any(axis=1).mean())
    assert found[1] > found[0] + 0.05


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("metric", METRICS)
def test_masks_blocks_and_ties(metric: Any, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = collection(5_000, 20), collection(5, 20, seed=2)
    rows[2_500:] = rows[:2_500]
    quantizer = asx.RaBitQuantizer(bits, metric).fit(rows)
    codes = quantizer.encode(rows)
    mask = np.random.default_rng(0).random((5, 5_000)) < 0.5
    everything = quantizer.top_k(queries, codes, 5_000)
    masked = quantizer.top_k(queries, codes, 30, mask=mask)
    for query in range(5):
        allowed = mask[query][everything.ids[query]]
        np.testing.assert_array_equal(masked.ids[query], everything.ids[query][allowed][:30])
    twins = everything.ids.reshape(5, -1, 2)
    assert (twins[:, :, 1] == twins[:, :, 0] + 2_500).mean() > 0.9
    packed = quantizer.pack(codes)
    # Row-major codes, packed in more than one block.
    monkeypatch.setattr("adaptive_search.quantizers.packed.block_rows", lambda _: 1000)
    for again in (quantizer.top_k(queries, packed, 30), quantizer.top_k(queries, codes, 30)):
        np.testing.assert_array_equal(again.ids, everything.ids[:, :30])
        assert oracles.same_bits(again.scores, everything.scores[:, :30])


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("dim", [1, 2, 3, 9, 16])
def test_packing_keeps_the_codes(dim: int, bits: int, backend: Any) -> None:
    rows = collection(70, dim)
    for metric in ("ip", "l2"):
        quantizer = asx.RaBitQuantizer(bits, metric).fit(rows)  # type: ignore[arg-type]
        codes = quantizer.encode(rows)
        packed = quantizer.pack(codes)
        assert len(packed) == 70
        np.testing.assert_array_equal(packed.unpack(), codes)
        np.testing.assert_array_equal(quantizer.decode(packed), quantizer.decode(codes))
        assert repr(packed) == f"PackedCodes(70 rows, subspaces={-(-dim * bits // 4)}, bits=4, with factors)"


def test_packed_codes_of_another_kind_are_refused() -> None:
    rows = collection(70, 16)
    quantizer = asx.RaBitQuantizer(1).fit(rows)
    packed = quantizer.pack(quantizer.encode(rows))
    pq = asx.ProductQuantizer(4, bits=4).fit(rows)
    for asked, other in (
        (quantizer, asx.RaBitQuantizer(1, "l2").fit(rows)),
        (asx.RaBitQuantizer(1, "l2").fit(rows), quantizer),
        (quantizer, asx.RaBitQuantizer(2).fit(rows)),
        (quantizer, pq),
        (pq, quantizer),
    ):
        with pytest.raises(ValueError, match=r"^codes: expected .*, got PackedCodes"):
            asked.top_k(rows[0], other.pack(other.encode(rows)), 1)
    assert packed.factors is not None
    for factors in (packed.factors[:-1], packed.factors.astype(np.float64), -packed.factors, np.full(70, np.nan, np.float32)):
        with pytest.raises(ValueError, match=r"^factors: "):
            asx.PackedCodes(packed.data, 70, 4, 4, factors, None, packed.products)
    for products in (packed.factors[:-1], np.full(70, np.nan, np.float32), np.full(70, -1e30, np.float32)):
        with pytest.raises(ValueError, match=r"^(factors|products): "):
            asx.PackedCodes(packed.data, 70, 4, 4, packed.factors, None, products)


def test_rows_at_the_mean_and_rows_that_do_not_vary() -> None:
    rows = np.tile(np.float32([1, -2, 3]), (50, 1))
    for metric in METRICS:
        quantizer = asx.RaBitQuantizer(1, metric).fit(rows)  # type: ignore[arg-type]
        codes = quantizer.encode(rows)
        ids, scores = quantizer.top_k(rows[0], codes, 3)
        assert ids.tolist() == [0, 1, 2]
        np.testing.assert_allclose(scores, {"ip": 14.0, "cosine": 1.0, "l2": 0.0}[metric], atol=1e-5)
        np.testing.assert_allclose(quantizer.decode(codes), rows / (14**0.5 if metric == "cosine" else 1), atol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_numbers_near_the_end_of_float32(metric: Any) -> None:
    """Codes, or an error that names the row; no warnings."""
    rows = collection(60, 33)
    rows[3] = 3e38
    quantizer = asx.RaBitQuantizer(1, metric).fit(rows)
    codes = quantizer.encode(rows)
    if metric == "cosine":
        assert quantizer.top_k(rows[3], codes, 1).ids.tolist() == [3]
    else:
        with pytest.raises(ValueError, match="codes: row"):
            quantizer.top_k(rows[0], codes, 1)
        with pytest.raises(ValueError, match=r"queries: .*row 0"):
            quantizer.top_k(rows[3], np.zeros_like(codes), 1)


def test_states_bring_quantizers_back() -> None:
    rows = collection(100, 33)
    quantizer = asx.RaBitQuantizer(4, "l2", seed=7)
    assert quantizer.state() == {}
    quantizer.fit(rows)
    again = asx.RaBitQuantizer.from_state(quantizer.state(), "l2", 4)
    np.testing.assert_array_equal(again.encode(rows), quantizer.encode(rows))
    plain = asx.RaBitQuantizer(4).fit(rows)
    assert asx.RaBitQuantizer.from_state(plain.state(), "ip", 4).code_bytes == plain.code_bytes
    # Codes as they were at first.
    first = asx.RaBitQuantizer.from_state({name: plain.state()[name] for name in ("mean", "seed")}, "ip", 4)
    assert first.code_bytes == plain.code_bytes - 4
    codes = first.encode(rows)
    np.testing.assert_array_equal(codes, plain.encode(rows)[:, :-4])
    ids, scores = first.top_k(rows[:5], codes, 100)
    np.testing.assert_allclose(scores, np.take_along_axis(rows[:5] @ first.decode(codes).T, ids, axis=1), rtol=1e-4, atol=1e-4)
    assert "terms" not in first.state()
    for damage in ({"mean": np.float32([np.nan])}, {"seed": np.array([-1])}, {"mean": np.empty(0, np.float32)}):
        with pytest.raises(ValueError, match="state"):
            asx.RaBitQuantizer.from_state(quantizer.state() | damage, "l2", 4)


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda _, __: asx.RaBitQuantizer(3), ValueError, "bits"),
        (lambda _, __: asx.RaBitQuantizer(1.5), TypeError, "bits"),  # type: ignore[arg-type]
        (lambda _, __: asx.RaBitQuantizer(metric="dot"), ValueError, "metric"),  # type: ignore[arg-type]
        (lambda _, __: asx.RaBitQuantizer(seed=-1), ValueError, "seed"),
        (lambda _, __: asx.RaBitQuantizer().encode(np.ones((2, 3))), ValueError, "not fitted"),
        (lambda q, _: q.encode(np.ones((2, 3))), ValueError, "X"),
        (lambda q, _: q.encode(np.full((2, 8), np.nan)), ValueError, "row 0"),
        (lambda q, c: q.top_k(np.ones(8), c[:, 1:], 1), ValueError, "codes"),
        (lambda q, c: q.top_k(np.ones(8), c.astype(np.int8), 1), TypeError, "codes"),
        (lambda q, c: q.top_k(np.ones(8), np.full_like(c, 255), 1), ValueError, "codes: row 0"),
        (lambda q, c: q.top_k(np.ones(7), c, 1), ValueError, "queries"),
        (lambda q, c: q.top_k(np.ones(8), c, 0), ValueError, "k"),
    ],
)
def test_errors_name_the_argument(make: Any, error: type[Exception], named: str) -> None:
    rows = collection(30, 8)
    quantizer = asx.RaBitQuantizer(2).fit(rows)
    with pytest.raises(error, match=named):
        make(quantizer, quantizer.encode(rows))
