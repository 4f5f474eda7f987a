"""An epoch of ours against an epoch of lightly's loop: its transform, its DataLoader, its loss; the same model.

Each side works in a process of its own, which does an epoch whenever it is told to, so that they take turns on the
machine and neither inherits what the other has set up. Ours is `pretrain`, whole. lightly's is written as its
documentation writes it, a forward pass a view; and once more with all views in one pass and channels last, as a careful
user would. Its loss takes two views; of more, each is paired with the mean of the others, the cheapest fair pairing.

    python benchmarks/epochs.py SIDE BACKBONE VIEWS BATCH DIM IMAGES DEVICE    # what the processes run
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["NCSSL_STATIC"] = "1"

import torch
from measure import row
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ncssl_core import PretrainConfig, build_backbone
from ncssl_core import pretrain as pretraining
from ncssl_core.augment import Recipe
from ncssl_core.datasets import DataSet, Images
from ncssl_core.models import Projector, feature_dim

OURS, LIGHTLY, TOGETHER = "ours", "lightly", "lightly, one pass, channels last"
GIVING_BACK = "ours, giving freed memory back"  # what `keep_freed_memory` saves on a CPU
SIZE = 32


def lightly_view(r: Recipe, size: int) -> Callable[[Any], torch.Tensor]:
    """lightly's view of a picture by a recipe of ours."""
    from lightly.transforms.simclr_transform import SimCLRViewTransform

    return SimCLRViewTransform(  # type: ignore[no-any-return]
        input_size=size, cj_prob=r.jitter, cj_strength=1.0, cj_bright=r.brightness, cj_contrast=r.contrast,
        cj_sat=r.saturation, cj_hue=r.hue, min_scale=r.scale[0], random_gray_scale=r.gray, gaussian_blur=0.0,
        hf_prob=r.flip, normalize={"mean": list(r.mean), "std": list(r.std)},
    )  # fmt: skip


def pictures_of(images: torch.Tensor, transform: Callable[[Any], Any], count: int) -> Dataset[Any]:
    """A data set of decoded pictures, as PIL has them, over and over until there are `count`."""
    from PIL import Image

    pictures = [Image.fromarray(i.permute(1, 2, 0).numpy()) for i in images]

    class Pictures(Dataset[Any]):
        def __len__(self) -> int:
            return count

        def __getitem__(self, index: int) -> Any:
            return transform(pictures[index % len(pictures)])

    return Pictures()


# ---- the two sides ----------------------------------------------------------------------------------------------


def our_epoch(config: PretrainConfig, images: torch.Tensor) -> Callable[[], float]:
    """A function that does an epoch, and gives its seconds (without a GPU's first step, as a record has it)."""
    data = DataSet("bench", (), "", {"train": Images(images)})

    def epoch() -> float:
        with tempfile.TemporaryDirectory() as folder:
            settings = {**config.plain(), "out": f"{folder}/run"}
            run = pretraining.pretrain(PretrainConfig(**settings), data=data)
        return len(images) / float(run.record["time"]["images_per_second"])

    return epoch


def lightly_epoch(config: PretrainConfig, images: torch.Tensor, together: bool) -> Callable[[], float]:
    """The same of lightly's loop."""
    from lightly.loss import BarlowTwinsLoss
    from lightly.transforms.multi_view_transform import MultiViewTransform

    device = torch.device(config.device)
    backbone = build_backbone(config.backbone)
    model = nn.Sequential(backbone, Projector(feature_dim(backbone, SIZE), config.dim)).to(device)
    if together:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), config.lr, weight_decay=config.weight_decay)
    criterion = BarlowTwinsLoss(config.kappa / config.dim)
    transform = MultiViewTransform([lightly_view(Recipe.named(config.recipe), SIZE)] * config.views)
    loader: Any = DataLoader(
        pictures_of(images, transform, len(images)), config.batch, shuffle=True, drop_last=True,
        num_workers=os.cpu_count() or 2, persistent_workers=True, pin_memory=device.type == "cuda",
    )  # fmt: skip
    half = device.type == "cuda"

    def step(views: list[torch.Tensor]) -> None:
        views = [v.to(device, non_blocking=True) for v in views]
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            if together:
                x = torch.cat(views).contiguous(memory_format=torch.channels_last)
                embedded = list(model(x).chunk(len(views)))
            else:
                embedded = [model(view) for view in views]
        z = torch.stack(embedded).float()
        others = (z.sum(0) - z) / (len(z) - 1)
        pairs = [(z[0], z[1])] if len(z) == 2 else list(zip(z, others, strict=True))
        loss = sum((criterion(a, b) for a, b in pairs), torch.zeros((), device=device)) / len(pairs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def epoch() -> float:
        started = time.perf_counter()
        for views in loader:
            step(views)
        if half:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return epoch


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """The highest anonymous memory of this process and its children, bytes; on a GPU, what it allocated there."""
    import psutil

    peak, over, me = [0.0], threading.Event(), psutil.Process()

    def anonymous(process: Any) -> int:
        try:
            text = Path(f"/proc/{process.pid}/status").read_text()
            return 1024 * int(text.split("RssAnon:")[1].split()[0])
        except (OSError, IndexError):  # it has just ended
            return 0

    def watch() -> None:
        while not over.wait(0.1):
            peak[0] = max(peak[0], sum(map(anonymous, [me, *me.children(recursive=True)])))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
        if torch.cuda.is_available():
            peak[0] = float(torch.cuda.max_memory_allocated())


def serve(side: str, backbone: str, views: str, batch: str, dim: str, images: str, device: str) -> None:
    """Do an epoch for every line on standard input; print its seconds and the peak memory so far."""
    config = PretrainConfig(
        backbone=backbone, views=int(views), batch=int(batch), dim=int(dim), epochs=1, recipe="cifar", device=device
    )
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (int(images), 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    if side == GIVING_BACK:
        pretraining.keep_freed_memory = lambda: None
    epoch = our_epoch(config, pixels) if side.startswith(OURS) else lightly_epoch(config, pixels, side == TOGETHER)
    with peak_memory() as peak:
        for _ in sys.stdin:
            print(json.dumps([epoch(), peak[0]]), flush=True)


# ---- the comparison ---------------------------------------------------------------------------------------------


def compare_epochs(
    backbone: str, views: int, batch: int, dim: int, repetitions: int, device: str, target: str, images: int = 4096
) -> None:
    """Rows of an epoch of each side: seconds, peak memory, and how many times faster ours is."""
    words = [backbone, views, batch, dim, images, device]
    sides = (OURS, LIGHTLY, TOGETHER) if device == "cuda" else (OURS, GIVING_BACK, LIGHTLY, TOGETHER)
    at_work = {side: _worker(side, words) for side in sides}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    memory: dict[str, float] = {}
    for repetition in range(repetitions + 1):
        for side in sides:
            spent, memory[side] = _one_epoch(at_work[side])
            if repetition:  # the first is for warming up
                seconds[side].append(spent)
    for process in at_work.values():
        process.communicate()
    what, of = f"epoch, {backbone}, {views} x {batch} views, d {dim}", {"part": "epoch", "views": views, "dim": dim}
    median = {side: statistics.median(values) for side, values in seconds.items()}
    for side, values in seconds.items():
        row(f"{what}: {side}", median[side], "s", spread=statistics.pstdev(values), side=side, **of)
        row(f"{what}: {side}, peak memory", memory[side] / 2**30, "GiB", side=side, **of)
    for side in sides[1:]:
        row(f"{what}: {side} / ours", median[side] / median[OURS], "x", target if side == LIGHTLY else "",
            side=side, **of)  # fmt: skip


def _worker(side: str, words: list[object]) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, side, *map(str, words)]
    return subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _one_epoch(process: subprocess.Popen[str]) -> tuple[float, float]:
    """(seconds, peak memory in bytes) of an epoch that a worker does now."""
    assert process.stdin
    assert process.stdout
    process.stdin.write("go\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args} ended with {process.wait()}")
    seconds, memory = json.loads(line)
    return seconds, memory


if __name__ == "__main__":
    serve(*sys.argv[1:])
