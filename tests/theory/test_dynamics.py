"""Closed forms against the integrated flow."""

import numpy as np
import pytest
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
     lambda: slowed_times([0.5, 1.0], 2, 0.5, 1e-3), lambda: lottery(0.5, 0.6, 0.1)],
)  # fmt: skip
def test_bad_input_gets_one_sentence(call):
    with pytest.raises(InputError):
        call()
