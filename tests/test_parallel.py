"""Several processes on one batch are one process with all of it: losses, gradients, runs, restarts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from parallel_worker import CASES, step

from ncssl_core import InputError, parallel, records
from ncssl_core.parallel import SyncBatchNorm

HERE = Path(__file__).parent
RUN = ["-m", "ncssl_core", "pretrain", "--dim", "16", "--batch", "64", "--fraction", "0.064", "--log-every", "2",
       "--views", "2", "--device", "cpu"]  # fmt: skip


def torchrun(processes, *words, restarts=0, **kw):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes,
               "--max-restarts", restarts, *words]  # fmt: skip
    return subprocess.Popen(
        [*map(str, command)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kw
    )


def done(process, code=0, timeout=240):
    out, _ = process.communicate(timeout=timeout)
    assert process.returncode == code, out
    return out


# ---- without other processes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 5), (12, 5, 3, 4)])
def test_alone_synchronised_normalisation_is_torchs(shape):
    plain = (torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d)(5)
    ours = SyncBatchNorm(5)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(shape)
    for _ in range(2):
        assert torch.equal(plain(x), ours(x))
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), ours.buffers(), strict=True))


def test_alone_nothing_is_shared():
    module = torch.nn.Linear(2, 2)
    assert parallel.shared(module, torch.device("cpu")) is module
    assert parallel.share_of(7) == slice(0, 7)
    assert parallel.highest(3, 1) == [3, 1]
    x = torch.ones(2, requires_grad=True)
    assert parallel.total(x) is x


# ---- with them --------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("processes", [2, 4])
def test_gradients_of_shared_batches_are_those_of_one_process(processes, tmp_path):
    out = done(torchrun(processes, HERE / "parallel_worker.py", tmp_path / "found.json"))
    assert "Error" not in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found.keys() == CASES.keys()
    for name, case in CASES.items():
        alone = step(*case)
        for part in ("gradients", "running"):
            theirs, ours = (np.concatenate(x[part]) for x in (found[name], alone))
            assert_allclose(theirs, ours, rtol=1e-6, atol=1e-9 * np.abs(ours).max(), err_msg=f"{name}: {part}")
        for term, value in alone["terms"].items():
            assert found[name]["terms"][term] == pytest.approx(value, rel=1e-9)
        assert np.abs(np.concatenate(found[name]["gradients"])).max() > 1e-3


@pytest.mark.long
def test_a_run_on_four_goes_on_with_two_and_with_one(tmp_path):
    run, whole = tmp_path / "shared", tmp_path / "alone"
    for processes, epochs in ((4, 1), (2, 2), (1, 3)):
        done(torchrun(processes, *RUN, "--epochs", epochs, "--out", run, *(["--resume"] if epochs > 1 else [])))
        record = records.read(run)
        assert record["time"]["steps"] == 10 * epochs
        assert record["environment"].get("processes", 1) == processes
    assert [h.get("processes") for h in record["environment"]["earlier"]] == [4, 2]
    done(torchrun(1, *RUN, "--epochs", 3, "--out", whole))
    theirs, ours = (records.read(folder)["curves"] for folder in (run, whole))
    assert_allclose(theirs["loss"], ours["loss"], rtol=0.02)  # rounding, which training makes larger
    assert theirs["step"] == ours["step"]


@pytest.mark.long
def test_a_killed_process_ends_the_job_within_a_minute_and_a_restart_goes_on(tmp_path):
    run = tmp_path / "run"
    many = ("--epochs", "400", "--out", run)
    process = torchrun(2, *RUN, *many)
    child = _worker_after_first_checkpoint(process, run)
    os.kill(child, signal.SIGKILL)
    killed = time.monotonic()
    out = done(process, 1)
    assert time.monotonic() - killed < 60
    assert "SIGKILL" in out or "Signal 9" in out

    before = torch.load(run / "checkpoint.pt", weights_only=True)["epoch"]
    process = torchrun(2, *RUN, "--epochs", before + 30, "--out", tmp_path / "again", restarts=1)
    child = _worker_after_first_checkpoint(process, tmp_path / "again")
    first = (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()[0]  # its seconds are no other run's
    os.kill(child, signal.SIGKILL)
    done(process)
    assert (tmp_path / "again" / "metrics.jsonl").read_text().startswith(first)
    assert records.read(tmp_path / "again")["time"]["steps"] == 10 * (before + 30)


def _worker_after_first_checkpoint(process, run):
    """The process id of a worker, once the run has something to go on from."""
    until = time.monotonic() + 120
    while not (run / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[-1])


@pytest.mark.long
def test_sigterm_saves_on_all(tmp_path):
    run = tmp_path / "run"
    process = torchrun(2, *RUN, "--epochs", "400", "--out", run)
    _worker_after_first_checkpoint(process, run)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "stopped by SIGTERM after step" in out
    torch.load(run / "checkpoint.pt", weights_only=True)


@pytest.mark.long
def test_what_cannot_be_shared_is_refused_in_a_sentence(tmp_path):
    out = done(torchrun(3, *RUN, "--epochs", "1", "--out", tmp_path / "run"), 1)
    assert "a batch of 64 cannot be shared by 3 processes: wanted a multiple of them" in out
    script = tmp_path / "other.py"
    script.write_text(
        "import os, sys\n"
        "from ncssl_core.cli import main\n"
        f"main({RUN[2:]!r} + ['--epochs', '1', '--out', {str(tmp_path / 'other')!r},"
        " '--lr', '0.1' if os.environ['RANK'] == '1' else '0.2'])\n"
    )
    out = done(torchrun(2, script), 1)
    assert "process 1 has other settings: lr 0.1 (process 0: 0.2)" in out
    assert not (tmp_path / "other").exists()


def test_errors_are_raised_where_there_is_one_process():
    with pytest.raises(InputError, match="no"):
        parallel.by_first(_refuse)


def _refuse():
    raise InputError("no")
