"""Backbones that map images to representations, and the projector that maps those to embeddings."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import resnet as torchvision_resnet
from torchvision.models.resnet import BasicBlock

from ncssl_core.base import InputError, unknown_name

Stem = Literal["small", "imagenet"]
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2")
BACKBONES = ("tiny", *RESNETS)


def build_backbone(name: str, stem: Stem = "small") -> nn.Module:
    """A backbone without its classifier: `(batch, 3, H, W)` to `(batch, features)`.

    Args:
        name: `"tiny"` (0.3 M parameters, 128 features, for CPUs) or one of torchvision's ResNets.
        stem: `"small"` for images of 32 to 96 pixels: a 3x3 convolution of stride 1, then batch norm and ReLU, no
            max-pooling; `"imagenet"`: torchvision's own. `tiny` has one stem, of stride 2.

    Raises:
        InputError: unknown name or stem; the message lists the valid ones.
    """
    if name not in BACKBONES:
        raise unknown_name("backbone", name, BACKBONES)
    if stem not in get_args(Stem):
        raise unknown_name("stem", stem, get_args(Stem))
    if name == "tiny":
        return TinyResNet()
    model: nn.Module = getattr(torchvision_resnet, name)()
    model.fc = nn.Identity()
    if stem == "small":
        model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model


class TinyResNet(nn.Sequential):
    """A ResNet of four basic blocks, 16 to 128 channels, behind a stem of stride 2: 0.3 M parameters, 128 features."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
        layers.append(BasicBlock(16, 16))
        for channels in (32, 64, 128):
            shortcut = nn.Sequential(nn.Conv2d(channels // 2, channels, 1, 2, bias=False), nn.BatchNorm2d(channels))
            layers.append(BasicBlock(channels // 2, channels, 2, shortcut))
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class PatchFeatures(nn.Module):
    """Features that learn nothing: random whitened patches as filters, a soft threshold, averages over the quadrants.

    Maps `(n, 3, H, W)` to `(n, 8 filters)`: each filter's response, over the contrast of the patch, above the
    threshold and below its negative, in each of four quadrants. Fixed once made, so that linear maps of them are linear
    models. Patches lie two pixels apart.

    Args:
        images: normalised as the network will see them, `(n, 3, H, W)`; the patches are cut from them.
        filters: how many patches.
        patch: their side, pixels.
        threshold: in standard deviations of the responses over patches.
        seed: of the choice of patches.

    Raises:
        InputError: images that are no such tensor, smaller than a patch, or fewer than a hundred.

    Source: Coates and Ng 2011 (random patches, soft threshold).
    """

    filters: Tensor
    threshold: Tensor

    def __init__(
        self,
        images: Float[Tensor, "n 3 h w"],
        filters: int = 64,
        patch: int = 6,
        threshold: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < patch or len(images) < 100:
            wanted = f"100 images or more (n, 3, H, W), each side at least {patch}"
            raise InputError(f"patch features want {wanted}; given {tuple(images.shape)}")
        generator = torch.Generator().manual_seed(seed)

        def draw(below: int) -> Tensor:
            return torch.randint(below, (20_000, 1, 1, 1), generator=generator)

        sample, top, left = draw(len(images)), *(draw(side - patch + 1) for side in images.shape[2:])
        y, x = torch.meshgrid(torch.arange(patch), torch.arange(patch), indexing="ij")
        cut = images[sample, torch.arange(3)[:, None, None], top + y, left + x].flatten(1).double()
        cut = cut - cut.mean(1, keepdim=True)
        cut = cut / (cut.square().mean(1, keepdim=True) + _CONTRAST).sqrt()
        values, vectors = torch.linalg.eigh(cut.T @ cut / len(cut))
        whiten = vectors * (values + 0.1 * values.mean()).rsqrt() @ vectors.T
        white = cut @ whiten
        chosen = nn.functional.normalize(white[:filters]) @ whiten
        spread = (cut @ chosen.T).std()
        chosen = chosen - chosen.mean(1, keepdim=True)  # so that a patch's mean falls out
        self.register_buffer("filters", (chosen / spread).float().unflatten(1, (3, patch, patch)))
        self.register_buffer("threshold", torch.tensor(threshold))

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n features"]:
        """The features of images."""
        side = self.filters.shape[-1]
        mean, square = (nn.functional.avg_pool2d(x.mean(1, keepdim=True), side, 2) for x in (images, images.square()))
        contrast = (square - mean.square()).clamp_min(0).add(_CONTRAST).sqrt()
        response = nn.functional.conv2d(images, self.filters, stride=2) / contrast
        both = torch.cat([response - self.threshold, -response - self.threshold], 1).relu_()
        return nn.functional.adaptive_avg_pool2d(both, 2).flatten(1)


_CONTRAST = 0.01  # added to a patch's variance: flat patches stay flat


class Projector(nn.Sequential):
    """Representation to embedding: [Linear without bias, BatchNorm, ReLU] x (layers - 1), then Linear.

    The authors of arXiv:2312.10725 use two layers with `hidden = dim`, Barlow Twins and VICReg three.

    Args:
        in_dim: features of the representation.
        dim: features of the embedding.
        hidden: width between; `dim` if not given.
        layers: how many Linear layers.

    Raises:
        InputError: a size below 1.
    """

    def __init__(self, in_dim: int, dim: int, hidden: int | None = None, layers: int = 2) -> None:
        hidden = dim if hidden is None else hidden
        for name, value in {"in_dim": in_dim, "dim": dim, "hidden": hidden, "layers": layers}.items():
            if value < 1:
                raise InputError(f"projector: {name} is at least 1; given {value}")
        widths = [in_dim, *[hidden] * (layers - 1)]
        modules: list[nn.Module] = []
        for a, b in pairwise(widths):
            modules += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU(inplace=True)]
        super().__init__(*modules, nn.Linear(widths[-1], dim))


def feature_dim(backbone: nn.Module, size: int) -> int:
    """How many features a backbone gives for images of `size` pixels, found by running it on two blank ones.

    Raises:
        InputError: it does not map `(batch, 3, size, size)` to `(batch, features)`.
    """
    device = next((p.device for p in backbone.parameters()), torch.device("cpu"))
    training = backbone.training
    backbone.eval()
    with torch.no_grad():
        out: Float[Tensor, "batch features"] = backbone(torch.zeros(2, 3, size, size, device=device))
    backbone.train(training)
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != 2:
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise InputError(f"the backbone maps (2, 3, {size}, {size}) to {shape}, wanted (2, features)")
    return out.shape[1]
