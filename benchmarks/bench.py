"""Speed and memory, as ratios against peers measured in the same run: `make bench`.

Every figure is a median of alternating repetitions (ours, peer, ours, peer, ...), so that a machine that slows down
slows both. Nothing is compared with a number from elsewhere. Where CUDA is, the last part runs ResNet-50 there.
Writes benchmarks/results/<device>.json and prints a table.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

os.environ["NCSSL_STATIC"] = "1"

import torch
from epochs import compare_epochs, lightly_view, pictures_of
from measure import ROWS, alternate, rates, row
from torch import nn

from ncssl_core import (
    BarlowTwinsLoss,
    MultiView,
    PretrainConfig,
    build_backbone,
    linear_probe,
    load,
    records,
    synthetic,
)
from ncssl_core.base import write_atomically
from ncssl_core.datasets import DataSet, Images, batches
from ncssl_core.pretrain import Run, _Training, pick_device, seconds_per_step
from ncssl_core.sweep import Sweep, read_suite

HERE = Path(__file__).parent


# ---- augmentation -----------------------------------------------------------------------------------------------


def augmentation(name: str, side: int, size: int, quick: bool) -> None:
    """Two views of each image: ours, lightly's transform in a DataLoader of 2 workers, kornia's pipeline."""
    import kornia.augmentation as K
    from lightly.transforms.multi_view_transform import MultiViewTransform
    from torch.utils.data import DataLoader

    batch, batches = 256, 2 if quick else 4
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
    ours = MultiView(size, 2, name)
    r = ours.recipe
    transform = MultiViewTransform([lightly_view(r, size)] * 2)
    loader = DataLoader(pictures_of(images, transform, batch * batches), batch, num_workers=2, persistent_workers=True)
    kornia = nn.Sequential(
        K.RandomResizedCrop((size, size), scale=r.scale, ratio=r.ratio),
        K.RandomHorizontalFlip(r.flip),
        K.ColorJitter(r.brightness, r.contrast, r.saturation, r.hue, p=r.jitter),
        K.RandomGrayscale(p=r.gray),
        K.Normalize(list(r.mean), list(r.std)),
    )

    def by_kornia() -> None:
        x = images.float() / 255
        for _ in range(2):
            kornia(x)

    seconds = alternate(
        {"ours": lambda: ours(images), "lightly, 2 workers": lambda: list(loader), "kornia": by_kornia},
        3 if quick else 7,
    )
    count = {"ours": 2 * batch, "lightly, 2 workers": 2 * batch * batches, "kornia": 2 * batch}
    rates(f"views, {name} {side} to {size}", seconds, count, {"lightly, 2 workers": ">= 8", "kornia": ">= 4"})


def views(quick: bool) -> None:
    """Views of both image sizes, whole and the crop alone."""
    for recipe, side, size in (("cifar", 32, 32), ("stl", 96, 64)):
        augmentation(recipe, side, size, quick)
        crops(side, size, recipe, quick)


def crops(side: int, size: int, recipe: str, quick: bool) -> None:
    """The crop alone, as a bag of rows: ours over the same weights as dense matrices, and over a call a sample."""
    from ncssl_core import augment as room

    images = torch.rand(3, 128, side, side)
    multiview = MultiView(size, 2, recipe)
    p = multiview.sample(images.transpose(0, 1))
    taps = room._taps(p, (side, side), size)
    dense = torch.zeros(2, 2, 128, size, side).scatter_add_(-1, taps.pixels.long(), taps.weights)

    def by_matrices() -> None:
        for plane in images:
            _ = dense[1] @ plane @ dense[0].mT

    def by_sample() -> None:
        for view in range(2):
            for n in range(128):
                q = p[view, n]
                top, left, height, width = (int(v) for v in (q.top, q.left, q.height, q.width))
                box = images[:, n : n + 1, top : top + height, left : left + width].transpose(0, 1)
                nn.functional.interpolate(box, (size, size), mode="bilinear", antialias=True)

    jobs = {"ours": lambda: room._crop(images.mT, taps), "matrices": by_matrices, "a call a sample": by_sample}
    rates(f"crop alone, {side} to {size}", alternate(jobs, 3 if quick else 9), dict.fromkeys(jobs, 256), {})


# ---- loss -------------------------------------------------------------------------------------------------------


def plain_two_view_loss(z: torch.Tensor) -> torch.Tensor:
    """Barlow Twins as published, on two views."""
    bn = nn.BatchNorm1d(z.shape[-1], affine=False)
    c = bn(z[0]).T @ bn(z[1]) / z.shape[1]
    diagonal = torch.diagonal(c)
    return (diagonal - 1).pow(2).sum() + 0.005 * (c.pow(2).sum() - diagonal.pow(2).sum())


def losses(quick: bool) -> None:
    """Forward and backward at (8, 256, 2048): each pairing over the plain two-view loss."""
    z, pair = (torch.randn(views, 256, 2048, requires_grad=True) for views in (8, 2))
    jobs: dict[str, Callable[[], object]] = {"plain": lambda: torch.autograd.grad(plain_two_view_loss(pair), pair)}
    for pairing in ("leave-one-out", "all-pairs", "mean"):
        loss = BarlowTwinsLoss(0.005, pairing=pairing)
        jobs[pairing] = lambda loss=loss: torch.autograd.grad(loss(z), z)  # type: ignore[misc]
    median = {n: statistics.median(s) for n, s in alternate(jobs, 3 if quick else 9).items()}
    row("loss at (8, 256, 2048): plain two views", 1e3 * median["plain"], "ms")
    for pairing in ("leave-one-out", "all-pairs", "mean"):
        target = "<= 8" if pairing == "leave-one-out" else ""
        row(f"loss at (8, 256, 2048): {pairing} / plain two views", median[pairing] / median["plain"], "x", target)
    row("loss at (8, 256, 2048): all-pairs / leave-one-out", median["all-pairs"] / median["leave-one-out"], "x", ">= 3")


# ---- the training step ------------------------------------------------------------------------------------------


def step_parts(config: PretrainConfig, images: torch.Tensor, repetitions: int) -> dict[str, list[float]]:
    """Seconds of the parts of a step, in turn: views, the model's own forward and backward, loss, optimiser, all."""
    device = pick_device(config.device)
    data = DataSet("bench", (), "", {"train": Images(images)})
    with tempfile.TemporaryDirectory() as folder:
        training = _Training(Run(config, Path(folder), build_backbone(config.backbone), data, device), None, None)
    batch = images[: config.batch].to(device)
    training.encoder.train()
    half = training.precision != torch.float32
    views = training.augment(batch, 0).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    noise = torch.randn(len(views), config.dim, device=device)
    z = torch.randn(config.views, config.batch, config.dim, device=device, requires_grad=True)

    def model() -> None:
        training.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, training.precision, enabled=half):
            out = training.forward(views)
        out.backward(noise.to(out.dtype))

    return alternate(
        {
            "step": lambda: training.take_step(batch),
            "model": model,
            "views": lambda: training.augment(batch, 0),
            "loss": lambda: torch.autograd.grad(training.loss(z), z),
            "optimiser": training.optimizer.step,
        },
        repetitions, device.type,
    )  # fmt: skip


def roofline(config: PretrainConfig, repetitions: int, target: str) -> float:
    """Rows of a step and its parts, and the step over the model's own forward and backward; the step's seconds."""
    images = torch.randint(0, 256, (2 * config.batch, 3, 32, 32), dtype=torch.uint8)
    seconds = step_parts(config, images, repetitions)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    what = f"{config.backbone}, {config.views} x {config.batch} views, d {config.dim}"
    of = {"part": "step", "views": config.views, "dim": config.dim}
    for name, value in median.items():
        row(f"{what}: {name}", 1e3 * value, "ms", spread=1e3 * statistics.pstdev(seconds[name]), side=name, **of)
    row(f"{what}: step / model", median["step"] / median["model"], "x", target, side="ratio", **of)
    return median["step"]


def steps(quick: bool) -> None:
    """The step against its floor, on the CPU."""
    for views in (2, 4, 8):
        config = PretrainConfig(views=views, batch=256, device="cpu", recipe="cifar")
        roofline(config, 3 if quick else 9, "<= 1.15")


def growth(quick: bool) -> None:
    """Seconds of a step as one setting grows: views, dim, batch, side of the images."""
    usual, images = PretrainConfig(batch=256, device="cpu", recipe="cifar"), 1024
    grown: list[tuple[str, int]] = [
        *(("views", m) for m in (2, 4, 8)), *(("dim", d) for d in (64, 256, 1024, 2048 if quick else 8192)),
        *(("batch", n) for n in (64, 128, 256, 512)), *(("size", s) for s in (32, 64, 96)),
    ]  # fmt: skip
    for name, value in grown:
        side = value if name == "size" else 32
        data = DataSet("bench", (), "", {"train": Images(torch.randint(0, 256, (images, 3, side, side)).byte())})
        config = replace(usual, **{name: value})
        spent = [seconds_per_step(config, data, steps=1 if quick else 3) for _ in range(1 if quick else 3)]
        row(f"a step at {name} {value}", 1e3 * statistics.median(spent), "ms", spread=1e3 * statistics.pstdev(spent),
            part="growth", setting=name, at=value)  # fmt: skip


def gathering(quick: bool) -> None:
    """Milliseconds to gather a batch of 256 from sets of few and of many images."""
    for count in (1024, 65536):
        images = torch.randint(0, 256, (count, 3, 32, 32)).byte()
        spent = []
        for epoch in range(2 if quick else 8):
            coming = batches(images, 256, torch.device("cpu"), 0, epoch)
            next(coming)  # the order of the epoch is drawn with the first
            started = time.perf_counter()
            taken = len(list(islice(coming, 3)))
            spent.append(1e3 * (time.perf_counter() - started) / taken)
        row(f"gathering a batch from {count} images", statistics.median(spent), "ms", spread=statistics.pstdev(spent),
            part="growth", setting="images", at=count)  # fmt: skip


def epochs(quick: bool) -> None:
    """Whole epochs against lightly's loop, on the CPU."""
    images = 1024 if quick else 4096
    compare_epochs("tiny", 2, 256, 256, 1 if quick else 5, "cpu", ">= 2", images)
    compare_epochs("tiny", 8, 256, 256, 1 if quick else 3, "cpu", ">= 3", images)


def sweeping(quick: bool) -> None:
    """What a sweep adds to a run: locks, names, predictions, the record."""
    with tempfile.TemporaryDirectory() as folder:
        suite = Path(folder) / "suite.yaml"
        epochs = 1 if quick else 3
        suite.write_text(f"base: {{epochs: {epochs}, batch: 256}}\nruns:\n  - {{seed: [0, 1]}}\n")
        data = synthetic(train=1024, test=256)
        todo = Sweep(read_suite(suite), data, Path(folder) / "results", torch.device("cpu"))
        for name in list(todo.mine):
            started = time.perf_counter()
            record = todo.do(name)
            spent = time.perf_counter() - started
            if record:
                own = record["time"]["total_seconds"] + record["time"]["probe_seconds"]
                row(f"a sweep's run of {own:.1f} s: added", spent - own, "s", part="sweep")


def resnet50_steps(quick: bool) -> None:
    """ResNet-50's step against its floor on a GPU, with images a second and peak memory."""
    for views, dim in product((2, 4, 8), (256, 8192)):
        batch = 256 if views < 8 else 128
        config = PretrainConfig(
            backbone="resnet50", views=views, batch=batch, dim=dim, device="cuda", recipe="cifar"
        )  # fmt: skip
        torch.cuda.reset_peak_memory_stats()
        step = roofline(config, 5 if quick else 20, "<= 1.1")
        what, of = f"resnet50, {views} x {batch} views, d {dim}", {"part": "step", "views": views, "dim": dim}
        row(f"{what}: images/s", batch / step, "img/s", side="images/s", **of)
        row(f"{what}: peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB", side="memory", **of)


def resnet50_epochs(quick: bool) -> None:
    """ResNet-50's epochs against lightly's loop on a GPU."""
    for views, dim in product((2, 4, 8), (256, 8192)):
        compare_epochs("resnet50", views, 256 if views < 8 else 128, dim, 1 if quick else 2, "cuda", "")


# ---- memory -----------------------------------------------------------------------------------------------------

MEMORY = """
import sys, threading, time
from pathlib import Path
from ncssl_core.pretrain import PretrainConfig, pretrain
peak, over = 0, False
def watch():
    global peak
    while not over:
        text = Path('/proc/self/status').read_text()
        peak = max(peak, int(text.split('RssAnon:')[1].split()[0]))
        time.sleep(0.05)
thread = threading.Thread(target=watch); thread.start()
try:
    data, fraction, out = sys.argv[1:]
    pretrain(PretrainConfig(data=data, fraction=float(fraction), epochs=1, batch=256, device='cpu', out=out))
finally:
    over = True
    thread.join()
print(peak * 1024)
"""


def memory(data: str, quick: bool) -> None:
    """Peak anonymous resident memory of a run (tiny, batch 256, 2 views) that holds all of the set."""
    if not Path("/proc/self/status").exists():
        print("anonymous memory: not measured here (no /proc)")
        return
    load(data)  # decoded and cached before, as in a second run
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", MEMORY, data, "0.05" if quick else "1", f"{folder}/run"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    row("anonymous memory of training, tiny, 2 x 256 views", int(done.stdout) / 2**30, "GiB", "< 2.5")


# ---- once a run: probe and loading ------------------------------------------------------------------------------


def probing(data: str, quick: bool) -> None:
    """Seconds of a linear probe on features as wide as ResNet-50's, and of loading a set for the second time."""
    classes, samples, width = 10, 10_000 if quick else 50_000, 2048
    labels = torch.randint(classes, (samples,))
    x = 0.05 * torch.randn(classes, width)[labels] + torch.randn(samples, width)
    started = time.perf_counter()
    linear_probe(x, labels, x[:1000], labels[:1000])
    row(f"linear probe, {samples} x {width}", time.perf_counter() - started, "s", "" if quick else "<= 120")
    load(data)
    started = time.perf_counter()
    load(data)
    row(f"second load of {Path(data).name}", time.perf_counter() - started, "s", "<= 1")


def main() -> None:
    """Run all parts, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parts", nargs="*", help="views, loss, step, epoch, growth, sweep, probe, memory, gpu, gpu-epoch; all if none"
    )
    real = HERE.parent.parent / "shared" / "data" / "cifar10-jpeg.tar.xz"
    parser.add_argument("--data", default=str(real) if real.exists() else "synthetic", help="for step and memory")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    parts: dict[str, Callable[[], object]] = {
        "views": lambda: views(args.quick),
        "loss": lambda: losses(args.quick),
        "step": lambda: steps(args.quick),
        "epoch": lambda: epochs(args.quick),
        "growth": lambda: (growth(args.quick), gathering(args.quick)),
        "sweep": lambda: sweeping(args.quick),
        "probe": lambda: probing(args.data, args.quick),
        "memory": lambda: memory(args.data, args.quick),
    }
    if torch.cuda.is_available():
        parts |= {"gpu": lambda: resnet50_steps(args.quick), "gpu-epoch": lambda: resnet50_epochs(args.quick)}
    if unknown := [p for p in args.parts if p not in parts]:
        parser.error(f"unknown or impossible here: {', '.join(unknown)}; valid: {', '.join(parts)}")
    for name in args.parts or parts:
        parts[name]()
        gc.collect()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    result = {"environment": records.environment() | {"device": device}, "data": Path(args.data).name, "rows": ROWS}
    file = args.out / f"{device.replace(' ', '-').lower()}.json"
    write_atomically(file, lambda p: p.write_text(json.dumps(result, indent=1) + "\n"))


if __name__ == "__main__":
    main()
