"""What clusters, disks and other people's files do to a run: each fault, and what the user sees of it.

Elsewhere: torn and malicious checkpoints, weights that are no number (`test_pretrain`), archives cut short, images of
every mode (`test_datasets`), processes that die or were started otherwise than the rest (`test_parallel`).
"""

import io
import os
import resource
import signal
import socket
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import as_archive, as_folder, files, picture
from PIL import Image
from test_pretrain import Stop

from ncssl_core import InputError, PretrainConfig, RunStopped, load
from ncssl_core import datasets as module
from ncssl_core.base import lock
from ncssl_core.pretrain import pretrain

RUN = ["pretrain", "--dim", "16", "--batch", "64", "--fraction", "0.064", "--device", "cpu", "--log-every", "1"]


def ncssl(*words, limit=None, **environment):
    """The command in a process of its own, which may write files of at most `limit` bytes; (exit code, errors)."""

    def confine():
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-m", "ncssl_core", *map(str, words)], env=env, capture_output=True, text=True,
        preexec_fn=confine, timeout=240, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def is_a_sentence(error):
    return error.startswith("ncssl: ") and error.count("\n") == 1


# ---- disks and folders ------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_during_a_checkpoint_leaves_the_last_one(tmp_path, config, shapes):
    run = pretrain(config, data=shapes)
    checkpoint = run.folder / "checkpoint.pt"
    before = checkpoint.read_bytes()
    code, error = ncssl(*RUN, "--epochs", 1, "--out", tmp_path / "new", limit=len(before) // 2)
    assert (code, is_a_sentence(error)) == (2, True), error
    assert f"cannot write {tmp_path}/new/checkpoint.pt" in error
    assert not list((tmp_path / "new").glob("*.pt"))
    assert not list((tmp_path / "new").glob(".*"))


def test_a_disk_that_fills_up_during_the_log_is_one_sentence(tmp_path):
    code, error = ncssl(*RUN, "--epochs", 3, "--checkpoint-every", 9, "--out", tmp_path / "run", limit=2500)
    assert (code, is_a_sentence(error)) == (2, True), error
    assert f"cannot write {tmp_path}/run/metrics.jsonl: File too large" in error


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no folder here that refuses even the administrator")
def test_a_folder_that_refuses_writing_is_one_sentence():
    code, error = ncssl(*RUN, "--epochs", 1, "--out", "/proc/run")
    assert (code, is_a_sentence(error)) == (2, True), error
    assert "cannot write /proc/run" in error


def test_a_signal_in_the_middle_of_a_checkpoint_waits_for_it(config, shapes, monkeypatch, equal_states, tmp_path):
    whole = pretrain(replace(config, out=str(tmp_path / "whole")), data=shapes)
    save = torch.save

    def interrupted(state, path):
        if state["epoch"] == 1:
            signal.raise_signal(signal.SIGTERM)
        save(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", interrupted)
        with pytest.raises(RunStopped, match="stopped by SIGTERM after step"):
            pretrain(config, data=shapes)
    pretrain(config, data=shapes, resume=True)
    assert equal_states(config.folder, whole.folder)


def test_a_kill_in_the_middle_of_a_checkpoint_loses_no_older_one(config, shapes, monkeypatch, equal_states, tmp_path):
    whole = pretrain(replace(config, out=str(tmp_path / "whole")), data=shapes)

    def killed(state, path):
        path.write_bytes(b"half of")
        if state["epoch"] == 2:
            monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # the dead tidy nothing up
            raise Stop
        torch.serialization.save(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", killed)
        with pytest.raises(Stop):
            pretrain(config, data=shapes)
        patch.undo()
    monkeypatch.undo()
    assert torch.load(config.folder / "checkpoint.pt", weights_only=True)["epoch"] == 1
    assert len(list(config.folder.glob(".*.tmp"))) == 1
    pretrain(config, data=shapes, resume=True)
    assert equal_states(config.folder, whole.folder)
    assert not list(config.folder.glob(".*"))


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_in_the_folder_of_one_at_work_is_refused(config, shapes, resume):
    with lock(config.folder / ".lock") as held:
        assert held
        with pytest.raises(InputError, match=f"another process is training in {config.folder}; another --out"):
            pretrain(config, data=shapes, resume=resume)
    assert not config.folder.exists()
    pretrain(config, data=shapes)
    assert not list(config.folder.glob(".*"))


# ---- other people's files ---------------------------------------------------------------------------------------


def test_a_path_out_of_an_archive_is_no_path(tmp_path, monkeypatch):
    monkeypatch.setenv("NCSSL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "in").mkdir()
    hostile = {"../../evil.png": picture(0, kind="PNG"), "/tmp/evil.png": picture(1, kind="PNG"),
               "good/../../evil.png": picture(2, kind="PNG"), "good.png": picture(3, kind="PNG")}  # fmt: skip
    for kind in ("set.tar", "set.zip"):
        data = load(as_archive(tmp_path / "in" / kind, hostile))
        assert "good.png" in data["train"].names
        assert not any(".." in name for name in data["train"].names)
    assert not list(tmp_path.parent.rglob("evil*"))
    assert not Path("/tmp/evil.png").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "in"]


def test_links_in_an_archive_lead_nowhere(tmp_path):
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("passwords.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(InputError, match="no images in"):
        load(path)


def test_folders_that_contain_themselves_are_read_once(tmp_path):
    folder = as_folder(tmp_path / "set", files())
    (folder / "train" / "cat" / "again").symlink_to(folder / "train")
    (folder / "elsewhere").symlink_to(folder)
    data = load(folder)
    assert len(data["train"]) == 8
    (tmp_path / "linked").symlink_to(folder)
    assert len(load(tmp_path / "linked")["train"]) == 8


@pytest.mark.parametrize("kind", ["set.tar.xz", "set.tar.gz", "set.zip"])
def test_what_unpacks_to_too_much_is_refused_unread(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(module, "_LARGEST", 2**20)
    path, zeros = tmp_path / kind, 2**26
    if kind.endswith("zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.png", bytes(zeros))
    else:
        with tarfile.open(path, "w:" + kind[-2:]) as archive:
            info = tarfile.TarInfo("a.png")
            info.size = zeros
            archive.addfile(info, io.BytesIO(bytes(zeros)))
    assert path.stat().st_size < 2**20
    with pytest.raises(InputError, match=r"a.png unpacks to 0.1 GiB; an image file has at most 1 MiB"):
        load(path)


def test_an_image_of_too_many_pixels_is_named(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 2**17
    with pytest.raises(InputError, match=r"cannot read bomb.png \(DecompressionBombError: Image size"):
        load(tmp_path, image_size=32)


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_of_an_animation_the_first_picture_counts(tmp_path, kind):
    frames = [Image.fromarray(np.full((8, 8, 3), shade, np.uint8)) for shade in (40, 200)]
    lossless = {"lossless": True} if kind == "webp" else {}
    frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:], **lossless)
    assert load(tmp_path)["train"].images.unique().tolist() == [40]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_deep_images_have_the_shade_of_their_eight_bits(tmp_path, dtype):
    Image.fromarray(np.full((8, 8), 0x8000, dtype)).save(tmp_path / "a.tif")
    assert load(tmp_path)["train"].images.unique().tolist() == [128]


def test_images_of_one_pixel_are_too_small_to_learn_from(tmp_path):
    folder = as_folder(tmp_path / "set", {f"{i}.png": picture(i, (1, 1), kind="PNG") for i in range(8)})
    config = PretrainConfig(data=str(folder), batch=4, device="cpu", out=str(tmp_path / "run"))
    with pytest.raises(InputError, match="views have at least 8 pixels a side, the images have 1: give size or image"):
        pretrain(config)
    assert not (tmp_path / "run").exists()


def test_an_archive_of_empty_files_names_them(tmp_path):
    path = as_archive(tmp_path / "set.zip", {f"{i}.jpg": b"" for i in range(7)})
    with pytest.raises(InputError, match=r"cannot read 0.jpg \(empty file\), .* and 2 more; --skip-unreadable"):
        load(path)
    with pytest.raises(InputError, match="no images in"):
        load(path, skip_unreadable=True)


def test_an_array_with_code_in_it_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    np.save(tmp_path / "set.npy", np.array([Payload()], object), allow_pickle=True)
    with pytest.raises(InputError, match="is no whole numpy array"):
        load(tmp_path / "set.npy")
    np.save(tmp_path / "set.npy", np.zeros((4, 3, 8, 8), np.uint8))
    np.save(tmp_path / "set.labels.npy", np.array([Payload()] * 4, object), allow_pickle=True)
    with pytest.raises(InputError, match=r"set.labels.npy is no whole numpy array"):
        load(tmp_path / "set.npy")
    assert not (tmp_path / "pwned").exists()


def test_missing_label_files_are_said(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(InputError, match="CIFAR-10 is not, or not whole, in .*; --download fetches it"):
        load("cifar10", root=tmp_path)
    (tmp_path / "stl10_binary").mkdir()
    (tmp_path / "stl10_binary" / "train_X.bin").write_bytes(bytes(3 * 96 * 96))
    with pytest.raises(InputError, match="STL-10 is not, or not whole, in .*; --download fetches it"):
        load("stl10", root=tmp_path)
    np.save(tmp_path / "set.npy", np.zeros((80, 3, 8, 8), np.uint8))
    assert load(tmp_path / "set.npy")["train"].labels is None


# ---- settings and machines --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"dim": 0}, "dim is at least 1; given 0"),
        ({"lambd": -0.1}, "lambd is a finite weight >= 0; given -0.1"),
        ({"lambd": float("nan")}, "lambd is a finite weight >= 0; given nan"),
        ({"kappa": float("inf")}, "kappa is a finite weight >= 0; given inf"),
        ({"loss": "vicreg", "sim_coeff": float("nan")}, "sim_coeff is a finite weight >= 0; given nan"),
        ({"loss": "vicreg", "cov_coeff": -1.0}, "cov_coeff is a finite weight >= 0; given -1.0"),
        ({"lr": float("nan")}, "lr is at least 0; given nan"),
        ({"weight_decay": float("nan")}, "weight_decay is at least 0; given nan"),
        ({"fraction": float("nan")}, r"fraction is a share in \(0, 1\]; given nan"),
        ({"loss": "vicreg", "kappa": float("nan")}, "kappa is a finite number; given nan"),
    ],
)
def test_numbers_that_are_no_setting(settings, says):
    with pytest.raises(InputError, match=says):
        PretrainConfig(**settings)


def test_too_little_memory_is_one_sentence(tmp_path):
    code, error = ncssl(*RUN, "--dim", 10**8, "--epochs", 1, "--out", tmp_path / "run")
    assert (code, is_a_sentence(error)) == (2, True), error
    assert "not enough memory; a smaller dim, batch or views needs less" in error


def test_a_port_in_use_is_one_sentence(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        code, error = ncssl(*RUN, "--out", tmp_path / "run", WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", **where)
    assert code == 2
    last = error.strip().splitlines()[-1]
    assert last.startswith(f"ncssl: the processes could not meet at 127.0.0.1:{where['MASTER_PORT']}: ")
