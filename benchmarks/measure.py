"""What every part of the benchmark does: repeat in turn, take medians, print and keep a row."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

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


def row(what: str, value: float, unit: str, target: str = "", spread: float | None = None, **of: object) -> None:
    """Print and keep one figure; `of` are the settings that a reader of the file selects by."""
    ROWS.append({"what": what, "value": value, "unit": unit, "target": target, "spread": spread, **of})
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
