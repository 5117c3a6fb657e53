"""Binary and int8 quantization: codes, scores, clipping."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import oracles
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import adaptive_search as asx
from adaptive_search.backends.protocol import Backend
from adaptive_search.layout import Slabs

METRICS = ("ip", "cosine", "l2")
on_every_backend = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows_of(n: int, dim: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)


# --- binary ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8])
@pytest.mark.parametrize("bits", [None, 1, 7, 8, 9, 20])
def test_bits_are_signs_of_the_first_dims(dtype: Any, bits: int | None) -> None:
    rows = np.rint(rows_of(50, 20) * 2).astype(dtype)
    quantizer = asx.BinaryQuantizer(bits).fit(rows)
    counted = bits or 20
    assert quantizer.bits == counted
    assert quantizer.code_bytes == -(-counted // 8)
    np.testing.assert_array_equal(quantizer.encode(rows), np.packbits(rows[:, :counted].astype(float) > 0, axis=1))


def test_zeros_constants_and_tiny_values_have_fixed_bits(backend: Backend) -> None:
    rows = np.array([[0.0, -0.0, 1e-45, -1e-45, 3, 3], [-0.0, 0.0, 1e38, -1e38, 3, 3]], np.float32)
    for metric in METRICS:
        quantizer = asx.BinaryQuantizer(metric=metric).fit(rows)
        assert np.unpackbits(quantizer.encode(rows), axis=1)[:, :6].tolist() == [[0, 0, 1, 0, 1, 1]] * 2


@pytest.mark.parametrize("metric", METRICS)
@on_every_backend
@given(n=st.integers(1, 200), dim=st.integers(1, 70), bits=st.none() | st.integers(1, 70), seed=st.integers(0, 99))
def test_ranks_are_those_of_the_hamming_distance(backend: Backend, metric: Any, n: int, dim: int, bits: int | None, seed: int) -> None:
    bits = None if bits is None else min(bits, dim)
    rows, batch = rows_of(n, dim, seed), rows_of(5, dim, seed + 1)
    quantizer = asx.BinaryQuantizer(bits, metric).fit(rows)
    codes = quantizer.encode(rows)
    # Bits beyond the code are of no account.
    codes[:, -1] |= (0xFF >> (quantizer.bits % 8)) if quantizer.bits % 8 else 0
    distances = oracles.hamming(quantizer.encode(batch), codes, quantizer.bits)
    nearest, ids = oracles.best(distances, 20 if n > 20 else n, largest=False)
    found = quantizer.top_k(batch, codes, 20)
    np.testing.assert_array_equal(found.ids, ids)
    cosines = np.cos(np.pi * nearest.astype(np.float64) / quantizer.bits)
    lengths = oracles.norms(batch)[:, None]
    wanted = {"cosine": cosines, "ip": lengths * cosines, "l2": 1 + lengths**2 - 2 * lengths * cosines}[metric]
    np.testing.assert_allclose(found.scores, wanted, rtol=1e-5, atol=1e-6)


def test_decoded_signs_have_unit_length() -> None:
    quantizer = asx.BinaryQuantizer(3).fit(rows_of(2, 5))
    decoded = quantizer.decode(quantizer.encode([[1.0, -2.0, 3.0, 4.0, -5.0]]))
    np.testing.assert_allclose(decoded, np.array([[1, -1, 1, 0, 0]]) / np.sqrt(3), rtol=1e-6)


@pytest.mark.parametrize(("bits", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)])
def test_bad_numbers_of_bits_are_explained(bits: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^bits: expected"):
        asx.BinaryQuantizer(bits)


def test_more_bits_than_dims_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^bits: expected at most one per dim \(5\), got 6"):
        asx.BinaryQuantizer(6).fit(rows_of(2, 5))


# --- int8 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@on_every_backend
@given(n=st.integers(1, 150), queries=st.integers(1, 20), dim=st.integers(1, 70), k=st.integers(1, 30), seed=st.integers(0, 99))
def test_top_k_is_the_canonical_integer_answer(backend: Backend, metric: Any, n: int, queries: int, dim: int, k: int, seed: int) -> None:
    rows, batch = rows_of(n, dim, seed), rows_of(queries, dim, seed + 1)
    quantizer = asx.Int8Quantizer(metric).fit(rows)
    codes = quantizer.encode(rows)
    checked = oracles.canonical_unit(batch) if metric == "cosine" else batch
    prepared = quantizer.prepare(checked)
    assert np.abs(prepared.codes).max() <= 63
    norms2 = quantizer.norms2(codes) if metric == "l2" else None
    exact = oracles.canonical_integer(
        "l2" if norms2 is not None else "ip", prepared.codes, codes, prepared.factors, prepared.offsets, norms2
    )
    scores, ids = oracles.best(exact, min(k, n), largest=metric != "l2")
    found = quantizer.top_k(batch, codes, k)
    np.testing.assert_array_equal(found.ids, ids)
    assert oracles.same_bits(found.scores, scores)


@pytest.mark.parametrize("metric", METRICS)
def test_scores_are_near_the_true_ones(backend: Backend, metric: Any) -> None:
    rows, batch = rows_of(400, 48), rows_of(6, 48, 1)
    quantizer = asx.Int8Quantizer(metric).fit(rows)
    found = quantizer.top_k(batch, quantizer.encode(rows), 400)
    target, stored = (batch, rows) if metric != "cosine" else (oracles.canonical_unit(batch), oracles.canonical_unit(rows))
    exact = np.take_along_axis(oracles.score("l2" if metric == "l2" else "ip", target, stored), found.ids, axis=1)
    # Half a step of a row, and half a step of the folded query, in every dim.
    steps = quantizer.scales.astype(np.float64)
    folded = np.abs(target) * steps
    from_rows = (np.abs(target) * steps / 2).sum(axis=1)
    from_query = folded.max(axis=1) / 63 / 2 * 127 * 48
    if metric == "l2":
        bound = 2 * (from_rows + from_query) + (steps * np.abs(stored).max(axis=0) + steps**2 / 4).sum()
    else:
        bound = from_rows + from_query
    assert (np.abs(found.scores - exact) <= bound[:, None]).all()
    # Errors of single dims cancel out, so that in practice they are much smaller.
    assert np.abs(found.scores - exact).mean() < 0.05 * np.abs(exact - exact.mean()).mean()


def test_codes_are_rounded_to_the_nearest_step(backend: Backend) -> None:
    rows = rows_of(300, 9) * np.logspace(-20, 20, 9, dtype=np.float32)
    quantizer = asx.Int8Quantizer().fit(rows)
    codes = quantizer.encode(rows)
    assert codes.dtype == np.int8
    assert (np.abs(codes).max(axis=0) == 127).all()
    assert (np.abs(quantizer.decode(codes) - rows) <= quantizer.scales * 0.5001).all()
    assert quantizer.clipped == 0


def test_values_beyond_the_limits_are_clipped_and_counted(backend: Backend) -> None:
    quantizer = asx.Int8Quantizer().fit([[1.0, -2.0, 0.0]])
    assert quantizer.encode([[1.01, 2.0, 0.0], [-1.01, -2.02, 1e-30], [3e38, -3e38, -3e38], [1.0, 0.5, -0.0]]).tolist() == [
        [127, 127, 0],
        [-127, -127, 0],
        [127, -127, 0],
        [127, 32, 0],
    ]
    assert quantizer.clipped == 1 + 3 + 3
    quantizer.encode([[5.0, 0.0, 0.0]])
    assert quantizer.clipped == 8
    assert quantizer.fit([[1.0, 1.0, 1.0]]).clipped == 0


def test_columns_of_zeros_have_no_say(backend: Backend) -> None:
    rows = rows_of(50, 4)
    rows[:, 2] = 0
    quantizer = asx.Int8Quantizer().fit(rows)
    assert quantizer.scales[2] == 0
    codes = quantizer.encode(rows)
    assert (codes[:, 2] == 0).all()
    one, other = (quantizer.top_k(np.float32([1, 2, anything, 3]), codes, 9) for anything in (0, 1e30))
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.scores, other.scores)


AWKWARD = ("noise", "far from 0", "constant", "zeros of both signs", "tiny", "denormal", "huge")


def awkward_rows(n: int, kinds: list[str], seed: int) -> Any:
    """Rows whose dims are as embeddings have them, and worse."""
    random = np.random.default_rng(seed)
    made: dict[str, Any] = {
        "noise": random.standard_normal(n),
        "far from 0": 1e4 + random.standard_normal(n),
        "constant": np.full(n, -0.37),
        "zeros of both signs": np.where(random.random(n) < 0.5, 0.0, -0.0),
        "tiny": 1e-8 * random.standard_normal(n),
        "denormal": 1e-44 * random.integers(-9, 9, n),
        "huge": 1e15 * random.standard_normal(n),
    }
    return np.stack([made[kind] for kind in kinds], axis=1).astype(np.float32)


@on_every_backend
@given(
    n=st.integers(1, 60), kinds=st.lists(st.sampled_from(AWKWARD), min_size=1, max_size=30), affine=st.booleans(), seed=st.integers(0, 99)
)
def test_codes_of_awkward_dims_are_half_a_step_from_their_values(
    backend: Backend, n: int, kinds: list[str], affine: bool, seed: int
) -> None:
    rows = awkward_rows(n, kinds, seed)
    quantizer = asx.Int8Quantizer(affine=affine).fit(rows)
    codes = quantizer.encode(rows)
    assert codes.min() >= -127
    assert quantizer.clipped == 0
    # What a float32 is rounded to, and the smallest step there is, come on top.
    allowed = 0.5001 * quantizer.scales + 2.0**-22 * np.abs(rows).max(axis=0) + 2.0**-142
    assert (np.abs(quantizer.decode(codes).astype(np.float64) - rows) <= allowed).all()
    if affine:
        constant = np.array([kind in ("constant", "zeros of both signs") for kind in kinds])
        np.testing.assert_array_equal(quantizer.decode(codes)[:, constant], rows[:, constant])


@pytest.mark.parametrize("metric", METRICS)
@on_every_backend
@given(n=st.integers(1, 60), kinds=st.lists(st.sampled_from(AWKWARD[:5]), min_size=1, max_size=30), seed=st.integers(0, 99))
def test_affine_scores_are_those_of_decoded_rows_but_for_the_rounded_query(
    backend: Backend, metric: Any, n: int, kinds: list[str], seed: int
) -> None:
    rows = awkward_rows(n, kinds, seed)
    batch = np.random.default_rng(seed + 1).standard_normal((4, len(kinds)), dtype=np.float32)
    quantizer = asx.Int8Quantizer(metric, affine=True).fit(rows)
    codes = quantizer.encode(rows)
    found = quantizer.top_k(batch, codes, n)
    target = oracles.canonical_unit(batch) if metric == "cosine" else batch
    kind = "l2" if metric == "l2" else "ip"
    decoded = quantizer.decode(codes)
    exact = np.take_along_axis(oracles.score(kind, target, decoded), found.ids, axis=1)
    moved = np.abs(target - quantizer.offsets if metric == "l2" else target).astype(np.float64)
    # Half a step of the folded query in every dim.
    allowed = (2 if metric == "l2" else 1) * (moved * quantizer.scales).max(axis=1) / 63 / 2 * 127 * len(kinds)
    reach, sizes = moved + 127.0 * quantizer.scales, np.abs(target) + np.abs(decoded).max(axis=0)
    rounding = (
        1e-5 * np.square(reach).sum(axis=1) + 1e-6 * (reach * sizes).sum(axis=1) if kind == "l2" else 1e-5 * (moved * sizes).sum(axis=1)
    )
    assert (np.abs(found.scores - exact) <= (allowed + rounding)[:, None]).all()


def test_offsets_give_finer_steps_to_one_sided_dims(backend: Backend) -> None:
    rows = 5 + rows_of(500, 12)
    symmetric, affine = asx.Int8Quantizer("l2").fit(rows), asx.Int8Quantizer("l2", affine=True).fit(rows)
    errors = [np.abs(one.decode(one.encode(rows)) - rows).mean() for one in (symmetric, affine)]
    assert errors[1] < 0.5 * errors[0]
    truth = asx.top_k(rows[:50], rows, 10, metric="l2").ids
    shared = [
        np.mean([len(set(mine) & set(best)) for mine, best in zip(one.top_k(rows[:50], one.encode(rows), 10).ids, truth, strict=True)])
        for one in (symmetric, affine)
    ]
    assert shared[1] > shared[0]


def test_affine_values_outside_the_fitted_range_are_clipped_and_counted(backend: Backend) -> None:
    quantizer = asx.Int8Quantizer(affine=True).fit([[2.0, -1.0, 7.0], [4.0, -1.0, 7.0]])
    np.testing.assert_array_equal(quantizer.offsets, [3, -1, 7])
    codes = quantizer.encode([[2.0, -1.0, 7.0], [4.5, -1.5, 7.0], [-3e38, 3e38, 7.5], [3.0, -1.0, 7.0]])
    assert codes.tolist() == [[-127, 0, 0], [127, 0, 0], [-127, 0, 0], [0, 0, 0]]
    assert quantizer.clipped == 2 + 3


# --- int8 with scales of rows ---------------------------------------------------------------------------------------------


@on_every_backend
@given(n=st.integers(1, 60), kinds=st.lists(st.sampled_from(AWKWARD), min_size=1, max_size=30), seed=st.integers(0, 99))
def test_codes_of_rows_are_half_a_step_of_their_row_from_their_values(backend: Backend, n: int, kinds: list[str], seed: int) -> None:
    rows = awkward_rows(n, kinds, seed)
    quantizer = asx.RowInt8Quantizer().fit(rows[:1])
    codes = quantizer.encode(rows)
    assert codes.shape == (n, len(kinds) + 4)
    scales = quantizer.scales(codes)
    np.testing.assert_array_equal(scales, np.abs(rows).max(axis=1) / np.float32(127))
    allowed = 0.5001 * scales[:, None] + 2.0**-142
    assert (np.abs(quantizer.decode(codes).astype(np.float64) - rows) <= allowed).all()
    used = scales > 1e-40
    assert (np.abs(codes[used, :-4].astype(int)).max(axis=1, initial=127 if not used.any() else 0) == 127).all()


@pytest.mark.parametrize("metric", METRICS)
@on_every_backend
@given(n=st.integers(1, 150), queries=st.integers(1, 20), dim=st.integers(1, 70), k=st.integers(1, 30), seed=st.integers(0, 99))
def test_top_k_of_scaled_rows_is_the_canonical_answer(
    backend: Backend, metric: Any, n: int, queries: int, dim: int, k: int, seed: int
) -> None:
    rows = rows_of(n, dim, seed) * np.exp(3 * rows_of(n, 1, seed + 2))
    rows[::7] = 0
    batch = rows_of(queries, dim, seed + 1)
    quantizer = asx.RowInt8Quantizer(metric).fit(rows)
    codes = quantizer.encode(rows)
    prepared = quantizer.prepare(oracles.canonical_unit(batch) if metric == "cosine" else batch)
    norms2 = quantizer.norms2(codes) if metric == "l2" else None
    kind = "l2_scaled" if metric == "l2" else "ip_scaled"
    exact = oracles.canonical_integer(
        kind, prepared.codes, codes[:, :dim], prepared.factors, prepared.offsets, norms2, quantizer.scales(codes)
    )
    scores, ids = oracles.best(exact, min(k, n), largest=metric != "l2")
    found = quantizer.top_k(batch, codes, k)
    np.testing.assert_array_equal(found.ids, ids)
    assert oracles.same_bits(found.scores, scores)


def test_scales_of_rows_keep_short_rows_apart(backend: Backend) -> None:
    # Lengths from 1 to 10,000: steps that fit the longest rows leave nothing of the shortest.
    rows = rows_of(600, 24) * np.repeat(np.float32([1, 100, 10_000]), 200)[:, None]
    batch = rows[:40] + 0.1 * rows_of(40, 24, 1)
    truth = asx.top_k(batch, rows, 1, metric="l2").ids
    by_row, by_dim = (one.fit(rows) for one in (asx.RowInt8Quantizer("l2"), asx.Int8Quantizer("l2")))
    assert (by_row.top_k(batch, by_row.encode(rows), 1).ids == truth).mean() > 0.9
    assert (by_dim.top_k(batch, by_dim.encode(rows), 1).ids == truth).mean() < 0.5


@pytest.mark.parametrize("metric", METRICS)
def test_rows_too_large_for_scores_are_refused(backend: Backend, metric: Any) -> None:
    rows = np.float32([[1.0, 2.0], [3e38, 1.0]])
    quantizer = asx.RowInt8Quantizer(metric).fit(rows)
    codes = quantizer.encode(rows)
    if metric == "cosine":
        assert quantizer.top_k(rows, codes, 1).ids.tolist() == [[0], [1]]
        return
    with pytest.raises(ValueError, match=r"^codes: row 1 has a scale too large for scores of float32"):
        quantizer.top_k(rows[:1], codes, 1)


def test_codes_without_a_scale_are_refused() -> None:
    quantizer = asx.RowInt8Quantizer().fit(np.ones((1, 3)))
    codes = quantizer.encode(np.ones((4, 3)))
    for bits in (b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xbf"):
        bad = codes.copy()
        bad[2, 3:] = np.frombuffer(bits, np.int8)
        for verb in (quantizer.decode, quantizer.scales, lambda given: quantizer.top_k([1.0, 0, 0], given, 1)):
            with pytest.raises(ValueError, match=r"^codes: row 2 has no scale"):
                verb(bad)
    with pytest.raises(ValueError, match=r"^codes: expected shape \(n, 7\), got \(4, 3\)"):
        quantizer.top_k([1.0, 0, 0], codes[:, :3], 1)
    with pytest.raises(TypeError, match=r"^codes: expected int8, got uint8"):
        quantizer.decode(codes.view(np.uint8))


def test_a_stage_has_no_offsets() -> None:
    part = asx.Int8().bind(Slabs(4, "float32", ()), "ip", "codes")
    rows = rows_of(9, 4)
    part.restore(asx.Int8Quantizer().fit(rows).state())
    with pytest.raises(ValueError, match=r"^state: expected limits of 4 dims alone"):
        part.restore(asx.Int8Quantizer(affine=True).fit(rows).state())


def test_affine_is_yes_or_no() -> None:
    with pytest.raises(TypeError, match=r"^affine: expected True or False, got 1"):
        asx.Int8Quantizer(affine=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("dim", [1000, 32_768])
def test_large_dims_do_not_overflow(backend: Backend, dim: int) -> None:
    rows = np.ones((3, dim), np.float32)
    rows[1] = -1
    rows[2, ::2] = -1
    quantizer = asx.Int8Quantizer().fit(rows)
    found = quantizer.top_k(rows[0], quantizer.encode(rows), 3)
    assert found.ids.tolist() == [0, 2, 1]
    np.testing.assert_allclose(found.scores, [dim, 0, -dim], rtol=1e-5)


def test_scores_beyond_float32_are_refused(backend: Backend) -> None:
    quantizer = asx.Int8Quantizer("l2").fit([[1.0, 1.0]])
    with pytest.raises(ValueError, match=r"^queries: scores of row 1 are too large for float32"):
        quantizer.top_k([[1.0, 1.0], [1e30, 1.0]], np.zeros((2, 2), np.int8), 1)


def test_rows_whose_squared_norms_leave_float32_are_infinitely_far() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    rows[20:] *= np.float32(1e20)
    quantizer = asx.Int8Quantizer("l2").fit(rows)
    ids, scores = quantizer.top_k(rows[:3], quantizer.encode(rows), 50)
    assert (np.sort(ids[:, :20], axis=1) == np.arange(20)).all()
    assert np.isinf(scores[:, -1]).all()
