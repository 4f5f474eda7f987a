"""The command `ncssl`: parse, call, print. Flags and help come from the types and docstrings of what is called.

Bad input prints one sentence and exits with 2; a run stopped by a signal exits with 128 + the signal's number.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_type_hints

import docstring_parser
from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from ncssl_core import __version__
from ncssl_core.base import InputError, RunStopped, is_out_of_memory, unknown_name, write_atomically
from ncssl_core.config import PretrainConfig, read_config
from ncssl_core.datasets import load
from ncssl_core.pretrain import load_run, pick_device, pretrain, untrained_backbone

if TYPE_CHECKING:
    from ncssl_core.sweep import Sweep


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
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _fail(f"not enough memory; a smaller dim, batch or views needs less ({str(error).splitlines()[0]})", 2)


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
    from ncssl_core.sweep import on_validation

    chosen = settings.as_dict()
    resume = chosen.pop("resume")
    chosen.pop("config", None)
    config = PretrainConfig(**chosen)

    run = pretrain(config, evaluate=on_validation, resume=resume)
    time = run.record["time"]
    then = "probe" if "test" in run.data and run.data["test"].labels is not None else "neighbours"
    print(
        f"{run.folder}: {config.epochs} epochs of {run.record['data']['images']} images of {run.data.name} in "
        f"{time['training_seconds']:.0f} s ({time['images_per_second']:.0f} images/s, "
        f"{time['views_per_second']:.0f} views/s); next: ncssl {then} {run.folder}"
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


def neighbours_page(
    run: str,
    data: str | None = None,
    out: str = "neighbours.html",
    queries: int = 20,
    neighbours: int = 6,
    split: str = "train",
    image_size: int | None = None,
    skip_unreadable: bool = False,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Write a web page that shows, for random images, those that a run's representation takes for most alike.

    Args:
        run: The run's folder.
        data: A set of images, as for pretrain; the run's own if not given.
        out: The page to write.
        queries: How many images to ask for.
        neighbours: How many to show for each.
        split: Which images: train, test or unlabeled.
        image_size: Resize the shorter side to this many pixels and crop the centre.
        skip_unreadable: Leave out images that cannot be decoded, instead of stopping.
        seed: Which images are asked for.
        device: "auto", "cpu", "cuda", ...
    """
    import torch

    from ncssl_core import spectra
    from ncssl_core.neighbours import nearest, page
    from ncssl_core.probe import extract_features

    other = load(data, image_size=image_size, skip_unreadable=skip_unreadable) if data is not None else None
    loaded = load_run(run, device, other)
    images = loaded.data[split]
    if queries < 1:
        raise InputError(f"queries is at least 1; given {queries}")
    features = extract_features(loaded.backbone, images.images, loaded.size, loaded.recipe).cpu()
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:queries]
    found = nearest(features, chosen, neighbours)
    says = (
        f"The first picture of each row is one of {len(images)} images of {loaded.data.name}, the others are its "
        f"nearest by the cosine of the representation that {run} learned without labels. RankMe "
        f"{spectra.rankme(features):.0f} of {features.shape[1]}."
    )
    if images.labels is not None:
        same = (images.labels[found.nearest] == images.labels[found.queries][:, None]).float().mean()
        says += f" Of the neighbours {100 * float(same):.0f} % are of the query's class."
    text = page(images, found, f"Neighbours in {loaded.data.name}", says)
    write_atomically(Path(out), lambda p: p.write_text(text, encoding="utf-8"))
    print(f"{out}: {len(chosen)} images of {loaded.data.name} with {neighbours} neighbours each")


def recommend_settings(
    images: int | None = None,
    size: int | None = None,
    budget: str = "1h",
    run: str | None = None,
    results: str | None = None,
    backbone: str | None = None,
    device: str = "auto",
) -> None:
    """Say which width, weight, views and epochs suit a set of images and a time, and how sure that is.

    Args:
        images: How many there are to pretrain on; those of --run if not given.
        size: Side of the views in pixels; that of --run if not given.
        budget: Time to train, e.g. 20m, 90s or 1h30m.
        run: A short pilot run on the images, whose spectrum is used.
        results: Folder of records; those that come along if not given.
        backbone: That of --run if not given; else tiny, or resnet50 where there is a GPU.
        device: "auto", "cpu", "cuda", ...
    """
    from ncssl_core import records
    from ncssl_core.pretrain import seconds_per_step
    from ncssl_core.recommend import check, pilot_spectrum, recommend

    chosen = pick_device(device)
    pilot = load_run(run, device) if run is not None else None
    if pilot is not None:
        images, size = images or len(pilot.splits[0]), size or pilot.size
        backbone = backbone or pilot.config.backbone
    if images is None or size is None:
        raise InputError("recommend wants --images and --size, or --run to take them from")
    check(images, size, _seconds(budget))
    backbone = backbone or ("resnet50" if chosen.type == "cuda" else "tiny")
    config = PretrainConfig(backbone=backbone, size=size, batch=128, device=str(chosen))
    step = seconds_per_step(config, load("synthetic").to(chosen))
    speed = config.batch * config.views / step
    advice = recommend(
        images, size, _seconds(budget), records.read_all(results), speed, backbone,
        None if pilot is None else pilot_spectrum(pilot),
    )  # fmt: skip
    print(f"{images} images, views of {size} pixels, {budget} of {backbone} at {speed:.0f} views/s here")
    print(advice)
    source = f"--data {pilot.config.data}" if pilot is not None else f"--data PHOTOS --image-size {size}"
    if pilot is not None and pilot.config.image_size:
        source += f" --image-size {pilot.config.image_size}"
    print(f"ncssl pretrain {source} --size {size} --backbone {backbone} {advice.flags}")


def sweep_suite(
    suite: str,
    out: str = "results",
    data: str | None = None,
    root: str = "data",
    download: bool = False,
    time_budget: str | None = None,
    shard: str = "1/1",
    dry_run: bool = False,
    device: str = "auto",
    compile: bool = False,
) -> None:
    """Do the next runs of a suite that have no record yet, within a time.

    Args:
        suite: A suite's file, or the name of one that comes along: cpu-projector, cifar10-views, ...
        out: The folder of records, one file a run.
        data: The images, as for pretrain; the suite's own if not given.
        root: Folder where torchvision's sets lie.
        download: Let torchvision fetch a missing set.
        time_budget: Stop by then, e.g. 9m, 90s or 1h30m, and start no run that would not fit; none if not given.
        shard: Of n parts of the suite do the i-th, as i/n: for several machines.
        dry_run: List the runs and the time each would take, and do none.
        device: "auto", "cpu", "cuda", ...
        compile: Compile the backbone, once for all runs with the same number of views and images in a step.
    """
    from ncssl_core.parallel import started_by_torchrun
    from ncssl_core.sweep import Sweep, read_suite

    if started_by_torchrun():
        raise InputError(
            "a sweep wants one process a run: start one for each GPU, with --device cuda:0 --shard 1/8, ..."
        )

    stop_at = time.monotonic() - time.process_time() + _seconds(time_budget)  # what was spent on starting counts, too
    if not (match := re.fullmatch(r"(\d+)/(\d+)", shard)) or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--shard is i/n with 1 <= i <= n, e.g. 1/4; given {shard!r}")
    runs = read_suite(suite)
    base = runs.tasks[0].config
    if data is None and base.data == "synthetic":
        raise InputError(f"{suite} names no images: wanted --data, e.g. cifar10")
    chosen = pick_device(device)
    if compile:
        runs = replace(runs, tasks=tuple(replace(t, config=replace(t.config, compile=True)) for t in runs.tasks))
    images = load(data or base.data, root, base.image_size, download, base.skip_unreadable)
    todo = Sweep(runs, images.to(chosen), Path(out), chosen, (int(match[1]), int(match[2])), stop_at)
    if dry_run:
        for name in todo.mine:
            state = "done" if todo.path(name).exists() else todo.failed(name) or _duration(todo.predict(name))
            print(f"{name}   {state}")
        print(_progress(todo))
        return
    _do_runs(todo)


def linear_study(
    data: str,
    out: str = "results/linear",
    root: str = "data",
    download: bool = False,
    image_size: int | None = None,
    recipe: str = "cifar",
    filters: int = 64,
    components: int = 256,
    images: int = 5_000,
    views: int = 8,
) -> None:
    """Compare linear encoders of random patch features with the theory's closed forms, on an image set.

    Args:
        data: The images, as for pretrain.
        out: The folder for the record, a file named after the set.
        root: Folder where torchvision's sets lie.
        download: Let torchvision fetch a missing set.
        image_size: Resize the shorter side to this many pixels and crop the centre.
        recipe: What the views undergo.
        filters: Random patches; eight features for each.
        components: Principal components of the features that the encoders see.
        images: In each of two halves of the training images.
        views: Of each image.
    """
    from ncssl_core import linear_ssl, records

    record = linear_ssl.study(load(data, root, image_size, download), recipe, filters, components, images, views)
    path = Path(out) / f"{record['data']['name'].lower()}.json"
    records.write(path, {"kind": "linear", **record})
    rows = record["phases"]
    same = sum(r["rank"] == r["descent_rank"] for r in rows)
    apart = max(abs(r["loss"] - r["descent_loss"]) for r in rows)
    print(f"{path}: closed form and descent agree in {same} of {len(rows)} cells; losses differ by at most {apart:.1e}")


def report(results: str | None = None, write: str | None = None) -> None:
    """Print the ledger of claims, and a table of all recorded runs.

    Args:
        results: Folder of records, as `ncssl sweep` leaves it; those that come along if not given.
        write: Also put the ledger into this Markdown file, between its lines <!-- ledger --> and <!-- /ledger -->.
    """
    from ncssl_core import claims, records

    runs = records.read_all(results)
    verdicts = claims.ledger(runs)
    for claim, text in claims.CLAIMS.items():
        print(f"{claim}  {text}\n    supported if {claims.RULES[claim]}")
        for v in verdicts:
            if v.claim == claim and v.epochs:
                rests = f" ({v.rests})" if v.runs else ""
                print(f"    {v.backbone}, {v.data}, {v.loss}: {v.verdict.upper()}: {v.says}{rests}")
        bare = [f"{v.backbone}, {v.data}, {v.loss}" for v in verdicts if v.claim == claim and not v.epochs]
        if bare:
            print(f"    NOT YET MEASURED, no record at all: {'; '.join(bare)}")
    if runs:
        print("\n" + claims.arms(runs).round(2).to_string(index=False, na_rep=""))
    if write is not None:
        _write_ledger(Path(write), claims.markdown(verdicts))


def _write_ledger(path: Path, table: str) -> None:
    start, end = "<!-- ledger -->\n", "<!-- /ledger -->"
    before, opened, rest = path.read_text(encoding="utf-8").partition(start)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise InputError(f"{path} has no lines {start.strip()} and {end} to put the ledger between")
    write_atomically(path, lambda p: p.write_text(f"{before}{start}{table}\n{end}{after}", encoding="utf-8"))


def _do_runs(todo: Sweep) -> None:
    print(f"{todo.suite.name} on {todo.data.name}: {_progress(todo)}", flush=True)
    while name := todo.next():
        predicted, started = todo.predict(name), time.monotonic()
        try:
            record = todo.do(name)
        except RunStopped as stopped:
            if stopped.exit_code > 1:
                raise RunStopped("stopped and saved; the same command goes on", stopped.exit_code) from None
            print(f"{name}: {str(stopped) if stopped.exit_code else 'saved, as the time is up'}", file=sys.stderr)
            continue
        if record:
            scores = record["probe"]["trained"]
            took = f"{_duration(time.monotonic() - started)}, predicted {_duration(predicted)}"
            print(
                f"{name}: linear {scores['linear']:.2f}, kNN {scores['knn']:.2f}   {took}; {_progress(todo)}",
                flush=True,
            )
    if failed := [name for name in todo.mine if todo.failed(name)]:
        why, where = todo.failed(failed[0]), todo.work(failed[0])
        raise RunStopped(f"{len(failed)} runs could not be finished: {why} (delete {where} to try again)")
    if todo.left:
        print(f"no run left that fits the time; the same command goes on: {_progress(todo)}")


def _progress(todo: Sweep) -> str:
    left, times = todo.left, [todo.predict(name) for name in todo.left]
    done = sum(todo.path(name).exists() for name in todo.mine)
    known = [t for t in times if t is not None]
    about = f", about {_duration(sum(known))}" if left and len(known) == len(left) else ""
    return f"{done} of {len(todo.mine)} done, {len(left)} left{about}"


def _seconds(duration: str | None) -> float:
    """Of "1h30m", "9m" or "90s"; infinite if not given."""
    if duration is None:
        return math.inf
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", duration)
    if not match or not any(match.groups()):
        raise InputError(f"a budget is a time such as 9m, 90s or 1h30m; given {duration!r}")
    return sum(int(n or 0) * unit for n, unit in zip(match.groups(), (3600, 60, 1), strict=True))


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not yet measured"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


_COMMANDS: dict[str, tuple[Callable[..., object], Callable[[Namespace], None]]] = {
    "pretrain": (PretrainConfig, _pretrain),
    "probe": (probe_run, lambda s: probe_run(**s.as_dict())),
    "embed": (embed_run, lambda s: embed_run(**s.as_dict())),
    "neighbours": (neighbours_page, lambda s: neighbours_page(**s.as_dict())),
    "recommend": (recommend_settings, lambda s: recommend_settings(**s.as_dict())),
    "show": (show_runs, lambda s: show_runs(**s.as_dict())),
    "sweep": (sweep_suite, lambda s: sweep_suite(**s.as_dict())),
    "linear": (linear_study, lambda s: linear_study(**s.as_dict())),
    "report": (report, lambda s: report(**s.as_dict())),
}
