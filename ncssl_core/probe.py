"""How much a representation tells about labels it never saw: linear and nearest-neighbour probes.

Features are extracted once, from clean images at the size the backbone was trained at; the linear probes standardise
them with the training features' statistics. Hyper-parameters are chosen on a split of the training features; the test
images are read once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64, UInt8
from scipy.optimize import minimize
from torch import Tensor, nn

from ncssl_core.augment import MultiView, Recipe, clean_view
from ncssl_core.base import InputError
from ncssl_core.datasets import Images

Features = Float[Tensor, "samples features"]
Labels = Int64[Tensor, " samples"]
Weights = Float[Tensor, "classes features_and_bias"]
L2_GRID = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


@torch.no_grad()
def extract_features(
    backbone: nn.Module,
    images: UInt8[Tensor, "n 3 h w"],
    size: int,
    recipe: str | dict[str, Any] | Recipe = "cifar",
    average_views: int = 0,
    batch: int = 512,
    device: torch.device | None = None,
) -> Features:
    """Representations `(n, features)` of images `(n, 3, H, W)`, on the backbone's device.

    Args:
        backbone: put into evaluation mode while this runs.
        images: uint8, anywhere.
        size: the images are resized to this many pixels.
        recipe: whose mean and std normalise them.
        average_views: 0: the clean image; v: the mean over v random views, as the authors of arXiv:2312.10725 do.
        batch: images at a time.
        device: where the backbone is; found from its parameters if not given.
    """
    device = device or next((p.device for p in backbone.parameters()), torch.device("cpu"))
    augment = MultiView(size, max(average_views, 1), recipe)
    training = backbone.training
    backbone.eval()
    parts = []
    for step, part in enumerate(images.split(batch)):
        on_device = part.to(device)
        views = augment(on_device, step) if average_views else clean_view(on_device, size, recipe)[None]
        features = [backbone(view.contiguous(memory_format=torch.channels_last)).float() for view in views]
        parts.append(torch.stack(features).mean(0))
    backbone.train(training)
    return torch.cat(parts)


def pixel_features(images: UInt8[Tensor, "n 3 h w"], size: int = 32) -> Features:
    """Raw pixels in [0, 1] as features `(n, 3 size^2)`; larger images are first shrunk to `size`."""
    parts = []
    for part in images.split(1024):
        x = part.float() / 255
        if max(x.shape[-2:]) > size:
            x = torch.nn.functional.interpolate(x, size=size, mode="bilinear", antialias=True)
        parts.append(x.flatten(1))
    return torch.cat(parts)


def linear_probe(
    train: Features,
    labels: Labels,
    test: Features,
    test_labels: Labels,
    l2: float | None = None,
    seed: int = 0,
    iterations: int = 100,
) -> dict[str, float]:
    """Test accuracy of multinomial logistic regression on standardised features, in percent.

    The mean cross-entropy plus `l2 / 2 |W|^2` is minimised by L-BFGS. If not given, `l2` is chosen on a tenth of the
    training features: it goes down `L2_GRID`, each fit starting from the one before, until accuracy there falls. The
    last fit uses all training features. Deterministic.

    Args:
        train, test: features `(samples, features)`, on any one device.
        labels, test_labels: classes from 0.
        l2: weight of the penalty.
        seed: of the split.
        iterations: at most, for each fit.

    Returns:
        `accuracy` (percent), `l2`, and `train_accuracy`.

    Raises:
        InputError: no test samples, fewer than two classes, shapes that do not fit, or a feature that is not finite.
    """
    x, y, x_test, y_test, classes = _standardised(train, labels, test, test_labels)
    # On the CPU and in double precision: MPS has no eigh, and MKL's single-precision one fails on 3072 features.
    covariance = (x.T @ x / len(x)).cpu().double()
    axes = _PrincipalAxes(*(part.to(x) for part in torch.linalg.eigh(covariance)))
    start = x.new_zeros(classes, x.shape[1] + 1)
    if l2 is None:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
        held = max(1, len(x) // 10)
        inner, outer = order[held:], order[:held]
        x_inner, y_inner, scores = x[inner], y[inner], []
        for candidate in L2_GRID:
            start = _fit(x_inner, y_inner, candidate, start, axes, iterations)
            scores.append((_accuracy(x[outer], y[outer], start), candidate, start))
            if scores[-1][0] < max(s[0] for s in scores):
                break
        _, l2, start = max(scores, key=lambda s: s[:2])  # of equals, the larger penalty
    weights = _fit(x, y, l2, start, axes, iterations)
    return {"accuracy": _accuracy(x_test, y_test, weights), "l2": l2, "train_accuracy": _accuracy(x, y, weights)}


def paper_probe(
    train: Features, labels: Labels, test: Features, test_labels: Labels, epochs: int = 200, seed: int = 0
) -> dict[str, float]:
    """The probe of arXiv:2312.10725's code: a linear layer, Adam (lr 1e-3, weight decay 1e-6), batches of 512.

    Returns:
        `accuracy` on the test features after the last epoch, in percent.

    Raises:
        InputError: as `linear_probe` does.
    """
    x, y, x_test, y_test, classes = _standardised(train, labels, test, test_labels)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.zeros(x.shape[1], classes, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], 1e-3, weight_decay=1e-6)
    for _ in range(epochs):
        for part in torch.randperm(len(x), generator=generator).to(x.device).split(512):
            optimizer.zero_grad()
            nn.functional.cross_entropy(x[part] @ weight + bias, y[part]).backward()
            optimizer.step()
    correct = ((x_test @ weight + bias).argmax(1) == y_test).float().mean()
    return {"accuracy": 100 * float(correct)}


def knn_probe(
    train: Features,
    labels: Labels,
    test: Features,
    test_labels: Labels,
    neighbours: int = 20,
    temperature: float = 0.1,
) -> dict[str, float]:
    """Test accuracy of a vote among the nearest training features by cosine, weighted exp(cosine / temperature).

    Source: Wu et al. 2018 (arXiv:1805.01978), section 3.4.

    Returns:
        `accuracy` in percent.

    Raises:
        InputError: as `linear_probe` does.
    """
    _, y, _, y_test, classes = _standardised(train, labels, test, test_labels)
    bank = nn.functional.normalize(train.float(), dim=1)
    neighbours, correct = min(neighbours, len(bank)), 0
    for queries, truth in zip(
        nn.functional.normalize(test.float(), dim=1).split(1024), y_test.split(1024), strict=True
    ):
        cosine, index = (queries @ bank.T).topk(neighbours)
        votes = torch.zeros(len(queries), classes, device=bank.device)
        votes.scatter_add_(1, y[index], (cosine / temperature).exp())
        correct += int((votes.argmax(1) == truth).sum())
    return {"accuracy": 100 * correct / len(y_test)}


def probe(
    backbone: nn.Module | None, train: Images, test: Images, size: int, recipe: Any, device: torch.device
) -> tuple[dict[str, Any], Features]:
    """Linear and kNN accuracy of a backbone on labelled images, or of raw pixels without one; and the test features.

    Raises:
        InputError: images without labels, or as `linear_probe` does.
    """
    if train.labels is None or test.labels is None:
        raise InputError("a probe wants labels: train/<class>/ and test/<class>/ folders")
    if backbone is None:
        x, x_test = pixel_features(train.images).to(device), pixel_features(test.images).to(device)
    else:
        x, x_test = (extract_features(backbone, i.images, size, recipe, device=device) for i in (train, test))
    y, y_test = train.labels.to(device), test.labels.to(device)
    linear = linear_probe(x, y, x_test, y_test)
    result = {"linear": linear["accuracy"], "l2": linear["l2"]}
    if backbone is not None:
        result["knn"] = knn_probe(x, y, x_test, y_test)["accuracy"]
    return result, x_test


def _standardised(
    train: Features, labels: Labels, test: Features, test_labels: Labels
) -> tuple[Features, Labels, Features, Labels, int]:
    if train.ndim != 2 or test.shape[1:] != train.shape[1:] or len(labels) != len(train) != 0:
        raise InputError(
            f"given train {tuple(train.shape)} with {len(labels)} labels and test {tuple(test.shape)}, "
            "wanted (samples, features) alike, and a label each"
        )
    if len(test) == 0 or len(test_labels) != len(test):
        raise InputError(f"given {len(test)} test features with {len(test_labels)} labels, wanted a label each")
    classes = int(max(labels.max(), test_labels.max())) + 1
    if len(labels.unique()) < 2:
        raise InputError("a probe wants at least two classes among the training labels")
    x, x_test = train.float(), test.float()
    if not (torch.isfinite(x).all() and torch.isfinite(x_test).all()):
        raise InputError("a feature is not finite: the backbone's weights or the images are broken")
    mean, std = x.mean(0), x.std(0, correction=0).clamp_min(1e-6)
    return (x - mean) / std, labels, (x_test - mean) / std, test_labels, classes


class _PrincipalAxes(NamedTuple):
    variances: Float[Tensor, " features"]
    directions: Float[Tensor, "features features"]


def _fit(x: Features, y: Labels, l2: float, start: Weights, axes: _PrincipalAxes, iterations: int) -> Weights:
    """Minimise the penalised cross-entropy over weights `(classes, features + 1)`, the bias last.

    L-BFGS sees the weights on the features' principal axes, divided there by about the inverse root of the objective's
    curvature; that makes a well-scaled problem of an ill-scaled one and takes tens of evaluations, not hundreds.
    """
    scale = (0.1 * axes.variances.clamp_min(0) + l2).rsqrt()
    one_hot = nn.functional.one_hot(y, len(start)).T.to(x.dtype)

    def weights(flat: npt.NDArray[np.float64]) -> Weights:
        free = torch.as_tensor(flat, dtype=x.dtype, device=x.device).view(start.shape)
        return torch.cat([(free[:, :-1] * scale) @ axes.directions.T, free[:, -1:]], 1)

    def value_and_gradient(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        w, bias = weights(flat).split([x.shape[1], 1], 1)
        log_p = (w @ x.T + bias).log_softmax(0)
        value = -(log_p * one_hot).sum() / len(y) + l2 / 2 * w.square().sum()
        residual = (log_p.exp() - one_hot) / len(y)
        slope = (residual @ x + l2 * w) @ axes.directions * scale
        return value.item(), _flat(torch.cat([slope, residual.sum(1, keepdim=True)], 1))

    free = torch.cat([start[:, :-1] @ axes.directions / scale, start[:, -1:]], 1)
    options = {"maxiter": iterations, "ftol": 1e-6, "gtol": 1e-5}
    return weights(minimize(value_and_gradient, _flat(free), jac=True, method="L-BFGS-B", options=options).x)


def _flat(x: Tensor) -> npt.NDArray[np.float64]:
    return x.double().flatten().cpu().numpy()


def _accuracy(x: Features, y: Labels, w: Weights) -> float:
    return 100 * float(((w[:, :-1] @ x.T + w[:, -1:]).argmax(0) == y).double().mean())
