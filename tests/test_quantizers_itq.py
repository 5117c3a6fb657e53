"""Sign bits along learned and random directions: codes, scores, what they find."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import adaptive_search as asx
from adaptive_search import rotations
from adaptive_search.backends.protocol import Backend
from adaptive_search.quantizers import itq
from adaptive_search.types import Metric

METRICS: tuple[Metric, ...] = ("ip", "cosine", "l2")
KINDS: tuple[Any, ...] = ("itq", "random", "dims")


def mixed(n: int, dim: int, seed: int = 0) -> Any:
    """Rows far from 0 whose variance decays along directions that no single dim has."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(np.random.default_rng(99).standard_normal((dim, dim)))[0]
    return (rng.standard_normal((n, dim)) * 0.9 ** np.arange(dim) @ directions + 0.7).astype(np.float32)


def found(quantizer: asx.BinaryQuantizer, rows: Any, queries: Any, metric: Metric = "cosine") -> float:
    """Share of the true ten among the first fifty."""
    true = asx.top_k(queries, rows, 10, metric=metric).ids
    ids = quantizer.top_k(queries, quantizer.fit(rows).encode(rows), 50).ids
    return float((ids[:, :, None] == true[:, None, :]).any(axis=1).mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 120), dim=st.integers(1, 70), bits=st.none() | st.integers(1, 70), seed=st.integers(0, 99))
def test_bits_say_on_which_side_of_the_mean_a_row_is(
    backend: Backend, metric: Metric, kind: Any, n: int, dim: int, bits: int | None, seed: int
) -> None:
    bits = None if bits is None else min(bits, dim)
    rows = mixed(n, dim, seed)
    quantizer = asx.BinaryQuantizer(bits, metric, kind, seed=seed).fit(rows)
    counted = bits or dim
    learned = quantizer.directions
    assert learned is not None
    assert learned.matrix.shape == (counted, dim)
    np.testing.assert_allclose(learned.matrix @ learned.matrix.T, np.eye(counted), atol=1e-5)
    compared = oracles.canonical_unit(rows) if metric == "cosine" else rows
    np.testing.assert_allclose(learned.mean, compared.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(learned.radius, np.sqrt(np.square(compared - learned.mean).sum(axis=1).mean()), rtol=1e-4, atol=1e-6)
    coordinates = (compared.astype(np.float64) - learned.mean) @ learned.matrix.T.astype(np.float64)
    clear = np.abs(coordinates) > 1e-5
    signs = np.unpackbits(quantizer.encode(rows), axis=1)[:, :counted].astype(bool)
    np.testing.assert_array_equal(signs[clear], coordinates[clear] > 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
def test_scores_follow_from_distances(backend: Backend, metric: Metric, kind: Any) -> None:
    rows, batch = mixed(300, 21), mixed(6, 21, 1) * 3
    quantizer = asx.BinaryQuantizer(13, metric, kind).fit(rows)
    learned, codes = quantizer.directions, quantizer.encode(rows)
    assert learned is not None
    # As long as the rows are for inner products, of unit length for cosine.
    size = np.hypot(np.linalg.norm(learned.mean), learned.radius) if metric == "ip" else 1.0
    asked = batch if metric == "l2" else batch / oracles.norms(batch)[:, None] * size
    coordinates = (asked - learned.mean) @ learned.matrix.T
    assert np.abs(coordinates).min() > 1e-5
    nearest, ids = oracles.best(oracles.hamming(np.packbits(coordinates > 0, axis=1), codes, 13), 300, largest=False)
    result = quantizer.top_k(batch, codes, 300)
    np.testing.assert_array_equal(result.ids, ids)
    cosines = np.cos(np.pi * nearest.astype(np.float64) / 13)
    away = oracles.norms(asked - learned.mean)[:, None]
    if metric == "l2":
        wanted = away**2 + learned.radius**2 - 2 * away * learned.radius * cosines
    else:
        wanted = (asked @ learned.mean)[:, None] + away * learned.radius * cosines
        wanted = wanted * oracles.norms(batch)[:, None] / size if metric == "ip" else wanted
    np.testing.assert_allclose(result.scores, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("metric", METRICS)
def test_scores_of_random_directions_are_near_the_true_ones(backend: Backend, metric: Metric) -> None:
    rows, batch = mixed(400, 128), mixed(10, 128, 1)
    quantizer = asx.BinaryQuantizer(metric=metric, rotation="random").fit(rows)
    result = quantizer.top_k(batch, quantizer.encode(rows), 400)
    exact = np.take_along_axis(oracles.score(metric, batch, rows), result.ids, axis=1)
    assert abs((result.scores - exact).mean()) < 0.1 * exact.std()
    assert np.abs(result.scores - exact).mean() < 0.8 * np.abs(exact - exact.mean()).mean()


def test_directions_that_are_learned_find_more(backend: Backend) -> None:
    rows, batch = mixed(1000, 48), mixed(60, 48, 1)
    for bits in (None, 24):
        raw, random, learned = (found(asx.BinaryQuantizer(bits, "cosine", kind), rows, batch) for kind in (None, "random", "itq"))
        assert learned > random + 0.04
        # So far from 0, dims have the same signs in most rows.
        assert random > 3 * raw


def test_learning_brings_coordinates_nearer_to_their_signs(backend: Backend) -> None:
    points = mixed(2000, 20) - mixed(2000, 20).mean(axis=0)
    for bits in (20, 7):
        principal = rotations.principal_directions(points, bits)
        learned = itq.train(points, bits)
        # The same subspace, and larger coordinates within.
        np.testing.assert_allclose(learned.T @ learned, principal.T @ principal, atol=1e-4)
        assert np.abs(points @ learned.T).mean() > 1.02 * np.abs(points @ principal.T).mean()


def test_codes_do_not_depend_on_the_backend_nor_the_batch() -> None:
    rows = mixed(700, 33)
    made = []
    for name in asx.backends():
        with asx.use_backend(name):
            for kind in KINDS:
                quantizer = asx.BinaryQuantizer(30, "cosine", kind, seed=3).fit(rows)
                codes = quantizer.encode(rows, threads=1)
                assert quantizer.encode(rows[5:6]).tobytes() == codes[5:6].tobytes()
                scores = quantizer.top_k(rows[:9], codes, 50).scores
                made.append((kind, codes.tobytes(), scores.tobytes(), *(array.tobytes() for array in quantizer.state().values())))
    assert len(set(made)) == len(KINDS)


def test_the_seed_decides_on_random_directions_and_on_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(itq, "MOST_ROWS", 100)
    rows = mixed(300, 9)
    for kind in KINDS:
        states = [asx.BinaryQuantizer(rotation=kind, seed=seed).fit(rows).state() for seed in (1, 1, 2)]
        assert states[0]["directions"].tobytes() == states[1]["directions"].tobytes()
        assert states[0]["mean"].tobytes() == states[1]["mean"].tobytes()
        assert np.array_equal(states[0]["directions"], states[2]["directions"]) == (kind == "dims")
        assert not np.array_equal(states[0]["mean"], states[2]["mean"])


def test_so_many_rows_are_learned_from() -> None:
    assert [itq.rows_wanted(bits) for bits in (1, 384, 1_000, 2_048, 10_000)] == [65_536, 65_536, 20_000, 16_384, 65_536]


@pytest.mark.parametrize("kind", KINDS)
def test_inner_products_scale_with_the_query(backend: Backend, kind: Any) -> None:
    rows, batch = mixed(200, 17), mixed(5, 17, 1)
    quantizer = asx.BinaryQuantizer(rotation=kind).fit(rows)
    codes = quantizer.encode(rows)
    one, other = quantizer.top_k(batch, codes, 50), quantizer.top_k(batch * 64, codes, 50)
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_allclose(one.scores * 64, other.scores, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_decoded_rows_have_the_code_that_they_come_from(backend: Backend, kind: Any) -> None:
    rows = mixed(100, 19)
    for bits in (19, 8, 1):
        quantizer = asx.BinaryQuantizer(bits, "l2", kind).fit(rows)
        codes = quantizer.encode(rows)
        decoded = quantizer.decode(codes)
        np.testing.assert_array_equal(quantizer.encode(decoded), codes)
        assert quantizer.directions is not None
        np.testing.assert_allclose(oracles.norms(decoded - quantizer.directions.mean), quantizer.directions.radius, rtol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-30, 1e18, 1e37])
def test_awkward_rows_have_codes_all_the_same(backend: Backend, metric: Metric, kind: Any, size: float) -> None:
    rows = (mixed(40, 6) * size).astype(np.float32)
    rows[:, 2] = 0.0
    rows[::2, 3] = -0.0
    for some in (rows, rows[:1], np.repeat(rows[:1], 9, axis=0)):
        quantizer = asx.BinaryQuantizer(metric=metric, rotation=kind).fit(some)
        if quantizer.directions is not None:
            np.testing.assert_allclose(quantizer.directions.matrix @ quantizer.directions.matrix.T, np.eye(6), atol=1e-5)
        codes = quantizer.encode(some)
        assert np.isfinite(quantizer.decode(codes)).all()
        scores = quantizer.top_k(some[:3], codes, 40).scores
        assert not np.isnan(scores).any()
        if size < 1e10 or metric == "cosine":
            assert np.isfinite(scores).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_almost_too_long_are_as_far_away_as_a_number_can_say(backend: Backend, metric: Metric, kind: Any) -> None:
    rows = np.full((50, 2), 2.3e38, np.float32)
    rows[:5] *= -1
    quantizer = asx.BinaryQuantizer(metric=metric, rotation=kind).fit(rows)
    codes = quantizer.encode(rows)
    assert np.isfinite(quantizer.decode(codes)).all()
    for queries in (rows, np.full((1, 2), 3e38, np.float32), np.float32([[1, 0]])):
        assert not np.isnan(quantizer.top_k(queries, codes, 9).scores).any()
    again = asx.BinaryQuantizer.from_state(quantizer.state(), metric)
    assert again.encode(rows).tobytes() == codes.tobytes()


def test_a_fit_that_is_interrupted_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = asx.BinaryQuantizer(rotation="itq").fit(mixed(100, 6))
    before = quantizer.directions

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(itq, "procrustes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quantizer.fit(mixed(50, 4))
    assert quantizer.directions is before
    assert quantizer.dim == 6


def test_fitting_shows_its_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    asx.BinaryQuantizer(rotation="itq").fit(mixed(50, 4), progress=True)
    assert "Learning directions" in capsys.readouterr().err


@pytest.mark.parametrize("rotation", ["opq", "ITQ", 1, True, ["itq"]])
def test_unknown_rotations_are_explained(rotation: Any) -> None:
    with pytest.raises(ValueError, match=r"^rotation: expected 'itq', 'random', 'dims' or None, got"):
        asx.BinaryQuantizer(rotation=rotation)


def test_states_tell_rotations_apart() -> None:
    rows = mixed(60, 8)
    for kind in (None, *KINDS):
        quantizer = asx.BinaryQuantizer(5, "l2", kind).fit(rows)
        again = asx.BinaryQuantizer.from_state(quantizer.state(), "l2")
        assert (repr(again), again.rotation) == (repr(quantizer), kind)
    assert list(asx.BinaryQuantizer(5).fit(rows).state()) == ["shape"]


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_bits_are_those_of_canonical_products(metric: Any, backend: Backend) -> None:
    """Whatever other products they are guessed from: rows of all lengths, some of them at the mean, where every bit is a near-tie."""
    rows = np.random.default_rng(3).standard_normal((1_300, 40)).astype(np.float32) + np.float32(0.3)
    quantizer = asx.BinaryQuantizer(metric=metric, rotation="itq").fit(rows[:1_100])
    learned = quantizer.directions
    assert learned is not None
    rows[200:600] = learned.mean * (1 + np.random.default_rng(4).integers(-9, 9, (400, 1)) * np.float32(2e-7))
    rows *= np.float32(10.0) ** np.random.default_rng(5).integers(-44, 38, (1_300, 1)).astype(np.float32) if metric == "cosine" else 1
    if metric == "ip":
        rows[:5] = np.float32([0, 1e-40, 1e17, 1e19, 3e38])[:, np.newaxis] * np.sign(rows[:5])
    vectors = rows
    if metric == "cosine":
        vectors = np.empty_like(rows)
        backend.dense_unit(rows, vectors)
    expected = np.packbits(rotations.rotated(backend, vectors, learned.matrix) > learned.thresholds, axis=1)
    np.testing.assert_array_equal(quantizer.encode(rows), expected)
    np.testing.assert_array_equal(quantizer.encode(rows[250:251]), expected[250:251])
