"""The settings of a run: one dataclass, which the command line, the YAML files and the records share."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from ncssl_core.augment import Recipe
from ncssl_core.base import InputError, unknown_name
from ncssl_core.losses import BarlowTwinsLoss, Pairing, VICRegLoss
from ncssl_core.models import Stem


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of a pretraining run.

    Args:
        data: "synthetic", "cifar10", "stl10", a folder of images, a .tar, .tar.gz, .tar.xz or .zip of one, or a
            .npy of uint8 (n, 3, H, H), which may be larger than memory.
        root: Folder where torchvision's sets lie.
        download: Let torchvision fetch a missing set.
        image_size: Resize the shorter side to this many pixels and crop the centre; needed where sizes differ.
        skip_unreadable: Leave out images that cannot be decoded, instead of stopping.
        fraction: Share of the images to pretrain on.
        validation: Training images held out of everything, to choose hyper-parameters on.
        backbone: "tiny" or a torchvision ResNet: resnet18, resnet34, resnet50, ...
        stem: "small" for images of 32 to 96 pixels, "imagenet" for larger ones.
        dim: Features of the embedding, which the loss sees.
        hidden: Width of the projector; dim if not given.
        layers: Linear layers of the projector.
        loss: "barlow_twins" or "vicreg".
        kappa: Barlow Twins' off-diagonal weight times dim; keeps its effect when dim changes.
        lambd: Barlow Twins' off-diagonal weight itself; if given, kappa is not used.
        pairing: How Barlow Twins pairs more than two views.
        sim_coeff: VICReg's weight of invariance.
        std_coeff: VICReg's weight of variance.
        cov_coeff: VICReg's weight of covariance.
        views: Views of each image in a step.
        recipe: Augmentation: "cifar", "stl", "byol", "shapes", or changes to one, as {base: stl, gray: 0.2}; "auto" is
            "shapes" for the synthetic set, else "stl" for views of 64 pixels or more and "cifar" for smaller ones.
        size: Side of the views in pixels; the images' height if not given.
        epochs: Passes over the images.
        batch: Images in a step; each gives `views` views.
        optimizer: "adam" (the paper's) or "sgd" (momentum 0.9).
        lr: Learning rate, at its highest.
        weight_decay: Added to the gradient, times the weights.
        schedule: "constant" (the paper's) or "cosine" down to zero.
        warmup: Epochs of linear warm-up before it.
        precision: "auto": bf16 where the GPU has it, else fp16 with loss scaling; fp32 without a GPU.
        compile: Compile the model with torch.compile: a minute or more at the start, faster steps after.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        seed: Of the weights, the order and the views.
        probe_every: Epochs between probes on the validation images; 0 for none.
        probe_images: Labelled training images that those probes learn from; all if not given.
        checkpoint_every: Epochs between checkpoints.
        log_every: Steps between lines of metrics.jsonl.
        out: The run's folder; named after the settings, under runs/, if not given.
    """

    data: str = "synthetic"
    root: str = "data"
    download: bool = False
    image_size: int | None = None
    skip_unreadable: bool = False
    fraction: float = 1.0
    validation: int = 0
    backbone: str = "tiny"
    stem: Stem = "small"
    dim: int = 256
    hidden: int | None = None
    layers: int = 2
    loss: Literal["barlow_twins", "vicreg"] = "barlow_twins"
    kappa: float = 5.12
    lambd: float | None = None
    pairing: Pairing = "leave-one-out"
    sim_coeff: float = 25.0
    std_coeff: float = 25.0
    cov_coeff: float = 1.0
    views: int = 2
    recipe: str | dict[str, Any] = "auto"
    size: int | None = None
    epochs: int = 10
    batch: int = 256
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 1e-3
    weight_decay: float = 1e-6
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    device: str = "auto"
    seed: int = 0
    probe_every: int = 0
    probe_images: int | None = None
    checkpoint_every: int = 1
    log_every: int = 10
    out: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", str(self.data))  # a Path will do, too
        object.__setattr__(self, "out", None if self.out is None else str(self.out))
        for name, kind in get_type_hints(PretrainConfig).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                raise unknown_name(name, str(getattr(self, name)), get_args(kind))
        if self.seed >= 2**32:
            raise InputError(f"seed is less than 2^32; given {self.seed}")
        least = {"dim": 1, "layers": 1, "views": 2, "epochs": 1, "batch": 2, "checkpoint_every": 1, "log_every": 1,
                 "warmup": 0, "probe_every": 0, "validation": 0, "seed": 0, "lr": 0, "weight_decay": 0}  # fmt: skip
        for name, low in least.items():
            if not low <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is at least {low}; given {getattr(self, name)}")
        if self.size is not None and self.size < 8:
            raise InputError(f"size is at least 8 pixels; given {self.size}")
        if self.probe_every and not self.validation:
            raise InputError("probe_every wants images to probe on: give validation, e.g. 5000 of CIFAR-10's 50,000")
        if self.probe_images is not None and self.probe_images < 2:
            raise InputError(f"probe_images is at least 2; given {self.probe_images}")
        if self.recipe != "auto":
            Recipe.named(self.recipe)
        self.build_loss()
        if not 0 < self.fraction <= 1:
            raise InputError(f"fraction is a share in (0, 1]; given {self.fraction}")
        for name, value in vars(self).items():  # also those that this loss does not use
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{name} is a finite number; given {value}")

    def build_loss(self) -> BarlowTwinsLoss | VICRegLoss:
        """The loss that these settings name."""
        if self.loss == "vicreg":
            return VICRegLoss(self.sim_coeff, self.std_coeff, self.cov_coeff)
        kappa = self.kappa if self.lambd is None else None
        return BarlowTwinsLoss(lambd=self.lambd, kappa=kappa, pairing=self.pairing)

    def plain(self) -> dict[str, Any]:
        """The settings in JSON's own types, for a file or a record."""
        return dict(json.loads(json.dumps(asdict(self))))

    @property
    def folder(self) -> Path:
        """The run's folder."""
        stem = Path(self.data).name.split(".")[0]
        return Path(self.out or f"runs/{stem}-{self.loss}-d{self.dim}-m{self.views}-seed{self.seed}")


def config_from(settings: Mapping[str, Any]) -> PretrainConfig:
    """Settings as a YAML file gives them.

    Raises:
        InputError: an unknown name, a value of the wrong type, or one that PretrainConfig refuses.
    """
    kinds = get_type_hints(PretrainConfig)
    if unknown := [str(name) for name in settings if name not in kinds]:
        raise unknown_name("setting", unknown[0], kinds)
    return PretrainConfig(**{name: _of_kind(name, value, kinds[name]) for name, value in settings.items()})


def _of_kind(name: str, value: Any, kind: Any) -> Any:
    """The value, if it is of the kind that a setting's annotation asks for."""
    alternatives = (str,) if get_origin(kind) is Literal else get_args(kind) or (kind,)
    wanted = tuple(get_origin(k) or k for k in alternatives)
    if float in wanted and isinstance(value, int | str) and not isinstance(value, bool):
        with suppress(ValueError):
            return float(value)  # YAML takes 1e-3 for a word
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        kinds = " or ".join(k.__name__ for k in wanted if k is not type(None))
        raise InputError(f"{name} wants {kinds}; given {value!r}")
    return value


def read_config(folder: str | Path) -> PretrainConfig:
    """The settings of a run, from its folder.

    Raises:
        InputError: there are none, or they are not settings.
    """
    path = Path(folder) / "config.yaml"
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise InputError(f"wanted settings by name, given {type(settings).__name__}")
        return replace(config_from(settings), out=str(folder))
    except FileNotFoundError:
        raise InputError(f"no run in {folder}: wanted a folder that `ncssl pretrain --out` made") from None
    except Exception as error:  # a YAML reader may raise anything on broken text
        raise InputError(f"{path} is no run's configuration: {error}") from error
