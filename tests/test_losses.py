"""The losses against plain transcriptions of the published formulas, and the algebra they must obey."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch.autograd import gradcheck

from ncssl_core import BarlowTwinsLoss, InputError, VICRegLoss

PAIRINGS = ["leave-one-out", "all-pairs", "mean"]
SHAPES = [(2, 20, 6), (2, 6, 20), (4, 20, 6), (3, 5, 12), (8, 4, 3)]  # both sides of the Gram form's switch
EXACT = dict(rtol=1e-9, atol=1e-9)


def embeddings(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(shape[1:], generator=generator, dtype=torch.float64)
    return 1.5 * common + torch.randn(shape, generator=generator, dtype=torch.float64) + 0.3


# ---- transcriptions, in numpy, one entry at a time where that is clearer -----------------------------------------


def standardised(view):
    return (view - view.mean(0)) / np.sqrt(view.var(0) + 1e-5)


def penalty(c, lambd, diagonal=None):
    diagonal = np.diag(c) if diagonal is None else diagonal
    return sum((1 - x) ** 2 for x in diagonal) + lambd * sum(
        c[i, j] ** 2 for i in range(len(c)) for j in range(len(c)) if i != j
    )


def barlow_twins(z, lambd, pairing):
    views = [standardised(v) for v in z.numpy()]
    m, n = len(views), len(views[0])
    if pairing == "all-pairs":
        return np.mean([penalty(a.T @ b / n, lambd) for a, b in combinations(views, 2)])
    if pairing == "leave-one-out" or m == 2:
        rest = [np.mean([v for b, v in enumerate(views) if b != a], axis=0) for a in range(m)]
        return np.mean([penalty(v.T @ r / n, lambd) for v, r in zip(views, rest, strict=True)])
    mean = np.mean(views, axis=0)
    return np.mean([penalty(mean.T @ mean / n, lambd, np.diag(v.T @ mean / n)) for v in views])


def vicreg(z, sim, std, cov, halve):
    views = list(z.numpy())
    d = z.shape[-1]
    invariance = np.mean([np.mean((a - b) ** 2) for a, b in combinations(views, 2)])
    variance = [np.mean(np.maximum(0, 1 - np.sqrt(v.var(0, ddof=1) + 1e-4))) for v in views]
    covariances = [np.cov(v.T) for v in views]
    covariance = [(np.sum(k**2) - np.sum(np.diag(k) ** 2)) / d for k in covariances]
    return sim * invariance + std * np.mean(variance) * (1 if halve else 2) + cov * 2 * np.mean(covariance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_barlow_twins_equals_its_formula(shape, pairing):
    z = embeddings(shape)
    assert_allclose(BarlowTwinsLoss(0.03, pairing=pairing)(z).item(), barlow_twins(z, 0.03, pairing), **EXACT)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("halve", [True, False])
def test_vicreg_equals_its_formula(shape, halve):
    z = embeddings(shape) * 0.4
    assert_allclose(VICRegLoss(7, 11, 3, halve)(z).item(), vicreg(z, 7, 11, 3, halve), **EXACT)


def published_barlow_twins(z1, z2, lambd):
    bn = torch.nn.BatchNorm1d(z1.shape[1], affine=False, dtype=z1.dtype)
    c = bn(z1).T @ bn(z2) / len(z1)
    on = torch.diagonal(c).add(-1).pow(2).sum()
    return on + lambd * (c.pow(2).sum() - torch.diagonal(c).pow(2).sum())


def published_vicreg(x, y):
    invariance = torch.nn.functional.mse_loss(x, y)
    x, y = x - x.mean(0), y - y.mean(0)
    std = sum(torch.relu(1 - (v.var(0) + 1e-4).sqrt()).mean() / 2 for v in (x, y))
    covs = [v.T @ v / (len(v) - 1) for v in (x, y)]
    cov = sum((k.pow(2).sum() - torch.diagonal(k).pow(2).sum()) / len(k) for k in covs)
    return 25 * invariance + 25 * std + cov


@pytest.mark.parametrize("shape", [(2, 20, 6), (2, 6, 20)])
@pytest.mark.parametrize(
    ("loss", "published"),
    [(BarlowTwinsLoss(0.005, pairing=p), lambda z: published_barlow_twins(*z, 0.005)) for p in PAIRINGS]
    + [(VICRegLoss(), lambda z: published_vicreg(*z))],
)
def test_two_views_equal_the_published_code_in_value_and_gradient(loss, published, shape):
    ours, theirs = (embeddings(shape).requires_grad_() for _ in range(2))
    a, b = loss(ours), published(theirs)
    a.backward(), b.backward()
    assert_allclose(a.item(), b.item(), **EXACT)
    assert_allclose(ours.grad, theirs.grad, **EXACT)


LOSSES = [BarlowTwinsLoss(0.1, pairing=p) for p in PAIRINGS] + [VICRegLoss(), VICRegLoss(halve_variance=False)]


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 3), (4, 4, 8), (3, 8, 4)])
def test_gradcheck(loss, shape):
    assert gradcheck(loss, embeddings(shape).requires_grad_())


shapes = st.tuples(st.integers(2, 5), st.integers(2, 12), st.integers(1, 12))


@settings(max_examples=40, deadline=None)
@given(shapes, st.sampled_from(LOSSES), st.integers(0, 999), st.randoms(use_true_random=False))
def test_order_of_views_and_samples_does_not_matter(shape, loss, seed, random):
    z = embeddings(shape, seed)
    views, samples = random.sample(range(shape[0]), shape[0]), random.sample(range(shape[1]), shape[1])
    assert_allclose(loss(z[views][:, samples]).item(), loss(z).item(), rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(shapes, st.sampled_from(PAIRINGS), st.integers(0, 999))
def test_barlow_twins_ignores_affine_maps_of_features(shape, pairing, seed):
    """Up to eps: the features are scaled up here, so that 1e-5 beside their variance is below the tolerance."""
    loss, z = BarlowTwinsLoss(0.1, pairing=pairing), 1e6 * embeddings((shape[0], max(shape[1], 4), shape[2]), seed)
    generator = torch.Generator().manual_seed(seed)
    scale = (0.5 + torch.rand(z.shape[0], 1, shape[2], generator=generator)) * torch.where(
        torch.rand(shape[2], generator=generator) < 0.5, -1.0, 1.0
    )
    shift = 1e5 * torch.randn(z.shape[0], 1, shape[2], generator=generator)
    assert_allclose(loss(scale * z + shift).item(), loss(z).item(), rtol=1e-7, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 999))
def test_estimator_identity_of_view_means(shape, seed):
    """V = (1 - 1/m) U + K/m, hence 1 - V_ii = (1 - 1/m)(1 - U_ii) for features of unit variance."""
    m, n, _ = shape
    z = embeddings(shape, seed)
    z = (z - z.mean((0, 1))) / z.std((0, 1), correction=0)
    zbar = z.mean(0)
    u = sum(z[a].T @ z[b] for a in range(m) for b in range(m) if a != b) / (n * m * (m - 1))
    v, k = zbar.T @ zbar / n, sum(x.T @ x for x in z) / (n * m)
    assert_allclose(v, (1 - 1 / m) * u + k / m, atol=1e-9)
    assert_allclose(1 - v.diagonal(), (1 - 1 / m) * (1 - u.diagonal()), atol=1e-9)


def test_pairings_relate_as_the_estimators_do():
    """Leave-one-out's C_a averages to U; "mean" has (1 - 1/m)^2 of its on-diagonal plus a variance over views."""
    z = embeddings((4, 64, 5))
    x = torch.stack([torch.from_numpy(standardised(v)) for v in z.numpy()])
    m, n, _ = x.shape
    c = torch.stack([x[a].T @ (x.sum(0) - x[a]) / (m - 1) / n for a in range(m)])
    diagonal = c.diagonal(dim1=1, dim2=2)
    on = {p: BarlowTwinsLoss(1.0, pairing=p).terms(z)["on_diagonal"].item() for p in PAIRINGS}
    spread = diagonal.var(0, correction=0).sum().item()
    lone = (1 - diagonal.mean(0)).square().sum().item()
    assert_allclose(on["leave-one-out"], lone + spread, rtol=1e-9)
    unit = x.square().mean(1)  # not exactly one: eps stands in the denominator
    jensen = (((m - 1) * diagonal + unit) / m).var(0, correction=0).sum().item()
    centre = (((m - 1) * diagonal + unit) / m).mean(0)
    assert_allclose(on["mean"], (1 - centre).square().sum().item() + jensen, rtol=1e-9)
    assert on["all-pairs"] > on["leave-one-out"]


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.just(2), st.integers(2, 12), st.integers(2, 12)), st.integers(0, 999), st.floats(0, 2))
def test_duality_with_gram_matrices(shape, seed, lambd):
    """L_BT = lambd <G, G'>/n^2 + (1 - lambd) sum C_ii^2 - 2 tr C + d, with G = Z Z^T."""
    z = embeddings(shape, seed)
    x, y = (torch.from_numpy(standardised(v)) for v in z.numpy())
    n, d = x.shape
    diagonal = (x * y).mean(0)
    grams = ((x @ x.T) * (y @ y.T)).sum() / n**2
    dual = lambd * grams + (1 - lambd) * diagonal.square().sum() - 2 * diagonal.sum() + d
    assert_allclose(BarlowTwinsLoss(lambd)(z).item(), dual.item(), rtol=1e-9, atol=1e-9)
    assert_allclose(grams.item(), (x.T @ y).square().sum().item() / n**2, rtol=1e-9)


def test_kappa_is_lambd_times_dim():
    z = embeddings((3, 20, 8))
    assert_allclose(BarlowTwinsLoss(kappa=4.0)(z).item(), BarlowTwinsLoss(0.5)(z).item(), rtol=1e-12)


def test_means_of_terms_make_the_loss_per_feature():
    z, dim = embeddings((2, 300, 8)), 8
    terms = BarlowTwinsLoss(0.5).terms(z)
    per_feature = terms["on_diagonal_mean"] + 0.5 * (dim - 1) * terms["off_diagonal_mean"]
    assert_allclose(per_feature.item(), BarlowTwinsLoss(0.5)(z).item() / dim, rtol=1e-12)
    terms = VICRegLoss().terms(z)
    assert_allclose(terms["covariance"].item(), 2 * (dim - 1) * terms["covariance_mean"].item(), rtol=1e-12)


def test_independent_features_sit_at_the_sampling_floor():
    """E sum_{i != j} C_ij^2 = d (d - 1) / (n - 1)."""
    z = torch.randn(2, 256, 64, generator=torch.Generator().manual_seed(0)).double()
    off = BarlowTwinsLoss(1.0).terms(z)["off_diagonal"].item()
    assert_allclose(off, 64 * 63 / 255, rtol=0.05)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_are_summed_in_fp32(loss, dtype):
    z = (embeddings((2, 16, 64)) * 3).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(z)
    assert value.dtype == torch.float32
    assert_allclose(value.item(), loss(z.double()).item(), rtol=1e-5)
    assert loss(z.double()).dtype == torch.float64


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("shape", [(2, 8, 4), (3, 4, 16)])
def test_constant_features_stay_finite(loss, shape):
    z = embeddings(shape).float()
    z[..., 1] = 2.0
    z.requires_grad_()
    value = loss(z)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("loss", [BarlowTwinsLoss(), VICRegLoss()], ids=str)
@pytest.mark.parametrize("shape", [(2, 1, 4), (1, 8, 4), (8, 4), (2, 8, 0)])
def test_bad_shapes_name_what_was_given_and_wanted(loss, shape):
    with pytest.raises(ValueError, match="wanted a floating tensor") as error:
        loss(torch.zeros(shape))
    assert str(shape) in str(error.value)


def test_mismatched_views_name_both_shapes():
    with pytest.raises(InputError, match=r"\(8, 4\), \(8, 5\)"):
        BarlowTwinsLoss()([torch.zeros(8, 4), torch.zeros(8, 5)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BarlowTwinsLoss(lambd=-1.0), "lambd is a finite weight"),
        (lambda: BarlowTwinsLoss(kappa=float("nan")), "kappa is a finite weight"),
        (lambda: BarlowTwinsLoss(0.1, 0.1), "lambd or kappa"),
        (lambda: BarlowTwinsLoss(0.1, pairing="all"), "all-pairs, leave-one-out, mean"),
        (lambda: VICRegLoss(sim_coeff=-1), "sim_coeff is a finite weight"),
    ],
)
def test_bad_weights_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
