"""The command `ncssl`: parse, call, print. Flags and help come from the types and docstrings of what is called.

Bad input prints one sentence and exits with 2; a run stopped by a signal exits with 128 + the signal's number.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NoReturn, get_type_hints

import docstring_parser
from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from ncssl_core import __version__
from ncssl_core.base import InputError, RunStopped, unknown_name, write_atomically
from ncssl_core.config import PretrainConfig, read_config
from ncssl_core.pretrain import Run, load_run, pretrain, untrained_backbone


def main(arguments: list[str] | None = None) -> None:
    """Run the command line with `arguments` (the process's own if not given)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        settings = _parser(given).parse_args(given)
        command = settings.subcommand
        _COMMANDS[command][1](settings[command])
    except (InputError, OSError) as error:
        _fail(str(error), 2)
    except RunStopped as stopped:
        _fail(str(stopped), stopped.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


class _Parser(ArgumentParser):
    """A parser whose errors are one sentence, in the words of the command line."""

    flags: tuple[str, ...] = ()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = re.sub(r"\s*\n\s*", " ", message).strip()
        if match := re.match(r"(?i)unrecognized arguments: (--[^\s=]+)", text):
            _fail(str(unknown_name("flag", match[1], self.flags)), 2)
        if match := re.match(r".*does not accept option '(\w+)'", text):
            names = [f[2:].replace("-", "_") for f in self.flags]
            _fail(str(unknown_name("setting", match[1], names)), 2)
        if match := re.match(r'Parser key "(?:\w+\.)?(\w+)": (.*)', text):
            text = f"--{match[1].replace('_', '-')}: {match[2]}"
        for pattern, words in _PLAIN_WORDS:
            text = re.sub(pattern, words, text)
        _fail(text, 2)


_PLAIN_WORDS = (  # jsonargparse's way of saying it, and ours
    (r"Does not validate against any of the Union.*?\[<class '(\w+)'>.*Given value: (.*)",
     r"wanted \1, given \2"),
    (r"Expected a (?:typing\.)?Literal\[(.*?)\]\. Got value: (.*)", r"wanted one of \1; given \2"),
    (r"Expected a <class '(\w+)'>\. Got value: (.*)", r"wanted \1, given \2"),
    (r"arguments are required: \w+\.(\w+)", r"arguments are required: \1"),
    (r'expected "subcommand" to be one of \{(.*?)\}.*', r"wanted a command, one of: \1 (ncssl --help tells more)"),
)  # fmt: skip


def _parser(given: list[str]) -> ArgumentParser:
    parser = _Parser(
        prog="ncssl", description="Learn image representations without labels, and measure them.", version=__version__
    )
    commands = parser.add_subcommands()
    for name, (source, _) in _COMMANDS.items():
        described = docstring_parser.parse(pretrain.__doc__ if name == "pretrain" else source.__doc__ or "")
        command = _Parser(description=described.short_description)
        if name == "pretrain":
            command.add_argument("--config", action="config", help="YAML file of settings; flags override it.")
            command.add_argument("--resume", action="store_true", help="Go on with the run in --out.")
        _add_arguments(command, source)
        command.flags = tuple(o for a in command._actions for o in a.option_strings if o.startswith("--"))
        if given[:1] == [name]:
            parser.flags = command.flags
            if "--resume" in given:
                command.set_defaults(_settings_of_resumed_run(given))
        commands.add_subcommand(name, command, help=described.short_description)
    return parser


def _add_arguments(parser: ArgumentParser, source: Callable[..., object]) -> None:
    """A flag (or, without a default, a positional) for every parameter, from its type, default and docstring."""
    types = get_type_hints(source)
    described = docstring_parser.parse(source.__doc__ or "")
    words = {p.arg_name: p.description for p in described.params}
    for name, parameter in inspect.signature(source).parameters.items():
        flag, kind = "--" + name.replace("_", "-"), types[name]
        if parameter.default is parameter.empty:
            many = {"type": str, "nargs": "+"} if kind == list[str] else {"type": kind}
            parser.add_argument(name, help=words[name], **many)
        elif kind is bool:
            yes_no = ActionYesNo(no_prefix="no-")
            parser.add_argument(flag, action=yes_no, default=parameter.default, help=words[name])
        else:
            parser.add_argument(flag, type=kind, default=parameter.default, help=words[name])


def _settings_of_resumed_run(given: list[str]) -> dict[str, Any]:
    """What the run in --out was started with, to be the default of every flag."""
    outs = [g.partition("=")[2] or "".join(given[i + 1 : i + 2]) for i, g in enumerate(given)
            if g.split("=")[0] == "--out"]  # fmt: skip
    if not outs or not (Path(outs[-1]) / "config.yaml").exists():
        if any(g.startswith(("--data", "--config")) for g in given):
            return {}  # nothing to go on from: a new run
        raise InputError(f"no run to go on with in {outs[-1] if outs else 'any --out'}; with --data it would start one")
    before = read_config(outs[-1])
    return {f.name: getattr(before, f.name) for f in fields(before)}


def _fail(message: str, code: int) -> NoReturn:
    print(f"ncssl: {message}", file=sys.stderr)
    raise SystemExit(code)


# ---- the commands -----------------------------------------------------------------------------------------------


def _pretrain(settings: Namespace) -> None:
    from ncssl_core.probe import probe

    chosen = settings.as_dict()
    resume = chosen.pop("resume")
    chosen.pop("config", None)
    config = PretrainConfig(**chosen)

    def on_validation(backbone: Any, run: Run) -> dict[str, float]:
        _, train, validation = run.splits
        scores, _ = probe(backbone, train, validation, run.size, run.recipe, run.device)
        return {name: scores[name] for name in ("linear", "knn")}

    run = pretrain(config, evaluate=on_validation, resume=resume)
    time = run.record["time"]
    print(
        f"{run.folder}: {config.epochs} epochs of {run.record['data']['images']} images of {run.data.name} in "
        f"{time['training_seconds']:.0f} s ({time['images_per_second']:.0f} images/s, "
        f"{time['views_per_second']:.0f} views/s); next: ncssl probe {run.folder}"
    )


def probe_run(
    run: str,
    protocol: Literal["clean", "paper"] = "clean",
    average_views: int = 16,
    against: bool = True,
    device: str = "auto",
) -> None:
    """Measure a finished run's representation on the test images, beside an untrained one and raw pixels.

    Args:
        run: The run's folder.
        protocol: "clean": logistic regression and kNN on clean images; "paper": Adam for 200 epochs on averaged views.
        average_views: Views averaged by the paper's protocol.
        against: Also probe the untrained backbone and raw pixels.
        device: "auto", "cpu", "cuda", ...
    """
    from ncssl_core import records, spectra
    from ncssl_core.probe import extract_features, paper_probe, probe

    loaded = load_run(run, device)
    train, test = loaded.data["train"], loaded.data["test"]
    if protocol == "paper":
        if average_views < 1:
            raise InputError(f"average_views is at least 1; given {average_views}")
        if train.labels is None or test.labels is None:
            raise InputError("a probe wants labels: train/<class>/ and test/<class>/ folders")
        x, x_test = (extract_features(loaded.backbone, i.images, loaded.size, loaded.recipe, average_views)
                     for i in (train, test))  # fmt: skip
        labels = (i.labels.to(x.device) for i in (train, test) if i.labels is not None)
        accuracy = paper_probe(x, next(labels), x_test, next(labels))["accuracy"]
        records.extend(Path(run), paper_probe={"linear": accuracy, "average_views": average_views})
        print(f"{run}: linear probe {accuracy:.2f} % (paper's protocol, {average_views} views averaged)")
        return
    rivals: dict[str, Any] = {"trained": loaded.backbone}
    if against:
        rivals |= {"untrained": untrained_backbone(loaded.config).to(loaded.device), "pixels": None}
    results: dict[str, Any] = {}
    spectrum: dict[str, float] = {}
    for name, backbone in rivals.items():
        results[name], features = probe(backbone, train, test, loaded.size, loaded.recipe, loaded.device)
        if name == "trained":
            spectrum = spectra.summary(features)
        knn = f"   kNN {results[name]['knn']:5.2f} %" if "knn" in results[name] else ""
        print(f"{name:>10}   linear {results[name]['linear']:5.2f} %{knn}", flush=True)
    results["test_images"] = len(test)
    records.extend(Path(run), probe=results, spectrum=spectrum)


def embed_run(
    run: str,
    data: str | None = None,
    out: str = "features.npz",
    image_size: int | None = None,
    skip_unreadable: bool = False,
    device: str = "auto",
) -> None:
    """Write the representation of every image of a set to an .npz file: features, labels and file names, by split.

    Args:
        run: The run's folder.
        data: A set of images, as for pretrain; the run's own if not given.
        out: The file to write.
        image_size: Resize the shorter side to this many pixels and crop the centre.
        skip_unreadable: Leave out images that cannot be decoded, instead of stopping.
        device: "auto", "cpu", "cuda", ...
    """
    import numpy as np

    from ncssl_core.datasets import load
    from ncssl_core.probe import extract_features

    path = Path(out) if out.endswith(".npz") else Path(out + ".npz")
    other = load(data, image_size=image_size, skip_unreadable=skip_unreadable) if data is not None else None
    loaded = load_run(run, device, other)
    size = int(loaded.record["size"])
    arrays: dict[str, Any] = {"classes": np.array(loaded.data.classes)}
    for split, images in loaded.data.splits.items():
        features = extract_features(loaded.backbone, images.images, size, loaded.record["recipe"])
        arrays[f"{split}_features"] = features.cpu().numpy()
        arrays[f"{split}_names"] = np.array(images.names)
        if images.labels is not None:
            arrays[f"{split}_labels"] = images.labels.numpy()

    def save(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)

    write_atomically(path, save)
    shapes = ", ".join(f"{s} {arrays[f'{s}_features'].shape}" for s in loaded.data.splits)
    print(f"{path}: features of {loaded.data.name}: {shapes}")


def show_runs(runs: list[str], png: str | None = None) -> None:
    """Print a table of finished runs, and draw their curves.

    Args:
        runs: The runs' folders.
        png: The picture to write; curves.png in the first run's folder if not given.
    """
    from ncssl_core import figures, records

    frame = records.table(runs)
    print(frame.dropna(axis=1, how="all").round(2).to_string(index=False))
    first = Path(runs[0])
    path = Path(png) if png else (first if first.is_dir() else first.parent) / "curves.png"
    figures.save(figures.curves(frame.attrs["records"], list(frame["run"])), path)
    print(f"curves: {path}")


_COMMANDS: dict[str, tuple[Callable[..., object], Callable[[Namespace], None]]] = {
    "pretrain": (PretrainConfig, _pretrain),
    "probe": (probe_run, lambda s: probe_run(**s.as_dict())),
    "embed": (embed_run, lambda s: embed_run(**s.as_dict())),
    "show": (show_runs, lambda s: show_runs(**s.as_dict())),
}
