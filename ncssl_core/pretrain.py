"""Pretraining: one loop for every loss, backbone, device and image set.

    run = pretrain(PretrainConfig(data="photos/", image_size=64, epochs=20, out="runs/photos"))

Each step gathers a batch of uint8 images on the device, draws the views there, sends all of them through the backbone
and projector at once (batch norm sees all views together, as in the authors' code), and takes one optimiser step.
Everything random depends on (seed, epoch, step) alone, so a run resumed from a checkpoint goes on as if unbroken.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
import yaml
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ncssl_core import parallel, records
from ncssl_core.augment import RECIPES, MultiView, Recipe, ViewParameters
from ncssl_core.base import InputError, RunStopped, keep_freed_memory, lock, write_atomically
from ncssl_core.config import PretrainConfig, read_config
from ncssl_core.datasets import DataSet, Images, batches, load, place
from ncssl_core.models import Projector, build_backbone, feature_dim
from ncssl_core.watch import Log, Signals, lines_of, name_of

Evaluate = Callable[[nn.Module, "Run"], dict[str, float]]
_MAY_DIFFER = {"device", "compile", "root", "download", "checkpoint_every", "log_every", "out"}  # on resuming


@dataclass
class Run:
    """A run in memory: its settings, folder, data, trained backbone and (once over) its record."""

    config: PretrainConfig
    folder: Path
    backbone: nn.Module
    data: DataSet
    device: torch.device
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Side of the images that the backbone sees, pixels."""
        return self.config.size or self.data["train"].images.shape[-2]

    @property
    def recipe(self) -> Recipe:
        """What the views undergo."""
        if self.config.recipe != "auto":
            return Recipe.named(self.config.recipe)
        return RECIPES["shapes" if self.data.name == "synthetic" else "stl" if self.size >= 64 else "cifar"]

    @cached_property
    def splits(self) -> tuple[Images, Images, Images]:
        """(images to pretrain on, the labelled training images, those held out of both for validation)."""
        train, validation = self.data["train"].hold_out(self.config.validation, self.config.seed)
        pool = self.data.pretraining if "unlabeled" in self.data else train
        return pool.fraction(self.config.fraction, self.config.seed), train, validation


def pretrain(
    config: PretrainConfig,
    backbone: nn.Module | None = None,
    data: DataSet | None = None,
    evaluate: Evaluate | None = None,
    resume: bool = False,
    stop_at: float | None = None,
) -> Run:
    """Train a backbone without labels; leaves a run's folder (see `ncssl_core.records`) and returns the run.

    Args:
        config: the settings.
        backbone: any module that maps `(n, 3, size, size)` to `(n, features)`, instead of the one named.
        data: a set already loaded, instead of the one named.
        evaluate: called every `probe_every` epochs with the backbone and the run; what it returns joins the curves.
        resume: go on from the folder's checkpoint, or start anew if it holds none.
        stop_at: save and stop after the step that passes this time of `time.monotonic()`, in seconds.

    Raises:
        InputError: settings, data or folder that cannot be used.
        RunStopped: a signal came, the time was up, or a loss term was not finite.
    """
    with parallel.joined(config.device) as device:
        try:
            return _pretrain(config, pick_device(device), backbone, data, evaluate, resume, stop_at)
        except (RuntimeError, OSError) as error:
            if not parallel.is_lost(error):
                raise
            raise RunStopped(
                f"process {parallel.rank()} lost another one ({str(error).splitlines()[0]}); go on from the last "
                f"checkpoint with the same command and --resume"
            ) from error


def _pretrain(
    config: PretrainConfig,
    device: torch.device,
    backbone: nn.Module | None,
    data: DataSet | None,
    evaluate: Evaluate | None,
    resume: bool,
    stop_at: float | None,
) -> Run:
    parallel.agreed("settings", {k: v for k, v in config.plain().items() if k != "device"})
    share, folder, resume = parallel.share_of(config.batch), config.folder, resume or parallel.started_again()
    parallel.by_first(lambda: _check_folder(folder, config, resume))
    torch.manual_seed(config.seed)
    model = build_backbone(config.backbone, config.stem) if backbone is None else backbone
    if data is None:
        with parallel.first_one_first():
            data = load(config.data, config.root, config.image_size, config.download, config.skip_unreadable)
    parallel.agreed("images", {"checksum": data.checksum})
    run = Run(config, folder, model, data, device)
    _precision(config, device)
    if config.batch > len(run.splits[0]):
        raise InputError(f"a batch of {config.batch} is more than the {len(run.splits[0])} images to pretrain on")
    if run.size < 8:
        raise InputError(f"views have at least 8 pixels a side, the images have {run.size}: give size or image_size")
    with lock(folder / ".lock") if parallel.rank() == 0 else nullcontext(True) as alone:
        parallel.by_first(lambda: _check_folder(folder, config, resume, alone))  # again: loading took its time
        training = _Training(run, _read_checkpoint(folder / "checkpoint.pt") if resume else None, backbone, share)
        _train(training, evaluate, math.inf if stop_at is None else stop_at)
    run.backbone.eval()
    run.record = records.read(folder)
    return run


def _train(training: _Training, evaluate: Evaluate | None, stop_at: float) -> None:
    """The run, from where it stands to its record."""
    run, pool = training.run, training.run.splits[0]
    if training.epoch >= run.config.epochs and (run.folder / "record.json").exists():  # resumed, but it was over
        training.log.bar.close()
        return
    if parallel.rank() == 0:
        for torn in run.folder.glob(".*.tmp"):  # of a process that was killed while it wrote
            torn.unlink(missing_ok=True)
        text = yaml.safe_dump(run.config.plain(), sort_keys=False)
        write_atomically(run.folder / "config.yaml", lambda p: p.write_text(text))
    with Signals() as signals, training.log:
        training.run_epochs(place(pool.images, run.device), pool.block, signals, evaluate, stop_at)
    if parallel.rank() == 0:
        _finish(training, pool)
    parallel.wait()


class _Training:
    """What changes during a run: weights, optimiser, and the place in the epochs."""

    def __init__(
        self, run: Run, checkpoint: dict[str, Any] | None, custom: nn.Module | None, share: slice = slice(None)
    ) -> None:
        config = run.config
        self.run, self.config, self.device = run, config, run.device
        self.features = feature_dim(run.backbone, run.size)
        self.encoder = nn.Sequential(run.backbone, Projector(self.features, config.dim, config.hidden, config.layers))
        self.encoder.to(self.device)
        self.encoder.to(memory_format=torch.channels_last)
        self.share, self.loss = share, config.build_loss()
        self.loss.sync = parallel.processes() > 1
        self.augment = MultiView(run.size, config.views, run.recipe, config.seed)
        self.precision = _precision(config, self.device)
        self.optimizer = _optimizer(config, self.encoder)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        self.epoch = self.batch = self.step = self.startup_steps = 0
        self.seconds = self.evaluation = self.startup = 0.0
        self.hardware = [hardware(self.device)]
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            keep_freed_memory()
        torch.manual_seed(config.seed + 1)  # for backbones with dropout
        if checkpoint:
            self._restore(checkpoint)
        self.steps_per_epoch = len(run.splits[0]) // config.batch
        if config.compile:  # the backbone alone, which runs of a sweep share whatever their projector
            compiled = cast(nn.Module, torch.compile(run.backbone, dynamic=False))
            self.forward = parallel.shared(nn.Sequential(compiled, self.encoder[1]), self.device)
        else:
            self.forward = parallel.shared(self.encoder, self.device)
        self.log = Log(run.folder, self.step, config.epochs * self.steps_per_epoch, config.batch)
        self.custom = type(custom).__name__ if custom is not None else None

    def run_epochs(
        self, images: Tensor, block: int, signals: Signals, evaluate: Evaluate | None, stop_at: float
    ) -> None:
        """The loop: epochs of steps, a look at signals and clock after each, a checkpoint every few epochs."""
        config, starting = self.config, self.config.compile or self.device.type == "cuda"
        self.encoder.train()
        while self.epoch < config.epochs:
            started = time.perf_counter() - self.seconds
            order = (config.batch, self.device, config.seed, self.epoch, self.batch, self.share, block)
            for batch in batches(images, *order):
                lr, terms = self.lr(), self.take_step(batch)
                self.step, self.batch = self.step + 1, self.batch + 1
                if starting:  # the first step waits for the compiler, and on a GPU for the choice of kernels
                    self._synchronise()
                    self.startup += time.perf_counter() - started - self.seconds
                    self.startup_steps, starting = self.startup_steps + 1, False
                last = self.batch == self.steps_per_epoch
                if self.step % config.log_every == 0 or last:
                    self.seconds = time.perf_counter() - started
                    self.log.add(self.step, self.epoch, self.seconds, lr, terms)
                self.log.bar.update(config.batch)
                received, late = parallel.highest(signals.received, time.monotonic() > stop_at)
                if received or late:
                    self.seconds = time.perf_counter() - started
                    self._stop(int(received))
            self._synchronise()
            self.seconds = time.perf_counter() - started
            self.epoch, self.batch = self.epoch + 1, 0
            over = self.epoch == config.epochs
            if evaluate and config.probe_every and (over or self.epoch % config.probe_every == 0):
                self._evaluate(evaluate)
            if over or self.epoch % config.checkpoint_every == 0:
                self.save()

    def take_step(self, images: Tensor) -> dict[str, Float[Tensor, ""]]:
        """One optimiser step on a batch, or this process's share of it, `(batch, 3, H, W)`; the loss and its terms."""
        views = self.augment.apply(images, self._draw(images))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr()
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            x = views.flatten(0, 1).contiguous(memory_format=torch.channels_last)
            z = self.forward(x).unflatten(0, views.shape[:2])
        terms = self.loss.terms(z)
        loss = self.loss.total(terms, z.shape[-1])
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {"loss": loss, **terms}

    def _draw(self, images: Tensor) -> ViewParameters:
        """The share of this process in a draw for all of the batch."""
        whole = images[:1].expand(len(images) * parallel.processes(), -1, -1, -1)
        return self.augment.sample(whole, self.step)[:, self.share]

    def lr(self) -> float:
        """The learning rate of this step."""
        config, warmup = self.config, self.config.warmup * self.steps_per_epoch
        if self.step < warmup:
            return config.lr * (self.step + 1) / warmup
        if config.schedule == "constant":
            return config.lr
        done = (self.step - warmup) / max(1, config.epochs * self.steps_per_epoch - warmup)
        return config.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def save(self) -> None:
        """Write the checkpoint, unless a weight or a running statistic is not finite."""
        self.log.flush()
        finite = torch.stack([v.isfinite().all() for v in self.encoder.state_dict().values()])
        if not finite.all():
            raise self.log.not_finite(self.step, "a weight")
        if parallel.rank() == 0:
            self._write_checkpoint()
        parallel.wait()

    def _write_checkpoint(self) -> None:
        state = {
            "encoder": self.encoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "data": self.run.data.checksum,
            "hardware": self.hardware,
            **{name: getattr(self, name) for name in _PLACE},
        }
        write_atomically(self.run.folder / "checkpoint.pt", lambda p: torch.save(state, p))

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint["data"] != self.run.data.checksum:
            raise InputError(f"{self.run.folder} was trained on other images than {self.config.data} holds now")
        try:
            self.encoder.load_state_dict(checkpoint["encoder"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise InputError(f"the checkpoint in {self.run.folder} is of another model: {error}") from error
        if self.scaler.is_enabled() and checkpoint["scaler"]:  # empty where the run had no need of one
            self.scaler.load_state_dict(checkpoint["scaler"])
        torch.set_rng_state(checkpoint["random"])
        self.hardware = [*(h for h in checkpoint.get("hardware", []) if h != self.hardware[-1]), self.hardware[-1]]
        for name in _PLACE:
            setattr(self, name, checkpoint[name])

    def _evaluate(self, evaluate: Evaluate) -> None:
        started = time.perf_counter()
        self.encoder.eval()
        values = evaluate(self.run.backbone, self.run) if parallel.rank() == 0 else {}
        self.encoder.train()
        parallel.wait()
        self.evaluation += time.perf_counter() - started
        seconds = self.seconds - self.startup
        self.log.write({"step": self.step, "epoch": self.epoch, "seconds": seconds, "evaluation": values})

    def _stop(self, received: int) -> None:
        self.save()
        cause, code = (name_of(received), 128 + received) if received else ("the time limit", 0)
        raise RunStopped(
            f"stopped by {cause} after step {self.step}, saved; go on with "
            f"`ncssl pretrain --resume --out {self.run.folder}`",
            code,
        )

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


_PLACE = ("epoch", "batch", "step", "seconds", "evaluation", "startup", "startup_steps")


# ---- before and after -------------------------------------------------------------------------------------------


def pick_device(name: str) -> torch.device:
    """The device by name; "auto" is the GPU if there is one.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"no device {name!r} here; --device auto picks one ({str(error).splitlines()[0]})") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"a run wants a device of type cpu, cuda or mps; given {name!r}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def hardware(device: torch.device) -> dict[str, Any]:
    """What decides the speed on a device, as a record's `environment` has it: its name; without a GPU, the threads."""
    where: dict[str, Any]
    if device.type == "cuda":
        where = {"device": torch.cuda.get_device_name(device)}
    else:
        processor = records.environment()["processor"]
        where = {"device": device.type, "processor": processor, "threads": torch.get_num_threads()}
    return where | ({"processes": parallel.processes()} if parallel.processes() > 1 else {})


def seconds_per_step(config: PretrainConfig, data: DataSet, steps: int = 5, limit: float = 10.0) -> float:
    """Seconds of a training step under these settings, on a throw-away model, after a first step that is not counted.

    Fewer than `steps` are timed if they take more than `limit` seconds together.
    """
    device, times = pick_device(config.device), list[float]()
    with TemporaryDirectory() as folder:
        run = Run(replace(config, out=folder), Path(folder), build_backbone(config.backbone, config.stem), data, device)
        training = _Training(run, None, None)
        training.log.bar.leave = False
        training.log.bar.close()
        images = place(run.splits[0].images[: config.batch], device)
        while len(times) <= steps and sum(times[1:]) < limit:
            started = time.perf_counter()
            training.take_step(images)
            training._synchronise()
            times.append(time.perf_counter() - started)
    return sum(times[1:]) / len(times[1:])


def _precision(config: PretrainConfig, device: torch.device) -> torch.dtype:
    wanted = config.precision
    if wanted == "auto":
        if device.type != "cuda":
            wanted = "fp32"
        else:
            wanted = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if wanted == "fp16" and device.type != "cuda":
        raise InputError(f"precision fp16 wants a CUDA device; given {device}")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted]


def _optimizer(config: PretrainConfig, encoder: nn.Module) -> torch.optim.Optimizer:
    parameters = list(encoder.parameters())
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, config.lr, weight_decay=config.weight_decay, fused=True)
    return torch.optim.SGD(parameters, config.lr, momentum=0.9, weight_decay=config.weight_decay, fused=True)


def untrained_backbone(config: PretrainConfig) -> nn.Module:
    """The backbone as the run had it before its first step."""
    torch.manual_seed(config.seed)
    return build_backbone(config.backbone, config.stem)


def _check_folder(folder: Path, config: PretrainConfig, resume: bool, alone: bool = True) -> None:
    """Make sure that the folder can take this run."""
    if not alone:
        raise InputError(f"another process is training in {folder}; another --out starts a run beside it")
    held = next((p for p in (folder / "config.yaml", folder / "record.json") if p.exists()), None)
    if held and not resume:
        raise InputError(f"{folder} already holds a run: --resume goes on with it, another --out starts a new one")
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"cannot write to {folder}: {existing} is not a folder that may be written to")
    if not held:
        return
    before, now = read_config(folder).plain(), config.plain()
    differing = {name for name in now if before[name] != now[name]} - _MAY_DIFFER
    if before["schedule"] == "constant" and now["epochs"] > before["epochs"]:
        differing.discard("epochs")  # only a constant learning rate does not depend on the end
    if differing:
        said = ", ".join(f"{n} {before[n]!r} (now {now[n]!r})" for n in sorted(differing))
        raise InputError(f"{folder} was started with {said}; a resumed run keeps its settings")


def _read_checkpoint(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if missing := [k for k in ("encoder", "optimizer", "data", *_PLACE) if k not in state]:
            raise ValueError(f"it lacks {', '.join(missing)}")
    except Exception as error:  # torch raises many kinds for files that are torn or foreign
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is cut short or is no checkpoint ({reason}); delete it to start anew") from error
    return state


def load_run(folder: str | Path, device: str = "auto", data: DataSet | None = None) -> Run:
    """A finished run from its folder, with its trained backbone and its images.

    Raises:
        InputError: no finished run there, its weights do not fit, or its images are gone.
    """
    folder = Path(folder)
    record = records.read(folder)
    config = read_config(folder)
    if record["model"]["custom"]:
        raise InputError(f"{folder} trained a {record['model']['custom']} passed from Python: load its weights there")
    backbone = build_backbone(config.backbone, config.stem)
    try:
        backbone.load_state_dict(load_file(folder / "backbone.safetensors"))
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder}/backbone.safetensors holds no {config.backbone}: {reason}") from error
    chosen = pick_device(device)
    if data is None:
        data = load(config.data, config.root, config.image_size, config.download, config.skip_unreadable)
    return Run(config, folder, backbone.to(chosen).eval(), data, chosen, record)


def _finish(training: _Training, pool: Images) -> None:
    run, config, device = training.run, training.config, training.device
    weights = {k: v.clone(memory_format=torch.contiguous_format) for k, v in run.backbone.state_dict().items()}
    write_atomically(run.folder / "backbone.safetensors", lambda p: save_file(weights, p))
    epochs = training.seconds - training.startup
    images = max(training.step - training.startup_steps, 1) * config.batch
    cuda = device.type == "cuda"
    record = {
        "config": config.plain(),
        "model": {"custom": training.custom, "features": training.features,
                  "parameters": sum(p.numel() for p in run.backbone.parameters())},
        "recipe": run.recipe.as_dict(),
        "size": run.size,
        "data": {"name": run.data.name, "checksum": run.data.checksum, "classes": len(run.data.classes),
                 "images": len(pool), "image_size": list(pool.images.shape[-2:]), "skipped": run.data.skipped},
        "environment": records.environment() | {"threads": torch.get_num_threads()} | hardware(device)
            | {"precision": str(training.precision).removeprefix("torch."), "earlier": training.hardware[:-1]},
        "time": {"training_seconds": epochs, "startup_seconds": training.startup,
                 "evaluation_seconds": training.evaluation,
                 "total_seconds": training.seconds + training.evaluation, "steps": training.step,
                 "images_per_second": images / epochs, "views_per_second": images * config.views / epochs},
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if cuda else _peak_host_memory(),
        "curves": _curves(run.folder / "metrics.jsonl"),
    }  # fmt: skip
    records.write(run.folder / "record.json", record)


def _peak_host_memory() -> int | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _curves(path: Path) -> dict[str, list[Any]]:
    """Means over each epoch of what was logged, and the evaluations, as columns."""
    lines = list(lines_of(path))
    steps: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        if "evaluation" not in line:
            steps.setdefault(line["epoch"], []).append(line)
    curves: dict[str, list[Any]] = {"epoch": [e + 1 for e in steps]}
    for name in ("step", "seconds"):
        curves[name] = [group[-1][name] for group in steps.values()]
    for name in next(iter(steps.values()))[0]:
        if name not in curves:
            curves[name] = [sum(line[name] for line in group) / len(group) for group in steps.values()]
    evaluations = [line for line in lines if "evaluation" in line]
    if evaluations:
        curves["evaluation_epoch"] = [line["epoch"] for line in evaluations]
        curves["evaluation_seconds"] = [line["seconds"] for line in evaluations]
        for name in evaluations[0]["evaluation"]:
            curves[f"evaluation_{name}"] = [line["evaluation"][name] for line in evaluations]
    return curves
