"""Probes on features whose answer is known, and on the built-in set."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from ncssl_core import InputError, build_backbone, extract_features, knn_probe, linear_probe, paper_probe
from ncssl_core.augment import clean_view
from ncssl_core.probe import pixel_features, probe

PROBES = [linear_probe, knn_probe, paper_probe]


def clusters(samples=600, features=20, classes=4, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, features, generator=generator) * 2
    labels = torch.randint(classes, (samples,), generator=generator)
    x = centres[labels] + spread * torch.randn(samples, features, generator=generator)
    cut = samples * 2 // 3
    return x[:cut], labels[:cut], x[cut:], labels[cut:]


@pytest.mark.parametrize("run", PROBES)
def test_separable_classes_are_told_apart_and_noise_is_not(run):
    assert run(*clusters())["accuracy"] > 98
    x, y, xt, yt = clusters(3000)
    chance = run(torch.randn_like(x), y, torch.randn_like(xt), yt)["accuracy"]
    assert chance == pytest.approx(25, abs=5)


@pytest.mark.parametrize("run", PROBES)
def test_probes_are_deterministic(run):
    data = clusters(spread=4.0)
    assert run(*data) == run(*data)


def test_linear_probe_finds_the_minimum_of_its_objective():
    """Against scipy on the plain objective in float64, from another start, to convergence."""
    x, y, xt, yt = clusters(spread=4.0)
    x = x * torch.logspace(-1, 1, 20)  # the standardisation undoes this
    l2, n, d = 0.01, len(x), x.shape[1]
    mean, std = x.mean(0), x.std(0, correction=0)
    z, one_hot = ((x - mean) / std).double().numpy(), np.eye(4)[y]

    def objective(flat):
        w = flat.reshape(d + 1, 4)
        logits = z @ w[:-1] + w[-1]
        logits -= logits.max(1, keepdims=True)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        gradient = np.vstack([z.T @ (p - one_hot) / n + l2 * w[:-1], (p - one_hot).mean(0)])
        return -np.log((p * one_hot).sum(1)).mean() + l2 / 2 * (w[:-1] ** 2).sum(), gradient.ravel()

    best = minimize(objective, np.zeros((d + 1) * 4), jac=True, method="BFGS", options={"gtol": 1e-9}).x.reshape(-1, 4)
    from ncssl_core import probe as module

    zt = torch.from_numpy(z).float()
    axes = module._PrincipalAxes(*torch.linalg.eigh(zt.T @ zt / n))
    found = module._fit(zt, y, l2, torch.zeros(4, d + 1), axes, 100)
    np.testing.assert_allclose(found.T, best - best.mean(1, keepdims=True), atol=5e-3)
    expected = (((xt - mean) / std).double().numpy() @ best[:-1] + best[-1]).argmax(1) == yt.numpy()
    assert linear_probe(x, y, xt, yt * 1, l2=l2)["accuracy"] == pytest.approx(100 * expected.mean(), abs=0.5)


def test_linear_probe_chooses_its_penalty_by_held_out_accuracy():
    x, y, xt, yt = clusters(300, features=150, spread=6.0)  # few samples, many features: a strong penalty is better
    chosen = linear_probe(x, y, xt, yt)
    assert chosen["l2"] > 1e-3
    assert chosen["train_accuracy"] >= chosen["accuracy"]


def test_knn_is_the_weighted_vote_of_the_nearest():
    x, y, xt, yt = clusters(120, spread=4.0)
    bank, queries = (v / v.norm(dim=1, keepdim=True) for v in (x, xt))
    correct = 0
    for query, truth in zip(queries, yt, strict=True):
        cosine = bank @ query
        nearest = cosine.argsort(descending=True)[:7]
        votes = [sum(float(torch.exp(cosine[i] / 0.2)) for i in nearest if y[i] == c) for c in range(4)]
        correct += int(np.argmax(votes) == truth)
    ours = knn_probe(x, y, xt, yt, neighbours=7, temperature=0.2)["accuracy"]
    assert ours == pytest.approx(100 * correct / len(yt))


def test_features_are_those_of_clean_images_in_evaluation_mode(shapes):
    torch.manual_seed(0)
    backbone, images = build_backbone("tiny").train(), shapes["test"].images
    features = extract_features(backbone, images, 32, "cifar", batch=33)
    assert backbone.training
    expected = backbone.eval()(clean_view(images, 32, "cifar"))
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
    averaged = extract_features(backbone, images, 32, "cifar", average_views=4)
    assert averaged.shape == features.shape
    assert not torch.allclose(averaged, features, atol=1e-2)


def test_a_clean_view_is_the_resized_and_normalised_image(shapes):
    import torchvision.transforms.v2.functional as F

    images = shapes["test"].images[:4]
    ours = clean_view(images, 20, {"mean": [0.1, 0.2, 0.3], "std": [0.5, 1, 2], "gray": 1.0})
    theirs = F.normalize(F.resize(images / 255, [20, 20], antialias=True), [0.1, 0.2, 0.3], [0.5, 1, 2])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_pixels_are_shrunk_only_when_large():
    images = torch.randint(0, 256, (3, 3, 48, 48), dtype=torch.uint8)
    assert pixel_features(images).shape == (3, 3 * 32 * 32)
    small = images[..., :8, :8]
    torch.testing.assert_close(pixel_features(small), small.flatten(1) / 255)


def test_probing_wants_labels(shapes):
    from dataclasses import replace

    unlabelled = replace(shapes["train"], labels=None)
    with pytest.raises(InputError, match="a probe wants labels"):
        probe(None, unlabelled, shapes["test"], 32, "cifar", torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, xt, yt: (x, y[:-1], xt, yt), "wanted .* a label each"),
        (lambda x, y, xt, yt: (x, y, xt[:, :-1], yt), "wanted .* alike"),
        (lambda x, y, xt, yt: (x, y * 0, xt, yt), "at least two classes"),
        (lambda x, y, xt, yt: (x * float("nan"), y, xt, yt), "a feature is not finite"),
        (lambda x, y, xt, yt: (x, y, xt[:0], yt[:0]), "given 0 test features"),
    ],
)
def test_features_that_cannot_be_probed(change, message):
    for run in PROBES:
        with pytest.raises(InputError, match=message):
            run(*change(*clusters(60)))
