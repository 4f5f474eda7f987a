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
from pathlib import Path

os.environ["NCSSL_STATIC"] = "1"

import torch
from torch import nn

from ncssl_core import BarlowTwinsLoss, MultiView, PretrainConfig, build_backbone, linear_probe, load, records
from ncssl_core.base import write_atomically

HERE = Path(__file__).parent
ROWS: list[dict[str, object]] = []


def alternate(
    jobs: dict[str, Callable[[], object]], repetitions: int = 7, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of each job, in turn, after one warm-up of each."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for repetition in range(repetitions + 1):
        for name, job in jobs.items():
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            job()
            if device == "cuda":
                torch.cuda.synchronize()
            if repetition:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def row(what: str, value: float, unit: str, target: str = "", spread: float | None = None) -> None:
    """Print and keep one figure."""
    ROWS.append({"what": what, "value": value, "unit": unit, "target": target, "spread": spread})
    about = f" +- {spread:.3g}" if spread is not None else ""
    print(f"{what:<74} {value:>10.4g}{about} {unit:<10} {target}", flush=True)


def rates(what: str, seconds: dict[str, list[float]], count: dict[str, int], targets: dict[str, str]) -> None:
    """Views a second of each job, and ours over each peer's."""
    speed = {name: [count[name] / s for s in values] for name, values in seconds.items()}
    for name, values in speed.items():
        row(f"{what}: {name}", statistics.median(values), "views/s", spread=statistics.pstdev(values))
    for name in list(speed)[1:]:
        ratio = statistics.median(speed["ours"]) / statistics.median(speed[name])
        row(f"{what}: ours / {name}", ratio, "x", targets.get(name, ""))


# ---- augmentation -----------------------------------------------------------------------------------------------


def augmentation(name: str, side: int, size: int, quick: bool) -> None:
    """Two views of each image: ours, lightly's transform in a DataLoader of 2 workers, kornia's pipeline."""
    import kornia.augmentation as K
    from lightly.transforms import SimCLRTransform
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    batch, batches = 256, 2 if quick else 4
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
    ours = MultiView(size, 2, name)
    r = ours.recipe
    transform = SimCLRTransform(
        input_size=size, cj_prob=r.jitter, cj_strength=1.0, cj_bright=r.brightness, cj_contrast=r.contrast,
        cj_sat=r.saturation, cj_hue=r.hue, min_scale=r.scale[0], random_gray_scale=r.gray, gaussian_blur=0.0,
        hf_prob=r.flip, normalize={"mean": list(r.mean), "std": list(r.std)},
    )  # fmt: skip
    pictures = [Image.fromarray(i.permute(1, 2, 0).numpy()) for i in images]

    class Pictures(Dataset[list[torch.Tensor]]):
        def __len__(self) -> int:
            return batch * batches

        def __getitem__(self, index: int) -> list[torch.Tensor]:
            return transform(pictures[index % batch])  # type: ignore[no-any-return]

    loader = DataLoader(Pictures(), batch, num_workers=2, persistent_workers=True)
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
    from ncssl_core.datasets import DataSet, Images
    from ncssl_core.pretrain import Run, _Training, pick_device

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


def training_step(data: str, quick: bool) -> None:
    """Share of a step outside the model's own forward and backward, on the CPU."""
    images = load(data)["train"].images[:4096]
    seconds = step_parts(PretrainConfig(batch=256, device="cpu", recipe="cifar"), images, 5 if quick else 15)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in median.items():
        row(f"tiny, 2 x 256 views: {name}", 1e3 * value, "ms", spread=1e3 * statistics.pstdev(seconds[name]))
    row("tiny, 2 x 256 views: share outside the model", 100 * (1 - median["model"] / median["step"]), "%", "<= 20")


def resnet50_on_gpu(quick: bool) -> None:
    """The same shares for ResNet-50 on a GPU, with images a second and peak memory, at 2, 4 and 8 views."""
    for views in (2, 4, 8):
        batch = 256 if views < 8 else 128
        images = torch.randint(0, 256, (4096, 3, 32, 32), dtype=torch.uint8, device="cuda")
        config = PretrainConfig(backbone="resnet50", views=views, batch=batch, device="cuda", recipe="cifar")
        torch.cuda.reset_peak_memory_stats()
        median = {n: statistics.median(s) for n, s in step_parts(config, images, 5 if quick else 20).items()}
        what = f"resnet50 on {torch.cuda.get_device_name()}, {views} x {batch} views"
        row(f"{what}: step / model", median["step"] / median["model"], "x", "<= 1.1")
        row(f"{what}: images/s", batch / median["step"], "img/s")
        row(f"{what}: peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")


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
        "parts", nargs="*", help="views, loss, step, probe, memory, gpu; all that can run if none is named"
    )
    real = HERE.parent.parent / "shared" / "data" / "cifar10-jpeg.tar.xz"
    parser.add_argument("--data", default=str(real) if real.exists() else "synthetic", help="for step and memory")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    parts: dict[str, Callable[[], None]] = {
        "views": lambda: views(args.quick),
        "loss": lambda: losses(args.quick),
        "step": lambda: training_step(args.data, args.quick),
        "probe": lambda: probing(args.data, args.quick),
        "memory": lambda: memory(args.data, args.quick),
    }
    if torch.cuda.is_available():
        parts["gpu"] = lambda: resnet50_on_gpu(args.quick)
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
