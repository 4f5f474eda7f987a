"""Linear encoders of given features: the theory's closed forms are what descent on the package's losses finds."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ncssl_core import BarlowTwinsLoss, InputError, VICRegLoss, linear_ssl
from ncssl_core.augment import clean_view
from ncssl_core.cli import main
from ncssl_core.linear_ssl import (
    Judge,
    budgets,
    canonical,
    closed_form,
    descend,
    optimum,
    overlap,
    phases,
    view_features,
)
from ncssl_core.models import PatchFeatures
from ncssl_core.spectra import subspace_overlap
from ncssl_core.theory.kernels import Gaussian

CORRELATIONS = np.sqrt([0.9, 0.7, 0.5, 0.3, 0.1])


def gaussian_views(samples=3000, views=2, seed=0, mixed=True):
    """Views of a world whose eigenvalues are known, its latents mixed into seven features."""
    z = torch.tensor(Gaussian(CORRELATIONS).draw(samples, views, seed))
    mix = torch.tensor(np.random.default_rng(seed + 1).standard_normal((5, 7))) if mixed else torch.eye(5).double()
    return z @ mix + 3


def both_orders(x):
    return torch.cat([x, x.flip(0)], 1)


def test_canonical_modes_are_white_and_agree_by_their_eigenvalues():
    views = gaussian_views(views=4)
    modes = canonical(views, components=5)
    z = modes(views)
    flat = z.flatten(0, 1)
    np.testing.assert_allclose(flat.T @ flat / len(flat), np.eye(5), atol=1e-9)
    cross = sum(z[a].T @ z[b] for a in range(4) for b in range(4) if a != b) / (12 * z.shape[1])
    np.testing.assert_allclose(cross, np.diag(modes.eigenvalues), atol=1e-9)
    assert (np.diff(modes.eigenvalues) <= 0).all()


def test_they_do_not_depend_on_the_features_coordinates_and_estimate_the_worlds():
    mixed, plain = (canonical(gaussian_views(20_000, mixed=m), components=5) for m in (True, False))
    np.testing.assert_allclose(mixed.eigenvalues, plain.eigenvalues, atol=1e-6)
    np.testing.assert_allclose(mixed.eigenvalues, CORRELATIONS**2, atol=0.03)


@settings(max_examples=8)
@given(st.sampled_from([1, 2, 4, 8]), st.floats(0.01, 1.0), st.integers(0, 99))
def test_descent_on_the_packages_barlow_twins_attains_the_closed_form(dim, lambd, seed):
    views = gaussian_views(400, seed=seed)
    modes = canonical(views, components=5)
    loss, pairs = BarlowTwinsLoss(lambd=lambd), both_orders(modes(views))
    found = optimum(modes.eigenvalues, loss, dim)
    best = min(descend(pairs, loss, dim, seed=s)[1] for s in range(4))
    assert best == pytest.approx(found.loss, abs=1e-4)  # the loss adds 1e-5 to variances
    assert float(loss(pairs @ closed_form(modes, loss, dim))) / dim == pytest.approx(found.loss, abs=1e-4)


@pytest.mark.parametrize(("dim", "coeff"), [(4, 25.0), (8, 60.0)])
def test_and_so_it_does_for_vicreg(dim, coeff):
    views = gaussian_views(2000)
    modes = canonical(views, components=5)
    loss, pairs = VICRegLoss(coeff, coeff, 1.0), both_orders(modes(views))
    found = optimum(modes.eigenvalues, loss, dim)
    weights, value = min((descend(pairs, loss, dim, seed=s) for s in range(4)), key=lambda x: x[1])
    assert value == pytest.approx(found.loss, rel=5e-3)  # unbiased variances, and 1e-4 inside the root
    assert overlap(weights, found.rank) == pytest.approx(1, abs=1e-3)
    assert float(loss(pairs @ closed_form(modes, loss, dim))) == pytest.approx(found.loss, rel=5e-3)


def test_a_closed_form_of_features_not_seen_is_a_linear_map_of_them():
    views = gaussian_views()
    modes = canonical(views, components=5)
    weights = closed_form(modes, BarlowTwinsLoss(kappa=1.0), 4)
    z = modes(views[0]) @ weights
    assert z.shape == (3000, 4)
    np.testing.assert_allclose(z.var(0, correction=0), 1, atol=0.1)


def test_overlap_counts_the_span_not_the_columns():
    weights = torch.zeros(5, 4)
    weights[0, :2], weights[1, 2:] = 1.0, -2.0  # two directions, each twice
    assert overlap(weights, 2) == pytest.approx(1)
    assert overlap(weights, 4) == pytest.approx(0.5)
    other = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    samples = torch.randn(50, 5, generator=torch.Generator().manual_seed(1))
    white = torch.linalg.qr(samples - samples.mean(0))[0]
    assert overlap(other, 2) == pytest.approx(subspace_overlap(white @ other, white[:, :2]), abs=1e-5)


@pytest.fixture(scope="module")
def images(shapes):
    train, test = shapes["train"], shapes["test"]
    net = PatchFeatures(clean_view(train.images, 32, "shapes"), filters=8)
    clean = [net(clean_view(i.images, 32, "shapes")) for i in (train, test)]
    views = view_features(net, train.images, 32, "shapes", 4)
    return net, views, Judge(clean[0], train.labels, clean[1], test.labels)


def test_phases_by_both_ways_on_images(images):
    _, views, judge = images
    modes = canonical(views[:2], components=16)
    rows = phases(views, modes, judge, dims=(1, 4), lambds=(0.01, 1.0))
    assert [(r["dim"], r["lambd"]) for r in rows] == [(1, 0.01), (1, 1.0), (4, 0.01), (4, 1.0)]
    for r in rows:
        assert r["rank"] == r["descent_rank"]
        assert r["loss"] == pytest.approx(r["descent_loss"], abs=1e-3)
        assert r["overlap"] == pytest.approx(1, abs=1e-2)
    assert rows[3]["rank"] > rows[2]["rank"]


def test_more_images_and_views_come_nearer_to_the_truth(images):
    _, views, judge = images
    truth = canonical(views, components=8)
    rows = budgets(views, truth, judge, BarlowTwinsLoss(kappa=2.0), 8, (40, 300), (2, 4), seeds=3)
    assert len(rows) == 12
    near = {(n, m): np.mean([r["overlap"] for r in rows if (r["images"], r["views"]) == (n, m)])
            for n in (40, 300) for m in (2, 4)}  # fmt: skip
    assert near[40, 2] < near[300, 2] < near[300, 4]
    assert {r["held"] for r in rows} == {rows[0]["held"]}


def test_patch_features_are_fixed_by_their_seed_and_ignore_contrast_of_flat_images(shapes):
    x = clean_view(shapes["train"].images, 32, "shapes")
    first, same, other = PatchFeatures(x, 8), PatchFeatures(x, 8), PatchFeatures(x, 8, seed=1)
    assert torch.equal(first(x[:5]), same(x[:5]))
    assert not torch.equal(first(x[:5]), other(x[:5]))
    assert first(x[:5]).shape == (5, 64)
    assert first(torch.full((1, 3, 32, 32), 0.7)).abs().max() == 0  # nothing to respond to
    torch.testing.assert_close(first(x[:5] + 0.4), first(x[:5]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: canonical(torch.zeros(1, 9, 3)), "views >= 2"),
        (lambda: canonical(torch.full((2, 9, 3), torch.nan)), "finite"),
        (lambda: canonical(torch.randn(2, 9, 3), components=4), "wanted 1 to 3, given 4"),
        (lambda: canonical(torch.ones(2, 9, 3)), "fewer than 3 directions"),
        (lambda: closed_form(canonical(gaussian_views(50), 3), BarlowTwinsLoss(), 3), "power of two"),
        (lambda: PatchFeatures(torch.zeros(5, 3, 32, 32)), "100 images or more"),
        (lambda: PatchFeatures(torch.zeros(200, 3, 4, 32)), "100 images or more"),
    ],
)
def test_bad_input_gets_one_sentence(call, says):
    with pytest.raises(InputError, match=says):
        call()


def test_the_command_leaves_a_record_that_reads_back(tmp_path, monkeypatch, capsys):
    small = partial(linear_ssl.study, dims=(1, 4), lambds=(0.1,), seeds=1)
    monkeypatch.setattr(linear_ssl, "study", small)
    words = "linear synthetic --filters 8 --components 16 --images 300 --views 2 --recipe shapes"
    main([*words.split(), "--out", str(tmp_path / "results" / "linear")])
    assert "agree in 2 of 2 cells" in capsys.readouterr().out
    monkeypatch.setattr(linear_ssl, "shipped", lambda name: tmp_path / name)
    record = linear_ssl.read_study("synthetic")
    assert record["settings"]["filters"] == 8
    assert len(record["phases"]) == 2
    assert {row["images"] for row in record["budgets"]} == {37, 75, 150, 300}
    assert linear_ssl.read_study("nothing") is None
    (tmp_path / "results" / "linear" / "torn.json").write_text(json.dumps(record)[:50])
    with pytest.raises(InputError, match="cut short"):
        linear_ssl.read_study("torn")


def test_too_few_images_are_said_before_anything_is_computed(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["linear", "synthetic", "--images", "20000"])
    assert stopped.value.code == 2
    assert "wanted 40000 labelled training images" in capsys.readouterr().err
