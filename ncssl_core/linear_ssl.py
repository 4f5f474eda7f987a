"""Barlow Twins and VICReg on given features of views: where the linear models of the theory meet images.

    views = view_features(patches, images, size=32, recipe="cifar", views=4)    # (views, samples, features)
    modes = canonical(views, components=256)           # what the views agree on, best first
    weights = closed_form(modes, BarlowTwinsLoss(kappa=5), dim=16)              # (modes, dim)
    embedding = modes(features) @ weights

A linear encoder with standardised outputs sees the views only through two matrices, the covariance Sigma of the
features and the cross-covariance Gamma of two views. Its eigenfunctions are the canonical directions, Gamma v =
lambda Sigma v, and in their coordinates its losses are those of `ncssl_core.theory.optima`. Derived in the chapter
*From theory to pixels*.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64, UInt8
from scipy.linalg import eigh, hadamard
from torch import Tensor, nn

from ncssl_core.augment import MultiView, Recipe, clean_view
from ncssl_core.base import InputError
from ncssl_core.datasets import DataSet
from ncssl_core.losses import BarlowTwinsLoss, VICRegLoss
from ncssl_core.models import PatchFeatures
from ncssl_core.probe import extract_features, linear_probe
from ncssl_core.records import environment, shipped
from ncssl_core.theory import optima
from ncssl_core.theory.estimators import u_statistic

Row = dict[str, float]
Views = Float[Tensor, "views samples features"]
Loss = BarlowTwinsLoss | VICRegLoss
DIMS = (1, 2, 4, 8, 16, 32, 64)
LAMBDS = (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0)


@torch.no_grad()
def view_features(
    backbone: Callable[[Tensor], Tensor],
    images: UInt8[Tensor, "samples 3 h w"],
    size: int,
    recipe: str | dict[str, object] | Recipe = "cifar",
    views: int = 2,
    seed: int = 0,
    batch: int = 512,
) -> Views:
    """Features `(views, samples, features)` of random views of each image, by a backbone that is in evaluation mode.

    Raises:
        InputError: as `MultiView` does.
    """
    augment = MultiView(size, views, recipe, seed)
    parts = []
    for step, part in enumerate(images.split(batch)):
        drawn = augment(part, step)
        parts.append(backbone(drawn.flatten(0, 1)).unflatten(0, drawn.shape[:2]))
    return torch.cat(parts, 1)


@dataclass(frozen=True, eq=False)
class Canonical:
    """Linear features of variance 1, uncorrelated with each other on a view and between two, best agreement first.

    `eigenvalues` `(modes,)` are the correlations of each between two views of a sample, `directions` `(features,
    modes)` and `mean` `(features,)` make them from features: `canonical(features)`.
    """

    eigenvalues: Float[np.ndarray, " modes"]
    directions: Float[Tensor, "features modes"]
    mean: Float[Tensor, " features"]

    def __call__(self, features: Float[Tensor, "... features"]) -> Float[Tensor, "... modes"]:
        """The modes' values on features."""
        return (features - self.mean) @ self.directions


def canonical(views: Views, components: int | None = None) -> Canonical:
    """The canonical directions of features of views: Gamma v = lambda Sigma v, lambda descending.

    Sigma is the covariance over all views and samples, Gamma the symmetric cross-covariance of different views of a
    sample, each view with every other, so unbiased for any number of views.

    Args:
        views: at least two, with more samples than components.
        components: look among linear functions of the first so many principal components only; all if not given.
            Fewer make the estimate steadier: with as many directions as samples, chance agreement looks like signal.

    Raises:
        InputError: fewer than two views, features that are not finite, or more components than samples or features.
    """
    if views.ndim != 3 or len(views) < 2 or not torch.isfinite(views).all():
        raise InputError(f"wanted finite features (views >= 2, samples, features); given {tuple(views.shape)}")
    _, samples, features = views.shape
    kept = features if components is None else components
    if not 1 <= kept <= min(features, samples - 1):
        raise InputError(f"components: wanted 1 to {min(features, samples - 1)}, given {kept}")
    mean = views.mean((0, 1))
    flat = (views - mean).flatten(0, 1)
    sigma = (flat.T @ flat).double().numpy() / len(flat)
    values, vectors = eigh(sigma, subset_by_index=(features - kept, features - 1))
    if values[0] <= 1e-10 * values[-1]:
        raise InputError(f"the features span fewer than {kept} directions; give fewer components")
    white = vectors / np.sqrt(values)
    z = (views - mean) @ torch.as_tensor(white, dtype=views.dtype)
    agreement, turn = np.linalg.eigh(u_statistic(z.numpy()))
    directions = torch.as_tensor(white @ turn[:, ::-1].copy(), dtype=views.dtype)
    return Canonical(agreement[::-1].copy(), directions, mean)


def optimum(eigenvalues: npt.ArrayLike, loss: Loss, dim: int) -> optima.Optimum:
    """The global minimum of one of the package's losses over features with these eigenvalues, in closed form.

    Eigenvalues from data may leave (0, 1): those below 1e-4 cannot be told from 0, and are left out as never held.

    Raises:
        InputError: as `optima.barlow_twins` and `optima.vicreg` do.
    """
    values = np.asarray(eigenvalues, dtype=float)
    values = values[values > 1e-4].clip(max=1 - 1e-9)
    if isinstance(loss, BarlowTwinsLoss):
        return optima.barlow_twins(values, dim, loss.off_diagonal_weight(dim))
    hinge = loss.std_coeff if loss.halve_variance else 2 * loss.std_coeff
    return optima.vicreg(values, dim, loss.sim_coeff, hinge, loss.cov_coeff)


def closed_form(modes: Canonical, loss: Loss, dim: int) -> Float[Tensor, "modes dim"]:
    """Weights on the modes that attain the minimum: `modes(features) @ weights` are the optimal embeddings.

    Every feature mixes all modes that are held, with signs from a Hadamard matrix, so that all features fare alike.

    Raises:
        InputError: dim is no power of two, where for lambd < 1 no such formula is exact, or as `optimum`.
    """
    if dim < 1 or dim & (dim - 1):
        raise InputError(f"closed_form wants dim to be a power of two; given {dim}")
    found = optimum(modes.eigenvalues, loss, dim)
    signs = hadamard(dim)[:, : found.rank] if dim > 1 else np.ones((1, 1))
    weights = np.zeros((len(modes.eigenvalues), dim))
    weights[: found.rank] = (signs * np.sqrt(found.variance * found.shares[: found.rank])).T
    return torch.as_tensor(weights, dtype=modes.directions.dtype)


def descend(
    views: Views, loss: Loss, dim: int, iterations: int = 300, seed: int = 0, size: float = 1.0
) -> tuple[Float[Tensor, "features dim"], float]:
    """Minimise one of the package's losses over linear maps of given features, by L-BFGS from a random start.

    Args:
        views: features, best well scaled: the modes that `canonical` finds.
        loss: the module that training uses.
        dim: features of the embedding.
        iterations: at most.
        seed: of the start.
        size: of the start.

    Returns:
        The weights, and the loss per feature at them.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(views.shape[2], dim, generator=generator, dtype=views.dtype)
    weights = nn.Parameter(size * start / views.shape[2] ** 0.5)
    per = dim if isinstance(loss, BarlowTwinsLoss) else 1  # VICReg's terms are means over features already
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=iterations, history_size=20, tolerance_grad=1e-7, tolerance_change=1e-11,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = loss(views @ weights) / per
        value.backward()
        return value

    optimizer.step(closure)
    with torch.no_grad():
        return weights.detach(), float(loss(views @ weights)) / per


# ---- how good a linear encoder is, over width, weight, views and images ---------------------------------------------


@dataclass(frozen=True, eq=False)
class Judge:
    """Labelled images by their features `(images, features)`, to read the class off what an encoder makes of them."""

    train: Float[Tensor, "images features"]
    labels: Int64[Tensor, " images"]
    test: Float[Tensor, "test features"]
    test_labels: Int64[Tensor, " test"]

    def accuracy(self, modes: Canonical, weights: Float[Tensor, "modes dim"]) -> float:
        """Test accuracy of a linear probe on the span of the embeddings `modes(features) @ weights`, in percent."""
        basis = _span(weights)
        x, x_test = modes(self.train) @ basis, modes(self.test) @ basis
        return linear_probe(x, self.labels, x_test, self.test_labels, l2=1e-4)["accuracy"]


def _span(weights: Float[Tensor, "modes dim"]) -> Float[Tensor, "modes rank"]:
    """An orthonormal basis of what the columns span, leaving out shares of variance below 1e-3."""
    u, s, _ = torch.linalg.svd(nn.functional.normalize(weights, dim=0), full_matrices=False)
    basis: Tensor = u[:, s.square() / weights.shape[1] > 1e-3]
    return basis


def overlap(weights: Float[Tensor, "modes dim"], rank: int) -> float:
    """Mean squared cosine between the span of the embeddings and the first `rank` modes, in [0, 1]."""
    return float(_span(weights)[:rank].square().sum() / rank)


def phases(views: Views, modes: Canonical, judge: Judge, dims: Sequence[int], lambds: Sequence[float]) -> list[Row]:
    """Barlow Twins at every width and weight: the closed form beside a descent on the package's loss.

    Two views are used, each pair in both orders, so that the loss sees the world whose eigenvalues the modes have.

    Args:
        views: features of two views, from which the modes were found.
        modes: of those.
        judge: what the probes are fitted and tested on.
        dims: powers of two.
        lambds: off-diagonal weights.

    Returns:
        A row for each: `dim`, `lambd`; `rank`, `loss` and `accuracy` of the closed form; `descent_rank`,
        `descent_loss`, `descent_accuracy`, and `overlap` of what the descent found with the modes of the closed form.
    """
    x = modes(views[:2])
    pairs, rows = torch.cat([x, x.flip(0)], 1), []
    for dim, lambd in itertools.product(dims, lambds):
        loss = BarlowTwinsLoss(lambd=lambd)
        found, formula = optimum(modes.eigenvalues, loss, dim), closed_form(modes, loss, dim)
        weights, value = descend(pairs, loss, dim)
        rows.append({
            "dim": dim, "lambd": lambd, "rank": found.rank, "loss": found.loss,
            "accuracy": judge.accuracy(modes, formula),
            "descent_rank": _span(weights).shape[1], "descent_loss": value,
            "descent_accuracy": judge.accuracy(modes, weights), "overlap": overlap(weights, found.rank),
        })  # fmt: skip
    return rows


def budgets(
    views: Views, truth: Canonical, judge: Judge, loss: Loss, dim: int, images: Sequence[int],
    numbers: Sequence[int] = (2, 4, 8), seeds: int = 3,
) -> list[Row]:  # fmt: skip
    """The closed form from fewer images and views, against the modes that many views of other images have.

    Args:
        views: features of as many views as the largest of `numbers`.
        truth: the modes of other images.
        judge: what the probes are fitted and tested on.
        loss: the package's.
        dim: width, a power of two.
        images: how many images, each more than `truth` has modes.
        numbers: of views.
        seeds: choices of the images; where all are taken, every seed gives the same row.

    Returns:
        A row for each: `images`, `views`, `seed`; `rank` that the estimate holds, and the `accuracy` of its span; and
        of as many modes as the truth would hold, `held`: the estimate's `overlap` with the truth, of which
        `theory.estimators.canonical_error` has an expectation, and `equal_rank_accuracy`.
    """
    x, rows = truth(views), []
    shared = truth.eigenvalues.clip(0, 1)
    held = optimum(shared, loss, dim).rank
    for count, number, seed in itertools.product(images, numbers, range(seeds)):
        chosen = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(seed))[:count]
        estimate = canonical(x[:number, chosen])
        weights = estimate.directions @ closed_form(estimate, loss, dim)
        rows.append({
            "images": count, "views": number, "seed": seed, "rank": optimum(estimate.eigenvalues, loss, dim).rank,
            "accuracy": judge.accuracy(truth, weights), "overlap": overlap(estimate.directions[:, :held], held),
            "held": held, "equal_rank_accuracy": judge.accuracy(truth, estimate.directions[:, :held]),
        })  # fmt: skip
    return rows


def study(
    data: DataSet, recipe: str = "cifar", filters: int = 64, components: int = 256, images: int = 5_000,
    views: int = 8, labelled: int = 10_000, dims: Sequence[int] = DIMS, lambds: Sequence[float] = LAMBDS,
    dim: int = 64, kappa: float = 4.0, seeds: int = 3,
) -> dict[str, Any]:  # fmt: skip
    """Both of the above on random patch features of an image set: the phase diagram, and the trade of images for views.

    One half of the images has its phase diagram drawn, from two views, and lends smaller sets; from the other half
    come the modes that count as true.

    Args:
        data: with labelled training and test images.
        recipe: of the views.
        filters: random patches; there are eight features for each.
        components: principal components of the features that the linear encoders see.
        images: in each half.
        views: of each image, 2 or more; smaller numbers halve it.
        labelled: training images that the probes are fitted on, at most.
        dims, lambds: of the phase diagram.
        dim, kappa: width and weight in the trade.
        seeds: choices of the smaller sets.

    Returns:
        A record: settings, data set, environment, `seconds`, `eigenvalues` of the diagram's half and
        `true_eigenvalues`, the accuracy `all_features` of a probe without any encoder, and the rows `phases` and
        `budgets`.

    Raises:
        InputError: images without labels, too few images, or as `canonical` and `closed_form` do.
    """
    started, train, test = time.perf_counter(), data["train"], data["test"]
    if train.labels is None or test.labels is None or len(train) < 2 * images:
        raise InputError(f"wanted {2 * images} labelled training images in two halves, and test images; {data.name} "
                         f"has {len(train)}{'' if train.labels is not None else ' without labels'}")  # fmt: skip
    size = train.images.shape[-2]
    net = PatchFeatures(clean_view(train.images[:5000], size, recipe), filters)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    half, other = (view_features(net, train.images[part], size, recipe, views, seed)
                   for seed, part in enumerate((order[:images], order[images : 2 * images])))  # fmt: skip
    known = order[-labelled:]
    judge = Judge(extract_features(net, train.images[known], size, recipe), train.labels[known],
                  extract_features(net, test.images, size, recipe), test.labels)  # fmt: skip
    modes, truth = canonical(half[:2], components), canonical(other, components)
    fewer = [n for n in (images // 16, images // 8, images // 4, images // 2, images) if n > 2 * components]
    numbers = [n for n in (2, 4, 8, 16) if n <= views]
    found = {
        "settings": {"recipe": recipe, "filters": filters, "components": components, "images": images, "views": views,
                     "labelled": len(known), "dim": dim, "kappa": kappa},
        "data": {"name": data.name, "checksum": data.checksum, "images": len(train), "test_images": len(test)},
        "environment": environment(),
        "eigenvalues": modes.eigenvalues.tolist(), "true_eigenvalues": truth.eigenvalues.tolist(),
        "all_features": linear_probe(judge.train, judge.labels, judge.test, judge.test_labels)["accuracy"],
        "phases": phases(half, modes, judge, dims, lambds),
        "budgets": budgets(half, truth, judge, BarlowTwinsLoss(kappa=kappa), dim, fewer, numbers, seeds),
    }  # fmt: skip
    return {**found, "seconds": time.perf_counter() - started}


def read_study(name: str) -> dict[str, Any] | None:
    """A study on record, by its file's name in `results/linear` without the ending; None if it was not done yet.

    Raises:
        InputError: the file is cut short or is no study.
    """
    path = shipped("results") / "linear" / f"{name}.json"
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        record["phases"], record["budgets"], record["settings"], record["eigenvalues"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is cut short or is no study of linear models: {error!r}") from error
    return record
