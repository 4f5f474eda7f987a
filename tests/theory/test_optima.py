"""The closed forms against descents from many starts, and against each other."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ncssl_core.base import InputError
from ncssl_core.theory.optima import (
    barlow_twins,
    barlow_twins_objective,
    d_min,
    invariance,
    invariance_objective,
    minimise,
    rotation_invariant,
    vicreg,
    vicreg_objective,
)

DECAY = 0.9 * 0.75 ** np.arange(8)
WEIGHTS = (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0)
HELD = {1: (1, 1, 1, 1, 1, 1, 1), 2: (1, 1, 1, 2, 2, 2, 2), 4: (1, 1, 2, 2, 3, 4, 4), 8: (1, 1, 2, 3, 4, 5, 7),
        16: (1, 1, 2, 3, 5, 6, 8), 32: (1, 2, 3, 4, 6, 8, 8), 64: (1, 2, 4, 5, 7, 8, 8)}  # fmt: skip
spectra = st.lists(st.floats(0.01, 0.99), min_size=2, max_size=8, unique=True).map(lambda x: np.sort(x)[::-1])


def second_moment(a):
    return np.linalg.eigvalsh(a.T @ a / len(a))[::-1]


@pytest.mark.parametrize("beta_dim", [0.02, 0.1, 0.4, 1.0, 5.0])
@pytest.mark.parametrize("dim", [2, 4, 5, 8, 16, 32])
def test_invariance_and_correlation_fill_the_modes_like_water(dim, beta_dim):
    values = 0.95 * 0.8 ** np.arange(10)
    found = invariance(values, dim, beta_dim / dim)
    value, a = minimise(invariance_objective(values, beta_dim / dim), dim, 10, starts=3)
    assert value == pytest.approx(found.loss, abs=1e-7)
    m = np.diag(a.T @ a / dim)
    np.testing.assert_allclose(m, found.shares, atol=1e-5)
    assert found.rank == min(dim, int((beta_dim > found.thresholds).sum()))
    assert (second_moment(a) > 1e-6).sum() == found.rank


@pytest.mark.parametrize("dim", HELD)
def test_the_49_cells_of_the_phase_diagram(dim):
    ranks = tuple(barlow_twins(DECAY, dim, weight).rank for weight in WEIGHTS)
    assert ranks == HELD[dim]


@settings(max_examples=15)
@given(spectra, st.integers(2, 9), st.floats(0.02, 3), st.integers(0, 99))
def test_no_descent_gets_below_the_water_whatever_the_spectrum(values, dim, kappa, seed):
    found = invariance(values, dim, kappa / dim)
    value, _ = minimise(invariance_objective(values, kappa / dim), dim, len(values), starts=2, seed=seed)
    assert value == pytest.approx(found.loss, abs=1e-6)
    weight = min(1.0, kappa / dim)
    bound = barlow_twins(values, dim, weight).loss
    value, _ = minimise(barlow_twins_objective(values, weight), dim, len(values), starts=2, seed=seed)
    assert value >= bound - 1e-7


@settings(max_examples=10)
@given(spectra, st.integers(2, 6))
def test_at_weight_one_the_bound_of_barlow_twins_is_attained_for_every_dim(values, dim):
    value, _ = minimise(barlow_twins_objective(values, 1.0), dim, len(values), starts=12)
    assert value == pytest.approx(barlow_twins(values, dim, 1.0).loss, abs=1e-6)


@pytest.mark.long
def test_the_49_cells_of_the_phase_diagram_by_descent():
    wrong = []
    for dim, ranks in HELD.items():
        for weight, rank in zip(WEIGHTS, ranks, strict=True):
            _, a = minimise(barlow_twins_objective(DECAY, weight), dim, 8, starts=40)
            held = int((second_moment(a) > 1e-3).sum())
            wrong += [(dim, weight, held, rank)] if held != rank else []
    assert wrong == []


@pytest.mark.parametrize("lambd", WEIGHTS)
@pytest.mark.parametrize("dim", [2, 4, 8, 16])
def test_barlow_twins_minima_are_found_by_descent(dim, lambd):
    found = barlow_twins(DECAY, dim, lambd)
    value, a = minimise(barlow_twins_objective(DECAY, lambd), dim, 8, starts=15)
    assert value == pytest.approx(found.loss, abs=1e-7)
    if lambd >= 1e-3:  # below, the loss hardly tells the modes apart
        np.testing.assert_allclose(np.diag(a.T @ a / dim), found.shares, atol=2e-4)


@pytest.mark.parametrize("dim", [3, 5])
def test_where_no_sign_matrix_exists_the_minimum_is_above_the_bound(dim):
    values, lambd = np.array([0.77, 0.52, 0.3, 0.1]), 0.15
    value, _ = minimise(barlow_twins_objective(values, lambd), dim, 4, starts=40)
    assert barlow_twins(values, dim, lambd).loss < value - 1e-6
    value, _ = minimise(barlow_twins_objective(values, 1.0), dim, 4, starts=40)
    assert value == pytest.approx(barlow_twins(values, dim, 1.0).loss, abs=1e-8)  # lambd = 1: attained for every dim


@pytest.mark.parametrize("dim", [2, 4, 8, 16])
def test_modes_enter_at_their_threshold(dim):
    for k in (2, 3):
        if k <= dim:
            entry = barlow_twins(DECAY, dim, 0.5).thresholds[k - 1] / dim
            assert barlow_twins(DECAY, dim, 0.97 * entry).rank == k - 1
            assert barlow_twins(DECAY, dim, 1.03 * entry).rank == k
            for side in (0.97, 1.03):
                _, a = minimise(barlow_twins_objective(DECAY, side * entry), dim, 8, starts=12)
                assert (second_moment(a) > 1e-4).sum() == k - (side < 1)


@given(spectra, st.integers(2, 64))
def test_the_first_transition_is_the_collapse_losing_its_stability(values, dim):
    one, two = values[:2]
    stable_below = (1 - one) * (one - two) / (one * ((dim - 1) * one + two))
    assert barlow_twins(values, dim, 0.5).thresholds[1] / dim == pytest.approx(stable_below, rel=1e-12)


@given(spectra, st.integers(1, 64), st.floats(1e-3, 1.0))
def test_shares_are_shares_of_the_first_modes(values, dim, weight):
    for found in (
        barlow_twins(values, dim, weight),
        invariance(values, dim, weight),
        vicreg(values, dim, 25, 25, weight),
    ):
        assert found.shares.sum() == pytest.approx(1, abs=1e-9)
        assert (found.shares >= -1e-12).all()
        assert (found.shares[found.rank :] == 0).all()
        assert 1 <= found.rank <= min(dim, len(values))


@given(spectra, st.floats(1e-3, 1.0), st.integers(1, 8))
def test_d_min_is_where_brute_force_finds_it(values, lambd, k):
    assume(k <= len(values))
    assume(np.diff(values[:k]).max(initial=-1) < -1e-3)
    width = d_min(k, values, lambd)
    assume(width <= 3000)
    assert barlow_twins(values, width, lambd).rank >= k
    assert width == k or barlow_twins(values, width - 1, lambd).rank < k


@pytest.mark.parametrize(
    ("lambd", "widths"),
    [(0.1, [1, 2, 3, 7, 14, 26, 45, 72]), (0.01, [1, 4, 18, 54, 121, 235, 413, 678]),
     (0.001, [1, 29, 170, 520, 1192, 2324, 4093, 6731])],
)  # fmt: skip
def test_the_narrowest_projectors_for_the_decaying_spectrum(lambd, widths):
    assert [d_min(k, DECAY, lambd) for k in range(1, 9)] == widths


@pytest.mark.parametrize("sim", [20.0, 40.0, 80.0, 160.0, 400.0])
@pytest.mark.parametrize("dim", [4, 8, 16, 32])
def test_vicreg_minima_are_found_by_descent(dim, sim):
    values = 0.9 * 0.8 ** np.arange(6)
    found = vicreg(values, dim, sim, sim, 1.0)
    value, a = minimise(vicreg_objective(values, sim, sim, 1.0), dim, 6, starts=4, free_norms=True)
    assert value == pytest.approx(found.loss, rel=1e-4)
    np.testing.assert_allclose(np.diag(a.T @ a / dim), found.variance * found.shares, atol=2e-3)
    assert found.variance <= 1
    kappa = dim / sim
    assert found.rank == min(dim, int((kappa > found.thresholds).sum()))


@pytest.mark.parametrize("beta", [0.06, 0.2, 1.0, 10.0])
def test_with_the_rotation_invariant_penalty_width_does_not_help(beta):
    ranks = {rotation_invariant(DECAY, dim, beta).rank for dim in (8, 16, 64, 512)}
    assert ranks == {int((1 - 2 * beta < DECAY).sum())}
    found = rotation_invariant(DECAY, 4, beta)
    held = 4 * found.shares
    rival = np.random.default_rng(0).uniform(0, 1, (2000, 8)) * (np.arange(8) < 4)
    losses = ((1 - DECAY) * rival).sum(1) + beta * ((rival[:, :4] - 1) ** 2).sum(1)
    assert 4 * found.loss <= losses.min()
    np.testing.assert_allclose(held[:4], np.clip(1 - (1 - DECAY[:4]) / (2 * beta), 0, None))


def test_eight_features_with_strong_orthogonality_span_what_sixty_four_do():
    narrow, wide, weak = barlow_twins(DECAY, 8, 0.5), barlow_twins(DECAY, 64, 4 / 64), barlow_twins(DECAY, 64, 0.0005)
    assert narrow.rank == wide.rank > weak.rank


@pytest.mark.parametrize(
    "objective",
    [invariance_objective(DECAY, 0.3), barlow_twins_objective(DECAY, 0.3), vicreg_objective(DECAY, 25, 25, 1)],
)
def test_gradients_of_the_objectives(objective):
    random = np.random.default_rng(0)
    a, step = random.standard_normal((5, 8)) * 0.2, random.standard_normal((5, 8))
    _, gradient = objective(a)
    slope = (objective(a + 1e-6 * step)[0] - objective(a - 1e-6 * step)[0]) / 2e-6
    assert slope == pytest.approx((gradient * step).sum(), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: invariance([1.0, 0.5], 4, 1), "without the constant's 1"),
        (lambda: invariance([0.2, 0.5], 4, 1), "descending"),
        (lambda: invariance([0.5], 0, 1), "dim is at least 1"),
        (lambda: invariance([0.5], 1, -1), "beta is a finite weight"),
        (lambda: barlow_twins([0.5], 2, 1.5), "lambd <= 1"),
        (lambda: barlow_twins([0.5, 0.0], 2, 0.5), "above 0"),
        (lambda: d_min(3, [0.5], 0.5), "one of 1 modes"),
        (lambda: vicreg([0.5], 2, 25, 1, 1), "std_coeff >= 16"),
    ],
)
def test_bad_settings_get_one_sentence(call, sentence):
    with pytest.raises(InputError, match=sentence):
        call()


def test_a_mode_out_of_reach_has_an_infinite_threshold():
    for found in (invariance(DECAY, 3, 1), barlow_twins(DECAY, 3, 1), vicreg(DECAY, 3)):
        assert math.isinf(found.thresholds[3])
        assert found.rank <= 3
