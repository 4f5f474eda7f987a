"""Small image sets for the tests; nothing is cached outside a test's own folder, no progress bar is drawn."""

import io
import os
import subprocess
import tarfile
import venv
import zipfile
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from ncssl_core import PretrainConfig, synthetic

settings.register_profile("quiet", deadline=None)  # a busy machine is no failing test
settings.register_profile("brief", deadline=None, max_examples=20)  # for a second run, at the lower bounds
settings.load_profile(os.environ.get("NCSSL_TESTS", "quiet"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NCSSL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("NCSSL_STATIC", "1")


@pytest.fixture(scope="session")
def shapes():
    """A little of the built-in set."""
    return synthetic(train=400, test=100)


@pytest.fixture
def config(tmp_path):
    """Two epochs of six steps on `shapes`: a second or two."""
    return PretrainConfig(dim=16, kappa=2.0, epochs=2, batch=64, log_every=2, out=str(tmp_path / "run"), device="cpu")


def picture(seed=0, size=(12, 12), mode="RGB", kind="JPEG"):
    """The bytes of a small image file."""
    channels = {"RGB": (3,), "L": (), "CMYK": (4,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels, mode=None if mode in ("RGB", "L", "RGBA") else mode).save(out, kind)
    return out.getvalue()


def files(classes=("cat", "dog"), per_class=4, splits=("train", "test"), **kw):
    """{path: bytes} of a labelled set."""
    return {
        f"{split}/{name}/{i:03}.jpg": picture(crc32(f"{split}{name}{i}".encode()), **kw)
        for split in splits for name in classes for i in range(per_class)
    }  # fmt: skip


def as_folder(root: Path, contents: dict[str, bytes]) -> Path:
    for name, data in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def as_archive(path: Path, contents: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in contents.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w:" + {".xz": "xz", ".gz": "gz", ".tar": ""}[path.suffix]) as archive:
            for name, data in contents.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def equal_states():
    """Whether two folders' backbones hold the same bits."""
    from safetensors.torch import load_file

    def compare(a, b):
        first, second = (load_file(Path(p) / "backbone.safetensors") for p in (a, b))
        return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)

    return compare


def python_of(folder):
    """A new virtual environment's Python."""
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def install(python, *words):
    subprocess.run([python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *words], check=True)
