"""The long checks of `make check`: real images, kills at random moments, the whole command line."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ncssl_core import records

pytestmark = pytest.mark.long
DATA = Path(__file__).parents[2] / "shared" / "data"
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
@pytest.mark.parametrize("seed", range(3))
def test_cifar10_jpeg_beats_the_untrained_backbone_and_pixels(tmp_path, one_cache, seed):
    started = time.perf_counter()
    run = tmp_path / "run"
    ncssl("pretrain", "--data", CIFAR, "--backbone", "tiny", "--views", 2, "--epochs", 5, "--seed", seed,
          "--out", run, cache=one_cache)  # fmt: skip
    ncssl("probe", run, cache=one_cache)
    seconds = time.perf_counter() - started
    record = records.read(run)
    probe = record["probe"]
    trained, untrained, pixels = (probe[k]["linear"] for k in ("trained", "untrained", "pixels"))
    print(f"\nseed {seed}: linear {trained:.2f}, untrained {untrained:.2f}, pixels {pixels:.2f}, {seconds:.0f} s")
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


def test_the_demo_learns_the_shapes(tmp_path):
    run = tmp_path / "run"
    ncssl("pretrain", "--epochs", 10, "--out", run)
    ncssl("probe", run)
    probe = records.read(run)["probe"]
    assert probe["trained"]["linear"] > probe["untrained"]["linear"] + 25
    assert probe["untrained"]["linear"] < 35
    assert probe["pixels"]["linear"] < 25


def test_the_benchmark_runs(tmp_path):
    bench = Path(__file__).parents[1] / "benchmarks" / "bench.py"
    parts = ["loss", "step", "memory"]  # the others want peers, which `make bench` installs
    subprocess.run([sys.executable, bench, *parts, "--quick", "--data", "synthetic", "--out", tmp_path], check=True)
    (result,) = tmp_path.glob("*.json")
    assert len(json.loads(result.read_text())["rows"]) > 10
