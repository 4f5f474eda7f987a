"""Closed forms against the integrated flow."""

import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from ncssl_core.base import InputError
from ncssl_core.theory.dynamics import (
    aligned,
    flow,
    gradient,
    growth,
    learning_times,
    loss,
    lottery,
    modes_by,
    plateau,
    seen_by_modes,
    slowed_times,
)

GAMMAS = np.array([1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08])


def rotation(size, seed):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


@given(st.integers(1, 4), st.integers(1, 5), st.floats(0, 1), st.integers(0, 99))
def test_the_gradient_is_the_losss(dim, inputs, lambd, seed):
    random = np.random.default_rng(seed)
    w, step = random.standard_normal((2, dim, inputs))
    gamma = random.standard_normal((inputs, inputs))
    gamma = gamma + gamma.T
    slope = (loss(w + 1e-6 * step, gamma, lambd) - loss(w - 1e-6 * step, gamma, lambd)) / 2e-6
    assert slope == pytest.approx((gradient(w, gamma, lambd) * step).sum(), rel=1e-4, abs=1e-5)


@settings(max_examples=10)
@given(st.integers(0, 99))
def test_an_aligned_start_follows_the_closed_form(seed):
    v, u = rotation(5, seed), rotation(3, seed + 1)
    gammas, start = np.array([0.9, 0.6, 0.3, 0.1, 0.05]), np.array([1e-2, 2e-2, 5e-2])
    gamma, times = v * gammas @ v.T, np.linspace(0, 12, 13)
    w = flow(u * start @ v[:, :3].T, gamma, times)
    expected = aligned(start, gammas[:3], times)
    assert np.abs(np.einsum("ik,tij,jk->tk", u, w, v[:, :3]) - expected).max() < 1e-8
    assert np.abs(w[-1] - u * expected[-1] @ v[:, :3].T).max() < 1e-8


def test_modes_are_half_learned_at_their_times_and_the_loss_falls_in_steps():
    gammas, start = np.array([1.0, 0.6, 0.35, 0.2]), np.full(4, 1e-4)
    times = learning_times(start, gammas)
    np.testing.assert_allclose(gammas * aligned(start, gammas, times).diagonal() ** 2, 0.5, atol=1e-12)
    between = np.sqrt(times[:-1] * times[1:])
    losses = ((1 - gammas * aligned(start, gammas, between) ** 2) ** 2).sum(1)
    np.testing.assert_allclose(losses, [3, 2, 1], atol=0.15)


@pytest.mark.parametrize("size", [1e-4, 1e-8])
def test_a_random_small_start_learns_at_the_times_that_qr_foretells(size):
    gammas = np.array([1.0, 0.6, 0.35, 0.2, 0.1])
    for seed in range(4):
        start = size * np.random.default_rng(seed).standard_normal((4, 5))
        expected = learning_times(seen_by_modes(start, np.eye(5))[:4], gammas[:4])
        grid = np.linspace(0, 1.3 * expected[-1], 4000)
        energy = gammas[:4] * (flow(start, np.diag(gammas), grid, tolerance=1e-9)[:, :, :4] ** 2).sum(1)
        found = grid[(energy > 0.5).argmax(0)]
        assert np.abs(found / expected - 1).max() < 0.01


def outside(w, dim):
    """||sin Theta||_F^2 between the row space and the first dim modes."""
    basis = np.linalg.svd(w, full_matrices=False)[2]
    return float((basis[:, dim:] ** 2).sum())


def test_only_a_small_start_selects_the_first_modes():
    gammas = np.array([1.0, 0.8, 0.6, 0.44, 0.24, 0.1])  # the 4th and 5th: exponent 2 (1 - 6/11)
    found = []
    for size in (1e-4, 1e-8):
        start = size * np.random.default_rng(0).standard_normal((4, 6))
        found.append(outside(flow(start, np.diag(gammas), [0, 60], tolerance=1e-12)[-1], 4))
    slope = np.log(found[1] / found[0]) / np.log(1e-4)
    assert slope == pytest.approx(2 * (1 - 0.24 / 0.44), rel=0.03)
    large = flow(3 * np.random.default_rng(0).standard_normal((4, 6)), np.diag(gammas), [0, 60])[-1]
    assert loss(large, np.diag(gammas)) < 1e-8  # as low a loss ...
    assert outside(large, 4) > 0.3  # ... with other features


def test_modes_that_views_do_not_share_never_grow():
    gammas = np.array([1.0, 0.5, 0.0, -0.3])
    end = flow(1e-3 * np.ones((2, 4)) + np.diag([1e-3] * 4)[:2], np.diag(gammas), [0, 30])[-1]
    assert np.abs(end[:, 2:]).max() < 3e-3


@pytest.mark.parametrize(("dim", "lambd", "rank"), [(3, 0.3, 1), (4, 0.1, 2), (6, 0.05, 1), (8, 0.5, 3)])
def test_the_plateau_and_the_growth_on_it(dim, lambd, rank):
    """A quasi-stationary point C = (c d / R) Pi with equal diagonal; a small admixture of the next mode."""
    hadamard = np.array([[1]])
    while len(hadamard) < dim:
        hadamard = np.kron(hadamard, [[1, 1], [1, -1]])
    if len(hadamard) == dim:
        basis = hadamard[:, :rank] / np.sqrt(dim)
    elif rank == 1:
        basis = np.ones((dim, 1)) / np.sqrt(dim)
    c = rank / (rank + lambd * (dim - rank))
    gammas = GAMMAS[: rank + 1]
    w = np.zeros((dim, rank + 1))
    w[:, :rank] = basis * np.sqrt(c * dim / rank) / np.sqrt(gammas[:rank])
    assert np.abs(gradient(w, np.diag(gammas), lambd)).max() < 1e-12
    assert loss(w, np.diag(gammas), lambd) == pytest.approx(plateau(rank, dim, lambd), abs=1e-12)
    other = np.linalg.svd(basis, full_matrices=True)[0][:, rank]  # a direction not yet taken
    w[:, rank] = 1e-7 * other
    rate = -gradient(w, np.diag(gammas), lambd)[:, rank] @ other / 1e-7
    assert rate == pytest.approx(growth(gammas[rank], rank, dim, lambd), rel=1e-6)


@pytest.fixture(scope="module")
def two_by_two():
    """Symbols, W of two features and two modes, the flow's velocity, and the rates at a point."""
    one, two, weight = sp.symbols("gamma_1 gamma_2 l", positive=True)
    w = sp.Matrix(2, 2, sp.symbols("w:4", real=True))
    gamma, mask = sp.diag(one, two), sp.Matrix([[1, weight], [weight, 1]])
    error = mask.multiply_elementwise(w * gamma * w.T - sp.eye(2))
    velocity = -4 * error * w * gamma

    def rates(point):
        at = dict(zip(w, point, strict=True))
        assert all(sp.simplify(v.subs(at)) == 0 for v in velocity)  # it is a fixed point
        found = sp.Matrix(list(velocity)).jacobian(list(w)).subs(at).applyfunc(sp.simplify).eigenvals()
        return [sp.simplify(rate) for rate, times in found.items() for _ in range(times)]

    loss_at = sum(x**2 for x in (w * gamma * w.T - sp.eye(2)).diagonal())
    loss_at += 2 * weight * (w * gamma * w.T)[0, 1] ** 2
    return one, two, weight, rates, lambda point: sp.simplify(loss_at.subs(dict(zip(w, point, strict=True))))


def same(found, expected):
    rest = list(expected)
    for rate in found:
        match = next((e for e in rest if sp.simplify(rate - e) == 0), None)
        if match is None:
            return False
        rest.remove(match)
    return not rest


def test_nothing_learned_is_left_at_the_same_rates_whatever_the_weight(two_by_two):
    one, two, _, rates, _ = two_by_two
    assert same(rates([0, 0, 0, 0]), [4 * one, 4 * one, 4 * two, 4 * two])


def test_collapse_is_a_saddle_for_every_weight(two_by_two):
    one, two, weight, rates, loss_at = two_by_two
    point = [sp.sqrt(1 / (1 + weight) / one), 0] * 2
    assert loss_at(point) - 2 * weight / (1 + weight) == 0
    slow = -8 * one * (1 - weight) / (1 + weight)
    assert same(rates(point), [-8 * one, slow, 8 * two * weight / (1 + weight), 0])
    assert growth(0.6, 1, 2, 0.3) == pytest.approx(8 * 0.6 * 0.3 / 1.3)


def test_a_dead_feature_is_a_saddle_and_preferred_to_collapse_beyond_weight_one(two_by_two):
    one, two, weight, rates, loss_at = two_by_two
    point = [1 / sp.sqrt(one), 0, 0, 0]
    assert loss_at(point) == 1
    assert same(rates(point), [-8 * one, 4 * one * (1 - weight), 4 * two, 0])


def test_the_aligned_minimum_and_the_one_at_45_degrees_have_different_slow_rates(two_by_two):
    one, two, weight, rates, loss_at = two_by_two
    aligned_point = [1 / sp.sqrt(one), 0, 0, 1 / sp.sqrt(two)]
    assert loss_at(aligned_point) == 0
    assert same(rates(aligned_point), [-8 * one, -8 * two, -4 * weight * (one + two), 0])
    mixed = [1 / sp.sqrt(2 * one), 1 / sp.sqrt(2 * two), 1 / sp.sqrt(2 * one), -1 / sp.sqrt(2 * two)]
    assert loss_at(mixed) == 0
    numbers = {one: 1, two: sp.Rational(1, 5), weight: sp.Rational(1, 20)}
    found = sorted(float(-r.subs(numbers)) for r in rates(mixed))
    x = sp.symbols("x")
    roots = sp.solve((x**2 - 4 * (one + two) * (1 + weight) * x + 64 * weight * one * two).subs(numbers), x)
    assert found[1] == pytest.approx(min(map(float, roots)), rel=1e-9)
    assert found[0] == pytest.approx(0, abs=1e-12)


def test_after_a_collapse_the_flow_ends_at_the_slow_rate_of_45_degrees():
    gamma, weight = np.diag([1.0, 0.2]), 0.05
    start = 1e-3 * np.random.default_rng(0).standard_normal((2, 2))
    times = np.array([0.0, 190.0, 200.0])
    losses = [loss(w, gamma, weight) for w in flow(start, gamma, times, weight)]
    assert losses[1] < 1e-6
    slow = -np.log(losses[2] / losses[1]) / 10 / 2
    roots = np.roots([1, -4 * 1.2 * 1.05, 64 * weight * 0.2])
    assert slow == pytest.approx(roots.min(), rel=1e-2)


def test_with_full_weight_nothing_is_slowed():
    assert slowed_times(GAMMAS, 8, 1.0, 1e-6) == pytest.approx(np.log(1e6) / (4 * GAMMAS))
    assert plateau(3, 8, 1.0) == 5
    assert np.isinf(slowed_times(GAMMAS, 3, 0.1, 1e-6)[3:]).all()


def test_slowed_times_are_a_limit_of_small_starts():
    gammas, errors = np.array([1.0, 0.6, 0.3]), []
    for size in (1e-4, 1e-8, 1e-16):
        start = size * np.random.default_rng(0).standard_normal((8, 3))
        expected = slowed_times(gammas, 8, 0.1, size)
        grid = np.linspace(0, 1.5 * expected[-1], 6000)
        energy = gammas * (flow(start, np.diag(gammas), grid, 0.1, tolerance=1e-8) ** 2).sum(1)
        found = grid[(energy > 0.5 * energy[-1]).argmax(0)]
        errors.append(np.abs(found / expected - 1).max())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.1


def test_the_49_cells_of_the_phase_diagram_in_time():
    weights, dims = (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0), (1, 2, 4, 8, 16, 32, 64)
    found = [tuple(modes_by(60, GAMMAS, d, weight, 1e-6) for weight in weights) for d in dims]
    assert found == [(1, 1, 1, 1, 1, 1, 1), (1, 1, 1, 2, 2, 2, 2), (1, 1, 2, 3, 4, 4, 4), (1, 1, 2, 3, 5, 6, 8),
                     (1, 1, 3, 4, 6, 7, 8), (1, 2, 4, 5, 6, 8, 8), (1, 2, 4, 6, 7, 8, 8)]  # fmt: skip


@pytest.mark.long
def test_the_49_cells_of_the_phase_diagram_in_time_by_integration():
    """A mode counts once its energy is half of the largest; at a cell's edge one of three starts may differ."""
    wrong = []
    for dim in (1, 2, 4, 8, 16, 32, 64):
        for weight in (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0):
            counts = []
            for seed in range(3):
                start = 1e-6 * np.random.default_rng(seed).standard_normal((dim, 8))
                end = flow(start, np.diag(GAMMAS), [0, 60], weight, tolerance=1e-6)[-1]
                energy = GAMMAS * (end**2).sum(0)
                counts.append(int((energy >= energy.max() / 2).sum()))
            expected = modes_by(60, GAMMAS, dim, weight, 1e-6)
            if abs(np.mean(counts) - expected) >= 0.5:
                wrong.append((dim, weight, counts, expected))
    assert wrong == []


@pytest.mark.parametrize(
    ("start", "chance"), [(0.3, 0.2339), (0.1, 0.1227), (0.03, 0.0565), (0.01, 0.0273), (0.003, 0.0123)]
)
def test_the_lottery_of_features_without_an_off_diagonal_term(start, chance):
    assert lottery(1.0, 0.6, start) == pytest.approx(chance, abs=6e-5)


def test_rows_without_an_off_diagonal_term_end_in_the_second_mode_as_often_as_the_lottery_says():
    start, gammas, second = 0.1 * np.random.default_rng(0).standard_normal((600, 2)), np.array([1.0, 0.6]), 0
    for row in start:
        w = flow(row[None], np.diag(gammas), [0, 40], 0.0, tolerance=1e-6)[-1, 0]
        assert gammas @ w**2 == pytest.approx(1, abs=1e-4)
        second += (gammas * w**2).argmax()
    assert second / len(start) == pytest.approx(lottery(*gammas, 0.1), abs=0.045)  # 3.3 standard errors


@pytest.mark.parametrize(
    "call",
    [lambda: flow(np.ones((2, 3)), np.eye(2), [0, 1]), lambda: flow(np.ones((2, 3)), np.eye(3), [1, 0]),
     lambda: learning_times([1.0], [1.0]), lambda: plateau(3, 2, 0.5), lambda: growth(1, 1, 2, 2.0),
     lambda: modes_by(1, [1.0], 2, 1.5, 0.1),
     lambda: slowed_times([0.5, 1.0], 2, 0.5, 1e-3), lambda: lottery(0.5, 0.6, 0.1)],
)  # fmt: skip
def test_bad_input_gets_one_sentence(call):
    with pytest.raises(InputError):
        call()
