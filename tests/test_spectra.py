"""Spectra whose answers are known."""

import numpy as np
import pytest
import torch

from ncssl_core import InputError, spectra

RNG = np.random.default_rng(0)
K = np.arange(1, 513.0)


def with_covariance(eigenvalues, samples=2000):
    """Centred features whose covariance (over samples - 1) has exactly these eigenvalues."""
    x = RNG.standard_normal((samples, len(eigenvalues)))
    x -= x.mean(0)
    q = np.linalg.qr(x)[0]
    rotation = np.linalg.qr(RNG.standard_normal((len(eigenvalues),) * 2))[0]
    return q * np.sqrt(np.asarray(eigenvalues) * (samples - 1)) @ rotation


@pytest.mark.parametrize(("power", "rankme", "effective"), [(1, 409.6, 117.2), (2, 117.2, 5.1)])
def test_rankme_reads_singular_values_and_effective_rank_eigenvalues(power, rankme, effective):
    features = with_covariance(K**-power)
    assert spectra.rankme(features) == pytest.approx(rankme, rel=2e-3)
    assert spectra.effective_rank(spectra.covariance_spectrum(features)) == pytest.approx(effective, abs=0.05)


def test_equal_eigenvalues_count_themselves():
    values = np.array([2.0] * 7 + [0.0] * 3)
    assert spectra.participation_ratio(values) == pytest.approx(7)
    assert spectra.effective_rank(values) == pytest.approx(7)
    assert spectra.rankme(with_covariance(values)) == pytest.approx(7, rel=1e-4)


def test_participation_ratio_of_isotropic_noise():
    features = RNG.standard_normal((20_000, 256))
    expected = 256 / (1 + 256 / 20_000)
    assert spectra.participation_ratio(spectra.covariance_spectrum(features)) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5, 2.0])
def test_alpha_of_an_exact_power_law(alpha):
    assert spectra.alpha_exponent(3 * K**-alpha) == pytest.approx(alpha, abs=1e-6)
    assert spectra.alpha_exponent(3 * K**-alpha, ranks=(5, 60)) == pytest.approx(alpha, abs=1e-6)


def test_alpha_comes_out_low_from_few_samples():
    features = RNG.standard_normal((200, 512)) * K**-0.5
    assert spectra.alpha_exponent(spectra.covariance_spectrum(features), (5, 100)) == pytest.approx(0.918, abs=0.04)


def test_alpha_weighs_ranks_by_one_over_k():
    values = K**-1.0 * np.exp(0.1 * np.sin(K))
    k, y = np.log(K[10:100]), np.log(values[10:100])
    w = 1 / K[10:100]
    slope = np.linalg.solve([[w.sum(), w @ k], [w @ k, w @ k**2]], [w @ y, w @ (k * y)])[1]
    assert spectra.alpha_exponent(values) == pytest.approx(-slope, rel=1e-9)


def test_whiteness_error_has_its_noise_floor():
    features = RNG.standard_normal((4096, 63))
    assert spectra.whiteness_error(features) == pytest.approx(64 / 4096, rel=0.05)
    assert spectra.whiteness_error(2 * with_covariance(np.ones(5), 4000)) == pytest.approx(9, rel=2e-3)


def test_overlap_of_spans():
    truth = RNG.standard_normal((500, 4))
    inside = truth @ RNG.standard_normal((4, 4)) + 3.0
    assert spectra.subspace_overlap(inside, truth) == pytest.approx(1)
    assert spectra.subspace_overlap(np.hstack([inside, inside]), truth) == pytest.approx(1)  # duplicates do no harm
    assert spectra.subspace_overlap(inside[:, :2], truth) == pytest.approx(0.5)
    a, b = (np.linalg.qr(x - x.mean(0))[0] for x in (truth, RNG.standard_normal((500, 4))))
    angles = np.linalg.svd(a.T @ b, compute_uv=False)
    assert spectra.subspace_overlap(a, b) == pytest.approx((angles**2).mean())


def test_overlap_of_random_features_is_d_over_m():
    overlaps = [
        spectra.subspace_overlap(RNG.standard_normal((41, 8)), RNG.standard_normal((41, 3))) for _ in range(400)
    ]
    assert np.mean(overlaps) == pytest.approx(8 / 40, rel=0.05)


def test_overlap_weighs_samples():
    truth, weights = RNG.standard_normal((50, 2)), np.r_[np.full(25, 1 / 25), np.zeros(25)]
    features = np.vstack([truth[:25], RNG.standard_normal((25, 2))])  # they agree where there is weight
    assert spectra.subspace_overlap(features, truth, weights) == pytest.approx(1)
    assert spectra.subspace_overlap(features, truth) < 0.9


def test_torch_and_numpy_agree():
    features = RNG.standard_normal((300, 120))
    assert spectra.summary(torch.from_numpy(features)) == spectra.summary(features)


def test_bad_shapes():
    with pytest.raises(InputError, match=r"given features of shape \(5,\)"):
        spectra.rankme(np.zeros(5))
    with pytest.raises(InputError, match="three positive eigenvalues"):
        spectra.alpha_exponent(np.ones(12))
    with pytest.raises(InputError, match="same samples"):
        spectra.subspace_overlap(np.zeros((5, 2)), np.zeros((6, 2)))
