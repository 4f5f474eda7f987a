import json
import multiprocessing
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch._dynamo.utils
import yaml

from ncssl_core import InputError, PretrainConfig, RunStopped, records, sweep
from ncssl_core.base import lock
from ncssl_core.datasets import DataSet
from ncssl_core.pretrain import Run, _Training, pretrain
from ncssl_core.sweep import Pace, Sweep, Task, compare, coverage, read_suite, still_to_do

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
BASE = {"dim": 16, "epochs": 1, "batch": 64, "validation": 50, "probe_every": 1, "probe_images": 100, "log_every": 2}
SHIPPED = sorted(p.stem for p in (ROOT / "experiments").glob("*.yaml"))


def suite_file(folder, runs, **more):
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump({"about": "a try", "base": BASE, "runs": runs, **more}, sort_keys=False))
    return path


@pytest.fixture
def todo(tmp_path, shapes):
    """A sweep over three short runs; arguments change it."""

    def make(runs=({"kappa": [2.0, 0.2, 8.0]},), data=shapes, out=tmp_path / "results", **kw):
        return Sweep(read_suite(suite_file(tmp_path, list(runs))), data, out, CPU, **kw)

    return make


def do_all(todo):
    while name := todo.next():
        todo.do(name)


# ---- suites -----------------------------------------------------------------------------------------------------


def test_lists_are_multiplied_out_in_order_and_repeats_dropped(todo):
    runs = [{"kappa": 2.0, "baselines": True}, {"seed": [0, 1], "kappa": [2.0, 0.2]}]
    swept = todo(runs)
    assert [(t.config.seed, t.config.kappa, t.baselines) for t in swept.mine.values()] == [
        (0, 2.0, True), (0, 0.2, False), (1, 2.0, False), (1, 0.2, False)]  # fmt: skip
    assert all(t.config.epochs == 1 and t.config.dim == 16 for t in swept.mine.values())


def test_a_name_holds_what_decides_the_result_and_nothing_else():
    task, cifar = Task(PretrainConfig(dim=64, kappa=2.0)), DataSet("CIFAR-10-JPEG", (), "abc", {})
    name = task.name(cifar)
    assert name.startswith("cifar-10-jpeg-tiny-barlow_twins-d64-k2-m2-e10-s0-")
    for same in ({"out": "x"}, {"device": "cpu"}, {"data": "y"}, {"root": "z"}, {"log_every": 3}, {"compile": True},
                 {"sim_coeff": 3.0}):  # fmt: skip
        assert Task(replace(task.config, **same)).name(cifar) == name
    others = [{"seed": 1}, {"lambd": 0.1}, {"batch": 128}, {"fraction": 0.5}, {"recipe": "stl"}, {"lr": 2e-3}]
    names = {Task(replace(task.config, **other)).name(cifar) for other in others}
    sets = [cifar, DataSet("CIFAR-10", (), "abc", {}), DataSet("pets", (), "abc", {}), DataSet("pets", (), "def", {})]
    assert len({*names, *(task.name(d) for d in sets)}) == len(others) + 4
    other_loss = {Task(PretrainConfig(loss="vicreg", kappa=k, pairing=p)).name(cifar) for k, p in
                  ((2.0, "mean"), (8.0, "all-pairs"))}  # fmt: skip
    assert len(other_loss) == 1  # VICReg has no kappa and no pairing


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("runs: [{dimm: 3}]", "unknown setting 'dimm' .did you mean 'dim'"),
        ("runs: 3", "wanted a list of runs"),
        ("[1, 2]", "wanted a list of runs"),
        ("runs: [{dim: x}]", "dim wants int; given 'x'"),
        ("runs: [{lr: high}]", "lr wants float; given 'high'"),
        ("runs: [{views: true}]", "views wants int; given True"),
        ("runs: [3]", "each of runs are settings"),
        ("bse: {}\nruns: [{dim: 3}]", "unknown entry 'bse' .did you mean 'base'"),
        ("runs: [{dim: 3", "no suite"),
        ("runs: []", "wanted a list of runs"),
        ("runs: [{loss: barlow}]", "did you mean 'barlow_twins'"),
    ],
)
def test_a_file_that_is_no_suite_is_told_what_is_wrong(tmp_path, text, says):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=says) as error:
        read_suite(path)
    assert "\n" not in str(error.value)


def test_an_unknown_suite_is_answered_with_the_names():
    with pytest.raises(InputError, match=r"unknown suite 'cpu-project'.*did you mean 'cpu-projector'.*cifar10-views"):
        read_suite("cpu-project")
    with pytest.raises(InputError, match="unknown suite 'elsewhere/cpu-projector.yaml'"):
        read_suite("elsewhere/cpu-projector.yaml")  # a path is not answered with what comes along


@pytest.mark.parametrize("name", SHIPPED)
def test_the_suites_that_come_along_are_sound(name):
    suite = read_suite(name)
    assert suite.about
    assert len({t.name(DataSet("x", (), "", {})) for t in suite.tasks}) >= 6
    for task in suite.tasks:
        c = task.config
        assert c.probe_every
        assert c.validation
        assert c.recipe == ("stl" if "96px" in name else "cifar")
        assert c.backbone == ("tiny" if name.startswith("cpu") else "resnet50")
    small = {"CIFAR-10", "CIFAR-10-JPEG"}
    assert set(suite.sets) == ({"STL-10", "Imagenette-96"} if "96px" in name else small)


def test_every_suite_is_there_at_each_scale():
    kinds = ("projector", "views", "fraction", "pareto")
    assert {*(f"{scale}-{kind}" for scale in ("cpu", "cifar10", "96px") for kind in kinds), "cpu-96px"} == set(SHIPPED)


def test_a_suite_refuses_images_it_is_not_for(shapes, tmp_path):
    with pytest.raises(InputError, match="cpu-views is for CIFAR-10 or CIFAR-10-JPEG; given synthetic"):
        Sweep(read_suite("cpu-views"), shapes, tmp_path, CPU)


def test_one_step_of_a_resnet50_run_of_the_projector_suite(shapes, tmp_path):
    """What waits for a GPU runs: the first run of the suite, on as many images as a step of it takes here."""
    config = read_suite("cifar10-projector").tasks[0].config
    assert (config.backbone, config.batch, config.dim) == ("resnet50", 512, 256)
    small = replace(config, batch=4, validation=50, out=str(tmp_path), device="cpu", seed=0)
    run = Run(small, tmp_path, sweep.untrained_backbone(small), shapes, CPU)
    training = _Training(run, None, None)
    training.encoder.train()
    before = [p.clone() for p in training.encoder.parameters()]
    terms = training.take_step(run.splits[0].images[:4])
    assert training.features == 2048
    assert all(torch.isfinite(t) for t in terms.values())
    moved = [not torch.equal(p, q) for p, q in zip(before, training.encoder.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)


# ---- doing them -------------------------------------------------------------------------------------------------


def test_each_run_leaves_one_record_without_this_machines_paths(todo, tmp_path, shapes):
    swept = todo([{"kappa": 2.0, "baselines": True}, {"kappa": 8.0}])
    do_all(swept)
    assert swept.left == []
    found = records.read_all(tmp_path / "results")
    assert list(found) == sorted(swept.mine)
    for name, record in found.items():
        assert record["config"] == swept.mine[name].config.plain() | {"data": "synthetic"}
        assert str(tmp_path) not in json.dumps(record)
        baselines = {"untrained", "pixels"} if swept.mine[name].baselines else set()
        assert set(record["probe"]) == {"trained", "test_images", *baselines}
        assert {"linear", "knn"} <= set(record["probe"]["trained"])
        assert record["time"]["probe_seconds"] > 0
        assert ("baselines_seconds" in record["time"]) == swept.mine[name].baselines
        assert record["curves"]["evaluation_epoch"] == [1]
        assert record["spectrum"]["rankme"] > 1
        PretrainConfig(**record["config"])
    assert not (tmp_path / "results" / ".work").exists()


def test_a_swept_run_is_the_run_of_pretrain(todo, tmp_path, shapes):
    swept = todo([{"kappa": 2.0}])
    record = swept.do(swept.next())
    (task,) = swept.mine.values()
    run = pretrain(replace(task.config, data="synthetic", device="cpu", out=str(tmp_path / "run")), data=shapes)
    assert record["curves"]["loss"] == pytest.approx(run.record["curves"]["loss"], rel=1e-6)


def test_what_has_a_record_is_not_done_again(todo):
    first = todo()
    do_all(first)
    stamps = {n: first.path(n).stat().st_mtime_ns for n in first.mine}
    again = todo()
    assert again.next() is None
    more = todo([{"kappa": [2.0, 0.2, 8.0, 1.0]}])
    assert len(more.left) == 1
    do_all(more)
    assert {n: first.path(n).stat().st_mtime_ns for n in first.mine} == stamps


def test_shards_share_the_runs_out(todo):
    runs = [{"kappa": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]}]
    shards = [list(todo(runs, shard=(i, 3)).mine) for i in (1, 2, 3)]
    assert sorted(n for s in shards for n in s) == sorted(todo(runs).mine)
    assert sum(map(len, shards)) == 7
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_a_run_in_other_hands_is_left_alone(todo):
    one, other = todo(), todo()
    name = one.next()
    with lock(one.out / ".work" / f"{name}.lock") as held:
        assert held
        assert other.do(name) is None
        assert name not in other.left
        assert len(other.left) == 2
    assert not one.path(name).exists()
    assert one.do(name)


def test_no_run_is_started_that_would_not_fit(todo):
    swept = todo(stop_at=time.monotonic() + 1000)
    name = swept.next()
    swept.pace.seen = [(s[0], s[1], s[2] / 1e6, s[3]) for s in swept.pace.seen]  # a million times slower
    assert swept.predict(name) > 2000
    assert swept.next() == name  # longer than any call of this length: in parts
    swept.whole = 1e9
    assert swept.next() is None
    assert todo(stop_at=time.monotonic() - 1).next() is None


def test_a_run_that_just_misses_every_call_of_this_length_is_done_in_parts(todo):
    swept = todo([{"epochs": 60}])
    (name,) = swept.mine
    swept.measure_pace(name)
    needed = swept.predict(name)
    swept.whole, swept.stop_at = 1.2 * needed, time.monotonic() + needed  # loading and measuring took the rest
    assert swept.next() == name


def test_what_a_kill_left_behind_a_finished_run_is_cleared(todo):
    swept = todo()
    name = swept.next()
    swept.do(name)
    swept.work(name).mkdir(parents=True)
    todo()
    assert not swept.work(name).exists()


def test_a_shorter_run_later_in_the_list_uses_the_time(todo):
    swept = todo([{"epochs": [60, 1]}])
    long, short = swept.mine
    swept.measure_pace(long)
    needed = swept.predict(long)
    assert swept.predict(short) < needed / 2
    swept.stop_at, swept.whole = time.monotonic() + 0.9 * needed, 100 * needed
    assert swept.next() == short


def test_time_up_saves_and_the_next_call_goes_on(todo, equal_states):
    runs = [{"epochs": 3, "log_every": 1}]
    whole = todo(runs)
    (name,) = whole.mine
    expected = whole.do(name)
    whole.path(name).unlink()
    cut = todo(runs, stop_at=time.monotonic())
    with pytest.raises(RunStopped, match="stopped by the time limit after step 1"):
        cut.do(name)
    assert not cut.path(name).exists()
    again = todo(runs)
    fresh = todo(runs, out=cut.out.parent / "fresh")
    fresh.measure_pace(name)
    again.pace = fresh.pace
    assert 0 < again.predict(name) < fresh.predict(name)
    record = again.do(name)
    for curve in ("loss", "evaluation_linear", "step"):
        assert record["curves"][curve] == expected["curves"][curve]
    assert record["probe"] == expected["probe"]


def test_a_run_that_diverges_is_reported_and_not_tried_again(todo):
    swept = todo([{"lr": [1e18, 1e-3], "epochs": 2}])
    bad, good = swept.mine
    with pytest.raises(RunStopped, match="not finite"):
        swept.do(bad)
    assert "not finite" in swept.failed(bad)
    assert swept.left == [good]
    assert todo([{"lr": [1e18, 1e-3], "epochs": 2}]).left == [good]
    assert not swept.path(bad).exists()


def test_a_run_that_does_not_fit_the_memory_is_given_up(todo, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    swept = todo()
    first, second, third = swept.mine
    swept.measure_pace(first)
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "pretrain", full)
        with pytest.raises(RunStopped, match="not enough memory"):
            swept.do(first)
        patch.setattr(sweep, "seconds_per_step", full)
        swept.pace.seen.clear()
        assert swept.next() is None
    assert [swept.failed(n) for n in (first, second, third)] == ["not enough memory on the device"] * 3


def test_a_record_of_another_run_under_the_name_stops_the_sweep(todo):
    swept = todo([{"kappa": 2.0}])
    name = swept.next()
    record = swept.do(name)
    records.write(swept.path(name), {**record, "config": {**record["config"], "lr": 0.5}})
    with pytest.raises(InputError, match=f"{name}.json is of a run with another lr"):
        todo([{"kappa": 2.0}])


@pytest.mark.parametrize(
    ("runs", "says"),
    [([{"image_size": [16, 32]}], "differ in data, image_size"), ([{"batch": 512}], "batches of 512; too few images")],
)
def test_a_suite_that_cannot_be_done_on_these_images_says_so_before_it_starts(todo, runs, says):
    with pytest.raises(InputError, match=says):
        todo(runs)


def test_compiling_or_not_an_unfinished_run_goes_on(todo, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    runs = [{"epochs": 2, "log_every": 1, "compile": False}]
    cut = todo(runs, stop_at=time.monotonic())
    (name,) = cut.mine
    with pytest.raises(RunStopped, match="time limit"):
        cut.do(name)
    again = todo([{**runs[0], "compile": True}])
    assert again.do(name)["config"]["compile"]


def test_what_another_machine_began_says_so(todo, monkeypatch):
    runs = [{"epochs": 2, "log_every": 1}]
    cut = todo(runs, stop_at=time.monotonic())
    (name,) = cut.mine
    with pytest.raises(RunStopped):
        cut.do(name)
    again = todo(runs)
    monkeypatch.setattr("ncssl_core.pretrain.hardware", lambda _: {"device": "another"})
    record = again.do(name)
    assert record["environment"]["device"] == "another"
    assert [h["device"] for h in record["environment"]["earlier"]] == ["cpu"]
    assert not Pace(CPU, [record]).seen


def test_a_record_that_is_none_stops_the_sweep(todo, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "torn.json").write_text('{"schema": 1,')
    with pytest.raises(InputError, match=r"torn\.json is cut short"):
        todo()


# ---- how long ---------------------------------------------------------------------------------------------------


def test_time_is_predicted_from_records_of_this_device_alone(todo):
    swept = todo()
    do_all(swept)
    known = list(records.read_all(swept.out).values())
    config = replace(next(iter(swept.mine.values())).config, data="synthetic")
    pace = Pace(CPU, known)
    one, ten = pace.predict(config, 32, 5), pace.predict(config, 32, 50)
    speed = known[-1]["time"]["views_per_second"]
    assert ten.training - one.training == pytest.approx(45 * 128 / speed)
    assert pace.predict(replace(config, views=8), 32, 5).training == pytest.approx(4 * one.training)
    assert pace.predict(replace(config, backbone="resnet50"), 32, 5) is None
    assert pace.predict(config, 64, 5) is None
    for record in known:
        record["environment"]["device"] = "another"
    assert Pace(CPU, known).predict(config, 32, 5) is None


def test_the_nearest_run_is_scaled(todo):
    swept = todo([{"dim": [16, 512]}])
    do_all(swept)
    speeds = {r["config"]["dim"]: r["time"]["views_per_second"] for r in records.read_all(swept.out).values()}
    config = next(iter(swept.mine.values())).config
    for dim, near in ((32, 16), (400, 512)):
        cost = swept.pace.predict(replace(config, dim=dim), 32, 10)
        assert cost.training == pytest.approx(10 * 128 / speeds[near], rel=1e-3)


def test_a_prediction_is_about_right(todo):
    swept = todo([{"epochs": 4, "kappa": [1.0, 2.0]}])
    swept.do(swept.next())
    predicted, started = swept.predict(swept.left[0]), time.monotonic()
    swept.do(swept.next())
    assert 0.2 < (time.monotonic() - started) / predicted < 5


# ---- side by side -----------------------------------------------------------------------------------------------


def _sweep_in_a_process(path, data, out, shard, queue):
    torch.set_num_threads(1)
    todo = Sweep(read_suite(path), DataSet(*data), Path(out), CPU, shard)
    done = []
    while name := todo.next():
        if todo.do(name):
            done.append(name)
    queue.put(done)


@pytest.mark.parametrize("shards", [((1, 2), (2, 2)), ((1, 1), (1, 1))], ids=["shards", "locks"])
def test_two_processes_never_do_the_same_run(tmp_path, shapes, shards):
    path = suite_file(tmp_path, [{"kappa": [1.0, 2.0, 3.0, 4.0]}])
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    data = (shapes.name, shapes.classes, shapes.checksum, dict(shapes.splits))
    same = (path, data, tmp_path / "out")
    processes = [context.Process(target=_sweep_in_a_process, args=(*same, shard, queue)) for shard in shards]
    for process in processes:
        process.start()
    done = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert not set(done[0]) & set(done[1])
    names = Sweep(read_suite(path), shapes, tmp_path / "out", CPU).mine
    assert sorted(done[0] + done[1]) == sorted(names)
    assert sorted(records.read_all(tmp_path / "out")) == sorted(names)


def test_the_compiled_backbone_serves_the_next_run(shapes, tmp_path, monkeypatch):
    """A second run on the same shapes compiles nothing, whatever its projector and seed."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # the tracing without the C++
    torch._dynamo.reset()
    counter, made = torch._dynamo.utils.counters["stats"], []
    for dim, seed in ((16, 0), (32, 1)):
        config = PretrainConfig(**{**BASE, "dim": dim, "compile": True, "seed": seed, "out": str(tmp_path / str(dim))})
        pretrain(replace(config, device="cpu"), data=shapes)
        made.append(counter["unique_graphs"])
    assert made[1] == made[0] > 0
    torch._dynamo.reset()


def test_coverage_counts_the_records_of_each_suite_and_set():
    names = [t.name("CIFAR-10-JPEG") for t in read_suite("cpu-views").tasks]
    frame = coverage([*names[:3], "another"], ["cpu-views", "96px-views"]).set_index(["suite", "images"])
    assert frame.loc[("cpu-views", "CIFAR-10-JPEG"), "recorded"] == 3
    assert frame.loc[("cpu-views", "CIFAR-10-JPEG"), "of"] == len(set(names))
    assert frame.loc[("cpu-views", "CIFAR-10"), "recorded"] == 0
    assert frame.loc[("96px-views", "STL-10"), "command"] == "ncssl sweep 96px-views --download"
    every = len(set(names))
    assert still_to_do([*names, "another"], ["cpu-views"]).splitlines() == [
        f"- *cpu-views* on CIFAR-10: 0 of {every} runs recorded; `ncssl sweep cpu-views --download`",
        f"- *cpu-views* on CIFAR-10-JPEG: {every} of {every} runs recorded; complete",
    ]


def test_a_name_is_the_same_from_a_set_and_from_what_it_is_called():
    task = read_suite("cpu-views").tasks[0]
    assert task.name(DataSet("CIFAR-10-JPEG", (), "x", {})) == task.name("CIFAR-10-JPEG")


def test_short_runs_side_by_side(config, shapes):
    runs = [replace(config, out=None, dim=dim, validation=80, probe_every=1) for dim in (4, 16)]
    frame = compare(runs, shapes)
    assert frame.dim.tolist() == [4, 16]
    for row, record in zip(frame.itertuples(), frame.attrs["records"], strict=True):
        assert row.validation == record["curves"]["evaluation_linear"][-1]
