"""Watching a run: its log and progress bar, and the signals that end it early."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ncssl_core.base import InputError, RunStopped, write_atomically
from ncssl_core.parallel import rank


class Log:
    """metrics.jsonl and the progress bar. On a GPU the numbers are read a log step late, so nothing waits for them.

    Of several processes the first writes and shows; all watch that the numbers are finite.
    """

    def __init__(self, folder: Path, step: int, total_steps: int, batch: int) -> None:
        self.folder, self.path = folder, folder / "metrics.jsonl"
        self.pending: deque[tuple[dict[str, Any], list[str], Tensor, Any]] = deque()
        self.writes = rank() == 0
        if self.writes:
            kept = [line for line in lines_of(self.path) if line["step"] <= step] if step else []
            text = "".join(json.dumps(line) + "\n" for line in kept)
            write_atomically(self.path, lambda p: p.write_text(text, encoding="utf-8"))
        self.bar = tqdm(
            total=total_steps * batch, initial=step * batch, unit="img", unit_scale=True, dynamic_ncols=True,
            disable=not self.writes or bool(os.environ.get("NCSSL_STATIC")),
            mininterval=0.5 if sys.stderr.isatty() else 15,
        )  # fmt: skip

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def add(self, step: int, epoch: int, seconds: float, lr: float, terms: dict[str, Tensor]) -> None:
        """Note the terms of a step; write those of earlier ones that have arrived."""
        values, event = torch.stack([t.detach() for t in terms.values()]), None
        if values.is_cuda:
            values, event = values.to("cpu", non_blocking=True), torch.cuda.Event()
            event.record()
        line = {"step": step, "epoch": epoch, "seconds": round(seconds, 3), "lr": lr}
        self.pending.append((line, list(terms), values, event))
        while self.pending and (self.pending[0][3] is None or self.pending[0][3].query()):
            self._write_first()

    def flush(self) -> None:
        """Wait for what is on its way, and write it."""
        while self.pending:
            if self.pending[0][3] is not None:
                self.pending[0][3].synchronize()
            self._write_first()

    def _write_first(self) -> None:
        line, names, values, _ = self.pending.popleft()
        terms = dict(zip(names, values.tolist(), strict=True))
        if bad := [name for name, value in terms.items() if not math.isfinite(value)]:
            causes = [name for name in bad if name != "loss" and not name.endswith("_mean")]
            raise self.not_finite(line["step"], ", ".join(causes or bad))
        self.write({**line, **terms})
        shown = {k: f"{v:.3g}" for k, v in terms.items() if not k.endswith("_mean")}
        self.bar.set_postfix({"epoch": line["epoch"] + 1, **shown}, refresh=False)

    def write(self, line: dict[str, Any]) -> None:
        """Append a line."""
        if not self.writes:
            return
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}") from error

    def not_finite(self, step: int, what: str) -> RunStopped:
        """The error for a number that is none."""
        checkpoint = self.folder / "checkpoint.pt"
        good = f"the last good checkpoint is {checkpoint}" if checkpoint.exists() else "there is no checkpoint yet"
        return RunStopped(f"not finite by step {step}: {what}; {good}. A lower lr or precision fp32 may help")


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a metrics file; a last one cut short by a kill is left out."""
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return


def name_of(number: int) -> str:
    """A signal in words."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


class Signals:
    """SIGTERM and Ctrl-C set a flag that the loop reads after each step; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def _note(self, number: int, _: object) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number

    def __enter__(self) -> Signals:
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        except ValueError:  # not in the main thread: signals are not ours to catch
            pass
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
