"""A run is a folder: what was asked for, what happened, what was learned, each in a file written whole.

    runs/c10/
      config.yaml             the configuration, every field
      metrics.jsonl           one line a log step: step, epoch, seconds, learning rate, loss terms
      checkpoint.pt           model, optimiser and place in the run, for --resume
      backbone.safetensors    the trained backbone's weights
      record.json             everything a table, a figure or a verdict needs

Readers use `record.json` alone. It is written once the run is over, and extended by the probe.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ncssl_core import __version__
from ncssl_core.base import InputError, write_atomically

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
_NUMBER = int | float
_REQUIRED: dict[str, Any] = {
    "schema": int, "config": dict, "model": dict, "recipe": dict, "size": int, "data": dict, "environment": dict,
    "time": dict, "curves": dict, "data.name": str, "data.images": int, "environment.device": str,
    "time.training_seconds": _NUMBER, "time.images_per_second": _NUMBER,
    **dict.fromkeys(("config.loss", "config.backbone", "config.pairing"), str),
    **dict.fromkeys(("config.dim", "config.views", "config.batch", "config.epochs", "config.seed"), int),
    **dict.fromkeys(("config.sim_coeff", "config.std_coeff", "config.cov_coeff", "config.kappa"), _NUMBER),
    "config.lambd": _NUMBER | None,
}  # fmt: skip
COMPARED = ("evaluation_epoch", "evaluation_seconds", "evaluation_linear")  # the curves that verdicts rest on
_PROBED = ("trained", "untrained", "pixels")


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record, atomically; numbers that are none become null.

    Raises:
        InputError: the folder cannot be written to.
    """
    text = json.dumps(_plain({"schema": SCHEMA, **record}), indent=1, allow_nan=False)
    write_atomically(path, lambda p: p.write_text(text + "\n", encoding="utf-8"))


def read(path: str | Path) -> dict[str, Any]:
    """A record from its file or its run's folder.

    Raises:
        InputError: there is none, it is cut short or is no record, or a newer version of this package wrote it.
    """
    path = Path(path)
    file = path / "record.json" if path.is_dir() else path
    if not file.is_file():
        state = "holds an unfinished run (--resume continues it)" if (path / "config.yaml").exists() else "has none"
        raise InputError(f"no record: {path} {state}; wanted a run's folder with record.json")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{file} is cut short or is no record: {error}") from error
    try:
        return _checked(record)
    except InputError as error:
        raise InputError(f"{file} {error}") from error


def _checked(record: Any) -> dict[str, Any]:
    """A record, if it is what its readers expect."""
    if wrong := [path for path, kind in _REQUIRED.items() if not isinstance(_at(record, path), kind)]:
        raise InputError(f"is no record of a run: {', '.join(wrong)} missing or of the wrong type")
    if record["schema"] > SCHEMA:
        raise InputError(f"has schema {record['schema']}, newer than this package's {SCHEMA}: upgrade it")
    counts = ("config.dim", "config.views", "config.batch", "config.epochs", "data.images", "size")
    if wrong := [path for path in counts if _at(record, path) < 1]:
        raise InputError(f"is no record of a run: {', '.join(wrong)} below 1")
    _check_curves(record["curves"])
    _check_scores(record)
    for name, value in record["recipe"].items():
        numbers = value if isinstance(value, list) else [value]
        if not isinstance(value, str) and not all(isinstance(v, _NUMBER) for v in numbers):
            raise InputError(f"is no record of a run: its recipe's {name} is no number, word or list of numbers")
    return dict(record)


def _check_curves(curves: dict[str, Any]) -> None:
    for of_probes in (False, True):
        group = {name: column for name, column in curves.items() if name.startswith("evaluation_") == of_probes}
        lengths = {len(column) if isinstance(column, list) else -1 for column in group.values()}
        if len(lengths) > 1 or -1 in lengths:
            raise InputError("is no record of a run: its curves are no columns of one length")
        for name, column in group.items():
            number = _NUMBER if name in COMPARED else _NUMBER | None  # others may be no number, now and then
            if not all(isinstance(value, number) for value in column):
                raise InputError(f"is no record of a run: {name} holds what is no number")
    measured = curves.get("evaluation_epoch", [])
    if measured != sorted(set(measured)):
        raise InputError("is no record of a run: evaluation_epoch does not rise")


def _check_scores(record: dict[str, Any]) -> None:
    probe = record.get("probe", {})
    parts = {"probe": probe, "spectrum": record.get("spectrum", {}), "paper_probe": record.get("paper_probe", {})}
    parts |= {f"probe.{n}": probe[n] for n in _PROBED if n in probe} if isinstance(probe, dict) else {}
    if wrong := [name for name, scores in parts.items() if not isinstance(scores, dict)]:
        raise InputError(f"is no record of a run: {', '.join(wrong)} of the wrong type")
    for name in set(parts) - {"probe", "spectrum"}:
        if not all(isinstance(score, _NUMBER) for score in parts[name].values()):
            raise InputError(f"is no record of a run: {name} holds what is no number")


def _at(tree: Any, path: str) -> Any:
    """What lies at `a.b` in nested dictionaries; an ellipsis if nothing does."""
    for name in path.split("."):
        tree = tree.get(name, ...) if isinstance(tree, dict) else ...
    return tree


def extend(path: Path, **more: Any) -> dict[str, Any]:
    """Add entries to a record on disk (replacing those of the same name), atomically; returns the whole.

    Raises:
        InputError: as `read` and `write` do.
    """
    record = {**read(path), **more}
    write(path / "record.json" if path.is_dir() else path, record)
    return record


def table(paths: Iterable[str | Path]) -> pd.DataFrame:
    """One row a run, with what is usually compared; the full record is in `.attrs["records"]`.

    Raises:
        InputError: as `read` does.
    """
    import pandas as pd

    folders = [Path(p) for p in paths]
    records = [read(p) for p in folders]
    frame = pd.DataFrame([_row(p, r) for p, r in zip(folders, records, strict=True)])
    frame.attrs["records"] = records
    return frame


def kappa(config: Mapping[str, Any]) -> float:
    """The off-diagonal weight, as it compares across widths: lambd dim; cov_coeff dim / sim_coeff for VICReg."""
    if config["loss"] == "vicreg":
        return float(config["cov_coeff"] * config["dim"] / config["sim_coeff"]) if config["sim_coeff"] else math.inf
    return float(config["kappa"] if config["lambd"] is None else config["lambd"] * config["dim"])


def _row(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    config, time = record["config"], record["time"]
    name = path.parent.name if path.name == "record.json" else path.name.removesuffix(".json")
    probe = record.get("probe", {})
    loss = config.get("loss")
    return {
        "run": name,
        "data": record["data"]["name"],
        "backbone": config["backbone"],
        "loss": loss,
        "dim": config["dim"],
        "kappa": kappa(config),
        "views": config["views"],
        "epochs": config["epochs"],
        "seed": config["seed"],
        "linear": probe.get("trained", {}).get("linear"),
        "knn": probe.get("trained", {}).get("knn"),
        "untrained": probe.get("untrained", {}).get("linear"),
        "pixels": probe.get("pixels", {}).get("linear"),
        "rankme": record.get("spectrum", {}).get("rankme"),
        "seconds": time["training_seconds"],
        "images/s": time["images_per_second"],
    }


def read_all(folder: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """Every record `*.json` in a folder, by name; those that come with the package if none is given.

    Raises:
        InputError: no such folder, or as `read` does.
    """
    where = Path(folder) if folder is not None else shipped("results")
    if not where.is_dir():
        raise InputError(f"no folder {where}; wanted one of records, as `ncssl sweep --out` leaves it")
    return {path.stem: read(path) for path in sorted(where.glob("*.json"))}


def shipped(folder: str) -> Path:
    """Where `results`, `experiments` or `benchmarks/results` are: inside the installed package, or beside it."""
    package = Path(__file__).parent
    return package / folder if (package / folder).is_dir() else package.parent / folder


@cache
def environment() -> dict[str, Any]:
    """Versions, machine and commit, for a record."""
    packages = ("torch", "torchvision", "numpy", "scipy")
    return {
        "ncssl_core": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return next(line.partition(":")[2].strip() for line in words.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or an architecture that names none
        return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The package's commit, with a mark if it was changed since; None outside a checkout of it."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != here.parent:
            return None
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _plain(value: Any) -> Any:
    """JSON's own types; a number that is not finite becomes null, since JSON has none."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
