"""Run by `torchrun` in test_parallel.py: losses, batch normalisation and gradients of shared batches."""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from ncssl_core import BarlowTwinsLoss, VICRegLoss, parallel
from ncssl_core.models import Projector

CASES = {
    f"{name}, {views} views, dim {dim}": (make, views, dim)
    for dim in (6, 64)  # both sides of the Gram form's switch
    for views in (2, 4)
    for name, make in {
        "leave-one-out": lambda sync: BarlowTwinsLoss(kappa=3.0, sync=sync),
        "all-pairs": lambda sync: BarlowTwinsLoss(kappa=3.0, pairing="all-pairs", sync=sync),
        "mean": lambda sync: BarlowTwinsLoss(kappa=3.0, pairing="mean", sync=sync),
        "vicreg": lambda sync: VICRegLoss(sync=sync),
    }.items()
}


def step(make, views, dim, batch=16):
    """(terms, gradients, running statistics) of a step on this process's share of a batch."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    module = nn.Sequential(body, Projector(8, dim)).double()
    images = torch.randn(views, batch, 3, 6, 6, dtype=torch.float64)[:, parallel.share_of(batch)]
    forward = parallel.shared(module, torch.device("cpu"))
    loss = make(parallel.processes() > 1)
    z = forward(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    terms = loss.terms(z)
    loss.total(terms, dim).backward()
    gradients = [p.grad.flatten().tolist() for p in module.parameters()]
    running = [b.double().flatten().tolist() for b in module.buffers()]
    return {"terms": {k: v.item() for k, v in terms.items()}, "gradients": gradients, "running": running}


if __name__ == "__main__":
    with parallel.joined("cpu"):
        found = {name: step(*case) for name, case in CASES.items()}
        if parallel.rank() == 0:
            Path(sys.argv[1]).write_text(json.dumps(found))
