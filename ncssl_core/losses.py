"""Barlow Twins and VICReg for two or more views.

Both take embeddings `z` of shape `(views, batch, dim)` and return a scalar; `terms(z)` gives the named parts. For two
views they equal the code published with the papers, value and gradient; the docstrings say what more views estimate.

When the batch is small against the embedding, a sum of squared correlations is computed from two `batch x batch` Gram
matrices instead of one `dim x dim` matrix: ||Z^T W||_F^2 = <Z Z^T, W W^T>. Same number, fewer operations, and at
dim 8192 megabytes instead of gigabytes.

With `sync=True` every sum over samples goes over the processes of `torch.distributed` too: each holds its part of the
batch, `(views, batch / processes, dim)`, and gets the loss of all of it (see `ncssl_core.parallel`).
"""

from __future__ import annotations

from itertools import combinations
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ncssl_core.base import InputError, unknown_name
from ncssl_core.parallel import processes, total

Pairing = Literal["leave-one-out", "all-pairs", "mean"]


class BarlowTwinsLoss(nn.Module):
    """Barlow Twins: cross-view correlations of standardised features are pulled to the identity.

    L(C) = sum_i (1 - C_ii)^2 + lambd sum_{i != j} C_ij^2, with C the `dim x dim` cross-correlation of views whose
    features were standardised over the batch, each view by itself (biased variance, eps 1e-5). For two views all
    pairings are the published loss. For m > 2 views:

    - `"leave-one-out"`: the mean over views a of L(C_a), C_a = z_a^T mean_{b != a} z_b / batch. Each entry of C_a is an
      unbiased estimate of the population correlation of view-averaged features; cost grows as m.
    - `"all-pairs"`: the mean over pairs a < b of L(C_ab). Same target, but each squared entry carries the noise of a
      single pair, so the loss is larger; cost grows as m^2.
    - `"mean"`: what the authors of arXiv:2312.10725 run for m > 2: on the diagonal the mean over a of
      (1 - <z_a, zbar>_ii)^2, off it the correlation of the mean of all views, zbar, with itself. It counts a view
      against itself, hence is biased towards the identity by the within-sample variance over m, and at equal `lambd`
      weighs the off-diagonal up to 1.78 times as much as two views do (m = 4).

    Args:
        lambd: off-diagonal weight (0.0051 in the paper; it is the default when `kappa` is absent too).
        kappa: the same weight as kappa = lambd * dim, which keeps its effect when dim changes.
        pairing: one of the above.
        sync: over the batches of all processes.

    Raises:
        InputError: both weights given, a negative weight, or an unknown pairing.

    Source: Zbontar et al. 2021 (arXiv:2103.03230), algorithm 1; several views: Agrawal, Ghosh et al. 2023
    (arXiv:2312.10725).

    >>> loss = BarlowTwinsLoss(kappa=4.0)
    >>> z = torch.randn(4, 32, 16)  # (views, batch, dim)
    >>> loss(z).shape
    torch.Size([])
    """

    def __init__(
        self,
        lambd: float | None = None,
        kappa: float | None = None,
        pairing: Pairing = "leave-one-out",
        sync: bool = False,
    ) -> None:
        super().__init__()
        if lambd is not None and kappa is not None:
            raise InputError(f"Barlow Twins takes lambd or kappa (= lambd * dim), not both; given {lambd} and {kappa}")
        if lambd is None and kappa is None:
            lambd = 0.0051
        _check_weights(lambd=lambd, kappa=kappa)
        if pairing not in get_args(Pairing):
            raise unknown_name("pairing", pairing, get_args(Pairing))
        self.lambd, self.kappa, self.pairing, self.sync = lambd, kappa, pairing, sync

    def extra_repr(self) -> str:
        """Weights and pairing, for print."""
        weight = f"lambd={self.lambd}" if self.kappa is None else f"kappa={self.kappa}"
        return f"{weight}, pairing={self.pairing!r}"

    def off_diagonal_weight(self, dim: int) -> float:
        """lambd for embeddings of `dim` features."""
        return self.kappa / dim if self.kappa is not None else self.lambd or 0.0

    def terms(self, z: Float[Tensor, "views batch dim"]) -> dict[str, Float[Tensor, ""]]:
        """The two sums, unweighted, and their means over entries, which compare across dims.

        `on_diagonal` and `off_diagonal` are the sums in L; `on_diagonal_mean` is the first over dim,
        `off_diagonal_mean` the second over dim (dim - 1): the mean squared correlation of two features, about
        1 / batch for independent ones. L / dim = on_diagonal_mean + lambd (dim - 1) off_diagonal_mean.

        Raises:
            InputError: z is not a floating `(views >= 2, batch >= 2, dim)` tensor.
        """
        dim = _check(z).shape[-1]
        with torch.autocast(z.device.type, enabled=False):
            over = _Samples(z.shape[1], self.sync)
            x = over.standardise(_at_least_fp32(z))
            on, off = _PAIRINGS["leave-one-out" if len(x) == 2 else self.pairing](x, over)
        return {
            "on_diagonal": on,
            "off_diagonal": off,
            "on_diagonal_mean": on / dim,
            "off_diagonal_mean": off / max(dim * (dim - 1), 1),
        }

    def total(self, terms: dict[str, Float[Tensor, ""]], dim: int) -> Float[Tensor, ""]:
        """The loss from its terms, for embeddings of `dim` features."""
        return terms["on_diagonal"] + self.off_diagonal_weight(dim) * terms["off_diagonal"]

    def forward(self, z: Float[Tensor, "views batch dim"]) -> Float[Tensor, ""]:
        """The loss of embeddings `(views, batch, dim)`; raises InputError as `terms` does."""
        return self.total(self.terms(z), z.shape[-1])


class VICRegLoss(nn.Module):
    """VICReg: views agree, every feature keeps its spread, features stay uncorrelated.

    sim_coeff * invariance + std_coeff * variance + cov_coeff * covariance, where

    - invariance is the mean over pairs of views of the mean squared difference, at linear cost:
      `sum_{a<b} |z_a - z_b|^2 = m sum_a |z_a - zbar|^2`;
    - variance is the mean over views and features of relu(1 - sqrt(Var + 1e-4)), unbiased Var, over the batch. The
      paper sums it over the two views, the published code halves that; `halve_variance=False` is the paper's form;
    - covariance is twice the mean over views of sum_{i != j} K_ij^2 / dim, K over batch - 1 (for two views: the
      published sum). Weights therefore keep their meaning as the number of views grows.

    Its off-diagonal control parameter is kappa = cov_coeff * dim / sim_coeff.

    Args:
        sim_coeff, std_coeff, cov_coeff: weights of the three terms.
        halve_variance: as the published code does.
        sync: over the batches of all processes.

    Raises:
        InputError: a negative weight.

    Source: Bardes et al. 2022 (arXiv:2105.04906), equations 1 to 6, and the authors' code.
    """

    def __init__(
        self,
        sim_coeff: float = 25.0,
        std_coeff: float = 25.0,
        cov_coeff: float = 1.0,
        halve_variance: bool = True,
        sync: bool = False,
    ) -> None:
        super().__init__()
        _check_weights(sim_coeff=sim_coeff, std_coeff=std_coeff, cov_coeff=cov_coeff)
        self.sim_coeff, self.std_coeff, self.cov_coeff = sim_coeff, std_coeff, cov_coeff
        self.halve_variance, self.sync = halve_variance, sync

    def extra_repr(self) -> str:
        """Weights, for print."""
        return f"sim_coeff={self.sim_coeff}, std_coeff={self.std_coeff}, cov_coeff={self.cov_coeff}"

    def terms(self, z: Float[Tensor, "views batch dim"]) -> dict[str, Float[Tensor, ""]]:
        """The three terms, unweighted, and `covariance_mean`: the mean squared off-diagonal covariance.

        `invariance` and `variance` are per-feature means already; `covariance` grows with dim, `covariance_mean`
        does not: covariance = 2 (dim - 1) covariance_mean.

        Raises:
            InputError: z is not a floating `(views >= 2, batch >= 2, dim)` tensor.
        """
        views, batch, dim = _check(z).shape
        with torch.autocast(z.device.type, enabled=False):
            over, x = _Samples(batch, self.sync), _at_least_fp32(z)
            spread = over.mean((x - x.mean(0)).square().sum(0, keepdim=True)).mean()  # over views
            centred = x - over.mean(x)
            free = over.count / (over.count - 1)
            variances = over.mean(centred.square()).squeeze(1) * free
            hinge = (1 - (variances + 1e-4).sqrt()).relu().mean()
            norms = over.squared_norm_of_product(centred, centred) * free**2
            off_diagonal = (norms - variances.square().sum(-1)).mean()
            return {
                "invariance": 2 / (views - 1) * spread,
                "variance": hinge if self.halve_variance else 2 * hinge,
                "covariance": 2 * off_diagonal / dim,
                "covariance_mean": off_diagonal / max(dim * (dim - 1), 1),
            }

    def total(self, terms: dict[str, Float[Tensor, ""]], dim: int) -> Float[Tensor, ""]:
        """The loss from its terms (`dim` is not needed; it is here so that both losses are used alike)."""
        return (
            self.sim_coeff * terms["invariance"]
            + self.std_coeff * terms["variance"]
            + self.cov_coeff * terms["covariance"]
        )

    def forward(self, z: Float[Tensor, "views batch dim"]) -> Float[Tensor, ""]:
        """The loss of embeddings `(views, batch, dim)`; raises InputError as `terms` does."""
        return self.total(self.terms(z), z.shape[-1])


# ---- statistics over the batch: the only places where samples are summed ----------------------------------------


class _Samples:
    """Means over the samples of this process's batch or, in step with them, of all processes' batches."""

    def __init__(self, batch: int, sync: bool) -> None:
        self.processes = processes() if sync else 1
        self.count = batch * self.processes

    def mean(self, x: Float[Tensor, "m batch dim"]) -> Float[Tensor, "m 1 dim"]:
        return x.mean(1, keepdim=True) if self.processes == 1 else total(x.sum(1, keepdim=True)) / self.count

    def standardise(self, z: Float[Tensor, "views batch dim"], eps: float = 1e-5) -> Float[Tensor, "views batch dim"]:
        """Zero mean and unit biased variance, each view by itself."""
        centred = z - self.mean(z)
        return centred * torch.rsqrt(self.mean(centred.square()) + eps)

    def diagonal(self, x: Float[Tensor, "m batch dim"], y: Float[Tensor, "m batch dim"]) -> Float[Tensor, "m dim"]:
        """The diagonals of x^T y / count."""
        return self.mean(x * y).squeeze(1)

    def squared_norm_of_product(
        self, x: Float[Tensor, "m batch dim"], y: Float[Tensor, "m batch dim"]
    ) -> Float[Tensor, " m"]:
        """||x^T y / count||_F^2, by whichever matrix is cheaper.

        The Gram form is taken only for 2 batch <= dim. There x^T y has at most half its full rank, so the off-diagonal
        part is at least half of the norm and subtracting the diagonal from it loses no digits. Several processes would
        have to show each other their samples for it; they sum x^T y.
        """
        batch, dim = x.shape[-2:]
        if self.processes > 1:
            return (total(x.mT @ y) / self.count).square().sum((-2, -1))
        if 2 * batch <= dim:
            return ((x @ x.mT) * (y @ y.mT)).sum((-2, -1)) / batch**2
        return (x.mT @ y).square().sum((-2, -1)) / batch**2


# ---- the pairings of views: each returns the on-diagonal and off-diagonal sums ----------------------------------

_Sums = tuple[Float[Tensor, ""], Float[Tensor, ""]]


def _between(x: Float[Tensor, "m batch dim"], y: Float[Tensor, "m batch dim"], over: _Samples) -> _Sums:
    """Mean over m of the two sums for C = x^T y / count."""
    diagonal = over.diagonal(x, y)
    off = over.squared_norm_of_product(x, y) - diagonal.square().sum(-1)
    return (1 - diagonal).square().sum(-1).mean(), off.mean()


def _leave_one_out(z: Float[Tensor, "views batch dim"], over: _Samples) -> _Sums:
    if len(z) == 2:  # C_2 is C_1 transposed
        return _between(z[:1], z[1:], over)
    return _between(z, (z.sum(0) - z) / (len(z) - 1), over)


def _all_pairs(z: Float[Tensor, "views batch dim"], over: _Samples) -> _Sums:
    sums = [_between(z[a : a + 1], z[b : b + 1], over) for a, b in combinations(range(len(z)), 2)]
    on, off = zip(*sums, strict=True)
    return torch.stack(on).mean(), torch.stack(off).mean()


def _mean_of_views(z: Float[Tensor, "views batch dim"], over: _Samples) -> _Sums:
    mean = z.mean(0, keepdim=True)
    on = (1 - over.diagonal(z, mean.expand_as(z))).square().sum(-1).mean()
    return on, _between(mean, mean, over)[1]


_PAIRINGS = {"leave-one-out": _leave_one_out, "all-pairs": _all_pairs, "mean": _mean_of_views}


# ---- input ------------------------------------------------------------------------------------------------------


def _at_least_fp32(z: Tensor) -> Tensor:
    return z if z.dtype == torch.float64 else z.float()


def _check_weights(**weights: float | None) -> None:
    for name, value in weights.items():
        if value is not None and not 0 <= value < float("inf"):
            raise InputError(f"{name} is a finite weight >= 0; given {value}")


def _check(z: Tensor) -> Tensor:
    wanted = "wanted a floating tensor (views >= 2, batch >= 2, dim >= 1)"
    if not isinstance(z, Tensor):
        shapes = [tuple(v.shape) for v in z if isinstance(v, Tensor)] if isinstance(z, list | tuple) else type(z)
        raise InputError(f"embeddings come as one tensor: torch.stack the views; given {shapes}, {wanted}")
    if z.ndim != 3 or z.shape[0] < 2 or z.shape[1] < 2 or z.shape[2] < 1 or not z.is_floating_point():
        raise InputError(f"given embeddings of shape {tuple(z.shape)} and type {z.dtype}, {wanted}")
    return z
