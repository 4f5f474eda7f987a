"""The long checks of `make check`: real images, kills at random moments, the whole command line."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import install, python_of

from ncssl_core import records
from ncssl_core.watch import lines_of

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
CIFAR, IMAGENETTE = DATA / "cifar10-jpeg.tar.xz", DATA / "imagenette-96-jpeg.tar.xz"
needs = pytest.mark.skipif
SMALL = ["--batch", "128", "--fraction", "0.2", "--dim", "64", "--device", "cpu"]


@pytest.fixture(autouse=True, scope="module")
def one_cache(tmp_path_factory):
    """Decoded once for all tests here."""
    return str(tmp_path_factory.mktemp("cache"))


def ncssl(*words, cache=None, **kw):
    env = {**os.environ, "NCSSL_STATIC": "1", **({"NCSSL_CACHE": cache} if cache else {})}
    return subprocess.run([sys.executable, "-m", "ncssl_core", *map(str, words)], check=True, env=env, text=True, **kw)


@needs(not CIFAR.exists(), reason="the real images are not beside this checkout")
def test_cifar10_jpeg_beats_the_untrained_backbone_and_pixels(tmp_path, one_cache):
    started = time.perf_counter()
    run = tmp_path / "run"
    ncssl("pretrain", "--data", CIFAR, "--epochs", 5, "--out", run, cache=one_cache)
    ncssl("probe", run, cache=one_cache)
    seconds = time.perf_counter() - started
    record = records.read(run)
    probe = record["probe"]
    trained, untrained, pixels = (probe[k]["linear"] for k in ("trained", "untrained", "pixels"))
    print(f"\nlinear {trained:.2f}, untrained {untrained:.2f}, pixels {pixels:.2f}, {seconds:.0f} s")
    assert record["data"]["name"] == "CIFAR-10-JPEG"
    assert trained >= untrained + 2
    assert trained >= pixels + 2


@needs(not IMAGENETTE.exists(), reason="the real images are not beside this checkout")
def test_imagenette_beats_the_untrained_backbone(tmp_path, one_cache):
    run = tmp_path / "run"
    ncssl("pretrain", "--data", IMAGENETTE, "--recipe", "stl", "--size", 64, "--epochs", 8, "--out", run,
          cache=one_cache)  # fmt: skip
    ncssl("probe", run, cache=one_cache)
    probe = records.read(run)["probe"]
    print(f"\nlinear {probe['trained']['linear']:.2f}, untrained {probe['untrained']['linear']:.2f}")
    assert probe["trained"]["linear"] >= probe["untrained"]["linear"] + 2


def test_ten_kills_at_random_moments_then_resumed_are_bit_equal(tmp_path, equal_states):
    settings = ["pretrain", "--data", "synthetic", "--epochs", "4", *SMALL]
    started = time.perf_counter()
    ncssl(*settings, "--out", tmp_path / "whole")
    duration = time.perf_counter() - started
    for trial in range(10):
        run = tmp_path / f"run{trial}"
        command = [sys.executable, "-m", "ncssl_core", *settings, "--out", str(run)]
        process = subprocess.Popen(command, env={**os.environ, "NCSSL_STATIC": "1"})
        time.sleep(random.Random(trial).uniform(0.2, 0.98) * duration)
        process.send_signal(signal.SIGKILL)
        process.wait()
        ncssl(*settings, "--resume", "--out", run)
        assert equal_states(run, tmp_path / "whole"), f"trial {trial}"
        assert records.read(run)["time"]["steps"] == records.read(tmp_path / "whole")["time"]["steps"]


def test_sigterm_saves_and_says_how_to_go_on(tmp_path, equal_states):
    settings = ["pretrain", "--epochs", "3", *SMALL]
    ncssl(*settings, "--out", tmp_path / "whole")
    run = tmp_path / "run"
    command = [sys.executable, "-m", "ncssl_core", *settings, "--log-every", "1", "--out", str(run)]
    process = subprocess.Popen(command, env={**os.environ, "NCSSL_STATIC": "1"}, stderr=subprocess.PIPE, text=True)
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    _, error = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert f"go on with `ncssl pretrain --resume --out {run}`" in error
    ncssl("pretrain", "--resume", "--out", run)
    assert equal_states(run, tmp_path / "whole")


def sweep(suite, data, out, *more, cache=None):
    env = {**os.environ, "NCSSL_STATIC": "1", **({"NCSSL_CACHE": cache} if cache else {})}
    words = ["sweep", suite, "--data", data, "--out", out, "--device", "cpu", *more]
    return subprocess.Popen([sys.executable, "-m", "ncssl_core", *map(str, words)], env=env, stdout=subprocess.PIPE)


def names(process):
    """The runs that a sweep says it has done, once it is over."""
    out, _ = process.communicate()
    assert process.returncode == 0
    return [line.partition(b":")[0].decode() for line in out.splitlines() if b": linear " in line]


@pytest.fixture
def suite(tmp_path):
    """Four short runs on the built-in images."""
    base = {"dim": 64, "epochs": 2, "batch": 128, "fraction": 0.2, "validation": 500, "probe_every": 1}
    path = tmp_path / "try.yaml"
    path.write_text(yaml.safe_dump({"base": base, "runs": [{"kappa": [2.0, 8.0], "seed": [0, 1]}]}))
    return path


def test_a_sweep_killed_at_ten_random_moments_leaves_every_record_whole_and_once(suite, tmp_path):
    started = time.perf_counter()
    assert len(names(sweep(suite, "synthetic", tmp_path / "whole"))) == 4
    duration, whole = time.perf_counter() - started, records.read_all(tmp_path / "whole")
    out, before = tmp_path / "killed", {}
    for trial in range(10):
        process = sweep(suite, "synthetic", out)
        time.sleep(random.Random(trial).uniform(0.1, 0.4) * duration)
        process.kill()
        process.communicate()
        found = records.read_all(out) if out.exists() else {}  # raises where one is torn
        assert before.items() <= found.items()  # none is lost, none written again
        before = found
        if len(found) == 4:  # all done: the next kills fall on a new folder
            out, before = tmp_path / f"killed after {trial}", {}
    names(sweep(suite, "synthetic", out))
    found = records.read_all(out)
    assert before.items() <= found.items()
    assert found.keys() == whole.keys()
    for name, record in found.items():
        for part in ("config", "probe"):
            assert record[part] == whole[name][part]
        assert record["curves"]["loss"] == whole[name]["curves"]["loss"]


@pytest.mark.parametrize("shards", [("1/2", "2/2"), ("1/1", "1/1")], ids=["shards", "no shards"])
def test_two_sweeps_side_by_side_share_the_runs_out(suite, tmp_path, shards):
    both = [sweep(suite, "synthetic", tmp_path / "out", "--shard", shard) for shard in shards]
    done = [names(process) for process in both]
    assert len(records.read_all(tmp_path / "out")) == 4
    assert len(done[0]) + len(done[1]) == 4
    assert not set(done[0]) & set(done[1])


@needs(not CIFAR.exists(), reason="the real images are not beside this checkout")
def test_a_sweep_keeps_to_its_time_and_the_next_call_goes_on(tmp_path, one_cache):
    """Runs as those at CPU scale but shorter, so that a call has time for some of the twelve on any machine."""
    base = yaml.safe_load((ROOT / "experiments" / "cpu-projector.yaml").read_text())["base"]
    suite, out, known = tmp_path / "short.yaml", tmp_path / "out", []
    runs = [{"dim": [16, 64, 256, 1024], "kappa": [0.2, 2.0, 8.0]}]
    suite.write_text(yaml.safe_dump({"base": base | {"fraction": 0.1, "epochs": 2}, "runs": runs}))
    for budget in (180, 120):
        started = time.perf_counter()
        done = names(sweep(suite, CIFAR, out, "--time-budget", f"{budget}s", cache=one_cache))
        seconds = time.perf_counter() - started
        print(f"\nbudget {budget} s: {len(done)} runs in {seconds:.0f} s")
        assert seconds < budget + 5
        assert done
        known += done
    assert len(set(known)) == len(known) == len(records.read_all(out))


@needs(not CIFAR.exists(), reason="the real images are not beside this checkout")
def test_the_cheapest_record_comes_out_again(tmp_path, one_cache):
    """The recorded accuracy of the shortest run at CPU scale, within 1.5 points."""
    results = records.read_all(ROOT / "results")
    small = {
        n: r for n, r in results.items() if r["data"]["name"] == "CIFAR-10-JPEG" and r["config"]["backbone"] == "tiny"
    }
    name, before = min(small.items(), key=lambda item: item[1]["time"]["training_seconds"])
    out = ("data", "root", "device", "out")
    config = {k: v for k, v in before["config"].items() if k not in out}
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump({"runs": [{k: v for k, v in config.items() if v is not None}]}))
    assert names(sweep(path, CIFAR, tmp_path / "out", cache=one_cache)) == [name]
    again = records.read(tmp_path / "out" / f"{name}.json")
    a, b = (r["probe"]["trained"]["linear"] for r in (before, again))
    print(f"\n{name}: recorded {a:.2f}, again {b:.2f}")
    assert abs(a - b) <= 1.5
    assert before["data"]["checksum"] == again["data"]["checksum"]


def test_suites_and_results_travel_in_the_wheel(tmp_path):
    copy = shutil.copytree(ROOT, tmp_path / "copy", ignore=shutil.ignore_patterns(".*", "build", "runs", "*.egg-info"))
    words = ["pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "-w", tmp_path, copy]
    subprocess.run([sys.executable, "-m", *map(str, words)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    for folder in ("experiments", "results", "benchmarks/results"):
        files = {p.name for p in (ROOT / folder).iterdir() if p.is_file()}
        assert files
        assert {p.name for p in inside if p.parent == Path("ncssl_core", folder)} == files


def test_the_demo_learns_the_shapes(tmp_path):
    run = tmp_path / "run"
    ncssl("pretrain", "--epochs", 10, "--out", run)
    ncssl("probe", run)
    probe = records.read(run)["probe"]
    assert probe["trained"]["linear"] > probe["untrained"]["linear"] + 25
    assert probe["untrained"]["linear"] < 35
    assert probe["pixels"]["linear"] < 25


def test_the_benchmark_runs(tmp_path):
    bench = ROOT / "benchmarks" / "bench.py"
    parts = ["loss", "step", "memory"]  # the others want peers, which `make bench` installs
    subprocess.run([sys.executable, bench, *parts, "--quick", "--data", "synthetic", "--out", tmp_path], check=True)
    (result,) = tmp_path.glob("*.json")
    assert len(json.loads(result.read_text())["rows"]) > 10


def test_the_package_passes_its_tests_at_its_lower_bounds(tmp_path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = (
        project["dependencies"] + extras["book"] + [d for d in extras["test"] if re.match("pytest|hypothesis|timm", d)]
    )
    python = python_of(tmp_path / "venv")
    install(python, *(d.replace(">=", "==") for d in wanted))
    words = ["-m", "pytest", "-q", "-o", "filterwarnings=default", "-p", "no:cacheprovider",
             "--ignore=tests/test_book.py", "--ignore=tests/test_site.py"]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NCSSL_TESTS": "brief"}
    result = subprocess.run([python, *words], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    print(result.stdout[-300:])
    assert result.returncode == 0, result.stdout[-4000:]


TWENTY_GIGABYTES = 20 * 10**9 // (3 * 32 * 32)  # images of 32 pixels


@needs(not Path("/proc/self/status").exists(), reason="no /proc to read memory from")
def test_a_set_of_twenty_gigabytes_is_streamed_in_bounded_memory(tmp_path):
    """500 steps; the made-up file is mostly holes, so that it takes little of the disk, not of the memory."""
    images = np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.uint8, (TWENTY_GIGABYTES, 3, 32, 32))
    images[::10_000] = np.random.default_rng(0).integers(0, 256, images[::10_000].shape, dtype=np.uint8)
    del images
    settings = ["--data", tmp_path / "big.npy", "--batch", 64, "--dim", 32, "--epochs", 1, "--log-every", 10]
    run, peak, step = tmp_path / "run", 0, 0
    command = [sys.executable, "-m", "ncssl_core", "pretrain", *settings, "--device", "cpu", "--out", run]
    process = subprocess.Popen([*map(str, command)], env={**os.environ, "NCSSL_STATIC": "1"})
    while step < 500:
        assert process.poll() is None
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = max(peak, int(status.split("RssAnon:")[1].split()[0]) / 2**20)
        step = max((line["step"] for line in lines_of(run / "metrics.jsonl")), default=0)
        time.sleep(0.2)
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    print(f"\nanonymous memory at most {peak:.2f} GiB in {step} steps")
    assert peak * 2**30 < 3e9
