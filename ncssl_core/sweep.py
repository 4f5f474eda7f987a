"""Suites of runs, done in whatever time there is: each call does the next runs that have no record yet.

    todo = Sweep(read_suite("experiments/cpu-projector.yaml"), load("cifar10"), Path("results"), torch.device("cpu"))
    while name := todo.next():
        todo.do(name)

A suite is a YAML file:

    about: one sentence
    sets: [CIFAR-10, CIFAR-10-JPEG]         # whose images it may run on; any if left out
    base: {backbone: tiny, epochs: 8}       # settings of every run, as for `ncssl pretrain`
    runs:                                   # in order of worth; lists are multiplied out, the last one fastest
      - {dim: [64, 256], kappa: [0.2, 2.0]}
      - {dim: 64, seed: [1, 2], baselines: true}

A run's name holds what decides its result, so that a run named by two suites is done once. `OUT/NAME.json` is its
record; until that stands, `OUT/.work/NAME/` holds its checkpoint, and whoever works on it holds `NAME.lock`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import nn

from ncssl_core import records, spectra
from ncssl_core.base import InputError, RunStopped, lock, unknown_name, write_atomically
from ncssl_core.config import PretrainConfig, config_from
from ncssl_core.datasets import SET_NAMES, DataSet
from ncssl_core.pretrain import Run, hardware, pretrain, seconds_per_step, untrained_backbone
from ncssl_core.probe import extract_features, probe
from ncssl_core.watch import lines_of

if TYPE_CHECKING:
    import pandas as pd

_ARCHIVES = {"CIFAR-10-JPEG": "cifar10-jpeg.tar.xz", "Imagenette-96": "imagenette-96-jpeg.tar.xz"}
_WHERE = ("root", "download", "device", "out")  # a record leaves these to its reader
_NOT_WHAT = ("data", *_WHERE, "compile", "checkpoint_every", "log_every")  # settings that do not decide the result
_OF_BARLOW_TWINS, _OF_VICREG = ("kappa", "lambd", "pairing"), ("sim_coeff", "std_coeff", "cov_coeff")
_ENTRIES = ("about", "sets", "base", "runs")  # of a suite's file
_MARGIN = 1.1  # a run is started if 1.1 times its predicted time is left
_PIXELS = 60.0  # seconds for the linear probe of raw pixels, until it was measured


@dataclass(frozen=True)
class Task:
    """A run of a suite: its settings, and whether its record also holds the untrained backbone and raw pixels."""

    config: PretrainConfig
    baselines: bool = False

    def name(self, data: DataSet | str) -> str:
        """What the run on these images, or on a set of SET_NAMES, is called: what matters most, and a digest of all."""
        c, usual = self.config, PretrainConfig().plain()
        unused = _OF_BARLOW_TWINS if c.loss == "vicreg" else _OF_VICREG if c.lambd is None else (*_OF_VICREG, "kappa")
        said = {k: v for k, v in c.plain().items() if v != usual[k] and k not in (*_NOT_WHAT, *unused)}
        set_name = data if isinstance(data, str) else data.name
        of = [set_name] if isinstance(data, str) or set_name in SET_NAMES else [set_name, data.checksum]
        digest = hashlib.sha256(json.dumps([*of, said], sort_keys=True).encode()).hexdigest()[:8]
        kappa = f"{records.kappa(c.plain()):.2g}"
        share = f"-f{c.fraction:.2g}" if c.fraction < 1 else ""
        main = f"{c.backbone}-{c.loss}-d{c.dim}-k{kappa}-m{c.views}-e{c.epochs}{share}-s{c.seed}"
        return f"{set_name.lower()}-{main}-{digest}"


@dataclass(frozen=True)
class Suite:
    """A list of runs in order of worth, and the names of the image sets it is for (none: any)."""

    name: str
    about: str
    sets: tuple[str, ...]
    tasks: tuple[Task, ...]


def read_suite(suite: str | Path) -> Suite:
    """A suite from its file, or by the name of one that comes with the package.

    Raises:
        InputError: no such suite, or the file is no suite; says what is wrong in it.
    """
    path, shipped = Path(suite), records.shipped("experiments")
    if not path.is_file() and path.name == str(suite):
        path = shipped / f"{path.stem}.yaml"
    if not path.is_file():
        raise unknown_name("suite", str(suite), [p.stem for p in shipped.glob("*.yaml")])
    try:
        text = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(text, dict) or not text.get("runs") or not isinstance(text["runs"], list):
            raise InputError("wanted a list of runs")
        if strange := [str(key) for key in text if key not in _ENTRIES]:
            raise unknown_name("entry", strange[0], _ENTRIES)
        sets = text.get("sets", [])
        if not isinstance(sets, list) or not all(isinstance(name, str) for name in sets):
            raise InputError(f"sets are names, as [CIFAR-10]; given {sets!r}")
        if not all(isinstance(entry, dict) for entry in (text.get("base", {}), *text["runs"])):
            raise InputError("base and each of runs are settings, as {dim: 64}")
        tasks = [task for entry in text["runs"] for task in _tasks({**text.get("base", {}), **entry})]
    except Exception as error:  # a YAML reader may raise anything on broken text
        raise InputError(f"{path} is no suite: {error}") from error
    return Suite(path.stem, str(text.get("about", "")), tuple(sets), tuple(tasks))


def _tasks(entry: dict[str, Any]) -> Iterator[Task]:
    """One task for each combination of the values in an entry."""
    baselines = entry.pop("baselines", False)
    if not isinstance(baselines, bool):
        raise InputError(f"baselines wants true or false; given {baselines!r}")
    values = [v if isinstance(v, list) else [v] for v in entry.values()]
    for chosen in itertools.product(*values):
        yield Task(config_from(dict(zip(entry, chosen, strict=True))), baselines)


def coverage(runs: Iterable[str], suites: Iterable[str]) -> pd.DataFrame:
    """What is recorded of suites that come with the package, on each set they are for, and the command that goes on.

    Args:
        runs: names of the records there are.
        suites: names of suites, as "cpu-views".
    """
    import pandas as pd

    there, rows = set(runs), []
    for suite in map(read_suite, suites):
        for data in suite.sets:
            names = {task.name(data) for task in suite.tasks}
            source = "--download" if data in ("CIFAR-10", "STL-10") else f"--data {_ARCHIVES[data]}"
            row = {"suite": suite.name, "images": data, "recorded": len(names & there), "of": len(names)}
            rows.append({**row, "command": f"ncssl sweep {suite.name} {source}"})
    return pd.DataFrame(rows)


def still_to_do(runs: Iterable[str], suites: Iterable[str]) -> str:
    """What `coverage` says, as a list in Markdown: a line for each suite and set, with the command that goes on."""
    lines = []
    for row in coverage(runs, suites).itertuples():
        how = "complete" if row.recorded == row.of else f"`{row.command}`"
        lines.append(f"- *{row.suite}* on {row.images}: {row.recorded} of {row.of} runs recorded; {how}")
    return "\n".join(lines)


def compare(configs: Iterable[PretrainConfig], data: DataSet | None = None) -> pd.DataFrame:
    """Run a few short settings one after another; one row each, as `records.table` gives, and `validation`.

    Args:
        configs: each with `validation` and `probe_every`; runs without `out` go to a folder that is then deleted.
        data: the images of all; each config's own if not given.

    Returns:
        The table; the records, with their curves, are in `.attrs["records"]`.

    Raises:
        InputError: as `pretrain` does.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for place, config in enumerate(configs):
            named = replace(config, out=config.out or str(Path(folder) / f"{place}"))
            run = pretrain(named, data=data, evaluate=on_validation, resume=config.out is not None)
            paths.append(run.folder)
        frame = records.table(paths)
    curves = [record["curves"] for record in frame.attrs["records"]]
    frame["validation"] = [c.get("evaluation_linear", [math.nan])[-1] for c in curves]
    return frame


def on_validation(backbone: nn.Module, run: Run) -> dict[str, float]:
    """What curves over epochs are made of, on the images held out: RankMe and, with labels, linear and kNN accuracy."""
    _, train, validation = run.splits
    if train.labels is None:
        return {"rankme": spectra.rankme(extract_features(backbone, validation.images, run.size, run.recipe))}
    share = min((run.config.probe_images or len(train)) / len(train), 1.0)
    train = train.fraction(share, run.config.seed)
    scores, features = probe(backbone, train, validation, run.size, run.recipe, run.device)
    return {"linear": scores["linear"], "knn": scores["knn"], "rankme": spectra.rankme(features)}


@dataclass(frozen=True)
class Cost:
    """Seconds of a run: training (with what comes before it), each evaluation on the way, the probe, the baselines."""

    training: float
    evaluation: float
    probe: float
    baselines: float


class Pace:
    """How long runs take on a device, from records made there: the nearest in width, views and batch is scaled."""

    def __init__(self, device: torch.device, known: Iterable[dict[str, Any]]) -> None:
        self.here = hardware(device)
        self.seen: list[tuple[dict[str, Any], int, float, Cost]] = []  # settings, size, views a second, seconds
        for record in known:
            self.learn(record)

    def learn(self, record: dict[str, Any]) -> None:
        """Take in a record, if it was made on this device."""
        where = record["environment"]
        if all(where.get(k) == v for k, v in self.here.items()) and not where.get("earlier"):
            config, spent = record["config"], record["time"]
            each = spent["evaluation_seconds"] / max(_evaluations(PretrainConfig(**config)), 1)
            probe = spent.get("probe_seconds", 0.0)
            cost = Cost(spent["startup_seconds"], each, probe, spent.get("baselines_seconds", probe + _PIXELS))
            self.seen.append((config, record["size"], spent["views_per_second"], cost))

    def knows(self, config: PretrainConfig, size: int) -> bool:
        """Whether a run with the same work in a step was seen."""
        return any(_distance(s[0], config) == 0 and s[1] == size for s in self.seen)

    def predict(self, config: PretrainConfig, size: int, steps: int) -> Cost | None:
        """What a run of so many steps costs; None where nothing like it was seen."""
        alike = [s for s in self.seen if s[0]["backbone"] == config.backbone and s[1] == size]
        if not alike:
            return None
        near = min(reversed(alike), key=lambda s: _distance(s[0], config))
        training = near[3].training + steps * config.batch * config.views / near[2]
        known: Cost = replace(near[3], training=training)
        return known


def _distance(before: dict[str, Any], config: PretrainConfig) -> float:
    """How unlike the work in a step is: orders of magnitude of views and widths, and a lot for another kind of step."""
    now = config.plain()
    kind = ("backbone", "stem", "loss", "precision", "compile", "layers", "hidden")
    other = sum(bool(before[k] != now[k]) for k in kind)
    return 10.0 * other + sum(abs(math.log(float(before[k]) / now[k])) for k in ("views", "batch", "dim"))


def _evaluations(config: PretrainConfig) -> int:
    return math.ceil(config.epochs / config.probe_every) if config.probe_every else 0


@dataclass
class Sweep:
    """A suite on a set of images: what is done, what is next, and doing it.

    Args:
        suite: the runs.
        data: the images.
        out: the folder of records.
        device: where to run.
        shard: (i, n): of n parts, the i-th, counted from 1.
        stop_at: time of `time.monotonic()` to be over by, seconds; a run too long for any such call is done in parts.

    Raises:
        InputError: images that the suite is not for or that lack labels, or a folder that holds what is no record.
    """

    suite: Suite
    data: DataSet
    out: Path
    device: torch.device
    shard: tuple[int, int] = (1, 1)
    stop_at: float = math.inf
    pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"--out is a folder of records; {self.out} is a file")
        every: dict[str, Task] = {}
        for task in self.suite.tasks:
            every.setdefault(task.name(self.data), task)
        self._check(every)
        self.mine = dict(list(every.items())[self.shard[0] - 1 :: self.shard[1]])
        self.pace = Pace(self.device, [records.read(p) for p in sorted(self.out.glob("*.json"))])
        self.elsewhere: set[str] = set()
        self.whole = self.stop_at - time.monotonic()

    def _check(self, every: dict[str, Task]) -> None:
        """That these images can be used, and that records and unfinished runs in the folder are of these runs."""
        suite, data = self.suite, self.data
        if suite.sets and data.name not in suite.sets:
            raise InputError(f"{suite.name} is for {' or '.join(suite.sets)}; given {data.name}")
        if data["train"].labels is None or data["test"].labels is None:
            raise InputError(f"a suite wants labelled training and test images; {data.name} lacks labels")
        if len({(t.config.data, t.config.image_size, t.config.skip_unreadable) for t in every.values()}) > 1:
            raise InputError(
                f"the runs of {suite.name} differ in data, image_size or skip_unreadable; wanted one for all"
            )
        for name, task in every.items():
            if self._images(task.config) < task.config.batch:
                raise InputError(f"{suite.name} has batches of {task.config.batch}; too few images for {name}")
            if self.path(name).exists():
                held, wanted = records.read(self.path(name))["config"], task.config.plain()
                if differing := [k for k in wanted if k not in _NOT_WHAT and held.get(k, wanted[k]) != wanted[k]]:
                    raise InputError(f"{self.path(name)} is of a run with another {', '.join(differing)}; move it away")
                shutil.rmtree(self.work(name), ignore_errors=True)  # left by a kill after the record was written

    def path(self, name: str) -> Path:
        """Where a run's record is, or will be."""
        return self.out / f"{name}.json"

    def work(self, name: str) -> Path:
        """The folder of an unfinished run."""
        return self.out / ".work" / name

    def failed(self, name: str) -> str | None:
        """Why a run cannot be finished, if that is so; deleting its folder has it tried again."""
        note = self.work(name) / "failed.txt"
        return note.read_text(encoding="utf-8") if note.exists() else None

    def _give_up(self, name: str, why: str) -> str:
        write_atomically(self.work(name) / "failed.txt", lambda p: p.write_text(why, encoding="utf-8"))
        return why

    @property
    def left(self) -> list[str]:
        """Runs without a record, in order of worth, that nobody else is at and that did not fail."""
        return [n for n in self.mine if not (self.path(n).exists() or n in self.elsewhere or self.failed(n))]

    def next(self) -> str | None:
        """The first run left that fits the time left, or None. A run longer than the whole budget is done in parts."""
        for name in self.left:
            left = self.stop_at - time.monotonic()
            if left <= 0:
                return None
            rough = self.predict(name)
            if rough is None or rough < 2 * left:
                try:
                    self.measure_pace(name)
                except torch.OutOfMemoryError:
                    self._give_up(name, "not enough memory on the device")
                    continue
                left = self.stop_at - time.monotonic()
            seconds = _MARGIN * (self.predict(name) or math.inf)
            in_parts = seconds > 0.8 * self.whole and left - self._after(name) > self.whole / 4
            if seconds <= left or in_parts:
                return name
        return None

    def predict(self, name: str) -> float | None:
        """Seconds that a run still needs; None where nothing is known to tell it from."""
        cost, config = self._cost(name), self.mine[name].config
        if cost is None:
            return None
        started = (self.work(name) / "checkpoint.pt").exists()
        lines = lines_of(self.work(name) / "metrics.jsonl") if started else ()
        still = 1 - min(max((line["step"] for line in lines), default=0) / self._steps(config), 1)
        return still * (cost.training + cost.evaluation * _evaluations(config)) + self._after(name) - cost.evaluation

    def _after(self, name: str) -> float:
        """Seconds from a run's last step to its record."""
        cost = self._cost(name)
        if cost is None:
            return 0.0
        return cost.evaluation + cost.probe + (cost.baselines if self.mine[name].baselines else 0.0)

    def _cost(self, name: str) -> Cost | None:
        config = self.mine[name].config
        return self.pace.predict(config, self._size(config), self._steps(config))

    def _size(self, config: PretrainConfig) -> int:
        return config.size or self.data["train"].images.shape[-2]

    def _steps(self, config: PretrainConfig) -> int:
        return config.epochs * (self._images(config) // config.batch)

    def _images(self, config: PretrainConfig) -> int:
        pool = len(self.data.pretraining) - (0 if "unlabeled" in self.data else config.validation)
        return round(config.fraction * pool)

    def measure_pace(self, name: str) -> None:
        """Time a few steps like a run's, if none like them was seen."""
        config = self.mine[name].config
        size, labelled, test = self._size(config), len(self.data["train"]), len(self.data["test"])
        if self.pace.knows(config, size):
            return
        seconds = seconds_per_step(replace(config, data=self.data.name, device=str(self.device)), self.data)
        speed = config.batch * config.views / seconds
        cost = self._cost(name)
        if cost is None:  # the first run of all: a forward pass is about a third of a step
            probed = min(config.probe_images or labelled, labelled) + config.validation
            after = 5 + (labelled + test) / speed / 3
            cost = Cost(0.0, 2 + probed / speed / 3, after, after + _PIXELS)
        self.pace.seen.append((config.plain(), size, speed, replace(cost, training=0.0)))

    def do(self, name: str) -> dict[str, Any] | None:
        """One run, from its checkpoint if it has one; writes its record and returns it. None if another has done it.

        Raises:
            InputError: settings or data that cannot be used.
            RunStopped: a signal came, the time was up, or a loss term was not finite.
        """
        task, work = self.mine[name], self.work(name)
        with lock(self.out / ".work" / f"{name}.lock") as held:
            if not held or self.path(name).exists():
                self.elsewhere.add(name)
                return None
            stop_at = self.stop_at - self._after(name)
            config = replace(task.config, data=self.data.name, device=str(self.device), out=str(work))
            try:
                run = pretrain(config, None, self.data, on_validation, resume=True, stop_at=stop_at)
            except RunStopped as stopped:
                if stopped.exit_code == 1:  # it diverged, and would again
                    self._give_up(name, str(stopped))
                raise
            except torch.OutOfMemoryError:
                raise RunStopped(self._give_up(name, "not enough memory on the device")) from None
            scores = _probed(run, task.baselines)
            usual = {k: v for k, v in PretrainConfig().plain().items() if k in _WHERE}
            record = {**run.record, **scores, "config": {**run.record["config"], **usual}}
            records.write(self.path(name), _rounded(record))
            shutil.rmtree(work, ignore_errors=True)
        self.pace.learn(record)
        return record


def _probed(run: Run, baselines: bool) -> dict[str, Any]:
    """The record's `probe` and `spectrum`: the backbone on the test images, read here once; and the seconds it took."""
    started = time.perf_counter()
    train, test = run.data["train"], run.data["test"]

    def on_test(backbone: nn.Module | None) -> tuple[dict[str, Any], Any]:
        return probe(backbone, train, test, run.size, run.recipe, run.device)

    trained, features = on_test(run.backbone)
    scores, spent = {"trained": trained, "test_images": len(test)}, {"probe_seconds": time.perf_counter() - started}
    if baselines:
        scores |= {"untrained": on_test(untrained_backbone(run.config).to(run.device))[0], "pixels": on_test(None)[0]}
        spent["baselines_seconds"] = time.perf_counter() - started - spent["probe_seconds"]
    return {"probe": scores, "spectrum": spectra.summary(features), "time": {**run.record["time"], **spent}}


def _rounded(value: Any) -> Any:
    """Six significant digits, so that records stay small."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
