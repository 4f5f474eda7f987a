"""Image sets as uint8 tensors: torchvision's, any folder or archive of images, a numpy array, or shapes from a seed.

    data = load("photos/")           # or "cifar10", "stl10", "synthetic", "set.tar.xz", "set.zip", "set.npy"
    data["train"].images             # (n, 3, H, W) uint8

A folder or archive holds `train/<class>/*.jpg` with optional `test/<class>/` (or `val/`) and `unlabeled/`, or images
alone, in any subfolders, which are then a training set without labels. What was decoded is cached.

An array `set.npy`, uint8 of shape `(n, 3, H, H)`, stays on disk and is mapped into memory, so that it may be larger
than memory; `set.labels.npy` beside it holds its labels, if there are any. It is taken to be in random order: a part of
it is a slice, and an epoch goes through it in blocks.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tarfile
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from io import BytesIO
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image, ImageOps
from platformdirs import user_cache_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ncssl_core.base import InputError, write_atomically
from ncssl_core.shapes import SHAPES, draw_shapes

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
NAMED = ("cifar10", "stl10", "synthetic")
_SPLITS = {"train": "train", "test": "test", "val": "test", "unlabeled": "unlabeled"}  # folder -> split
_KNOWN_ARCHIVES = {  # by SHA-256: sets whose results must not be taken for those of the set they were made from
    "c915bfff0de432feb3e45003fac09389dadc1469320f97122b59eac03fa04789": "CIFAR-10-JPEG",
    "268cb5d7e25dee0993867595225c200a37e6394e6fc1cb7c9a0dc651a7fc310c": "Imagenette-96",
}
SET_NAMES = ("CIFAR-10", "STL-10", "synthetic", *_KNOWN_ARCHIVES.values())  # what no folder's name may claim
_CACHE_FORMAT = 1
_BLOCK = 256  # images of an array on disk that are read together
_LARGEST = 2**28  # bytes of an image file; what unpacks to more is no photograph


@dataclass(frozen=True)
class Images:
    """Images of one split.

    `images` `(n, 3, H, W)` uint8; `labels` `(n,)` or None; `names`: of the files, or empty; `factors`: what a
    synthetic image was drawn from; `block`: how many that lie together on a disk are read together, 0 in memory.
    """

    images: UInt8[Tensor, "n 3 h w"]
    labels: Int64[Tensor, " n"] | None = None
    names: tuple[str, ...] = ()
    factors: dict[str, Float[Tensor, "n ..."]] = field(default_factory=dict)
    block: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor | slice) -> Images:
        """The images at `index` (a slice or an integer tensor), with their labels, names and factors."""
        positions = torch.arange(len(self))[index]
        names = tuple(self.names[i] for i in positions.tolist()) if self.names else ()
        labels = None if self.labels is None else self.labels[index]
        factors = {k: v[index] for k, v in self.factors.items()}
        return Images(self.images[index], labels, names, factors, self.block if isinstance(index, slice) else 0)

    def fraction(self, share: float, seed: int = 0) -> Images:
        """A random share of the images. For one seed a smaller share is a subset of a larger one.

        Raises:
            InputError: share outside (0, 1].
        """
        if not 0 < share <= 1:
            raise InputError(f"fraction is a share in (0, 1]; given {share}")
        if self.block:
            return self[: round(share * len(self))]
        return self if share == 1 else self[_permutation(len(self), seed)[: round(share * len(self))].sort()[0]]

    def hold_out(self, count: int, seed: int = 0) -> tuple[Images, Images]:
        """(the rest, `count` random images held out), for choosing hyper-parameters without the test set.

        Raises:
            InputError: count is negative or would leave nothing.
        """
        if not 0 <= count < len(self):
            raise InputError(f"cannot hold out {count} of {len(self)} images for validation")
        if count == 0 or self.block:
            return self[: len(self) - count], self[len(self) - count :]
        order = _permutation(len(self), seed)
        return self[order[count:].sort()[0]], self[order[:count].sort()[0]]


@dataclass(frozen=True)
class DataSet:
    """A set's splits by name (`train`, and maybe `test`, `unlabeled`), its classes, and a checksum of the pixels."""

    name: str
    classes: tuple[str, ...]
    checksum: str
    splits: dict[str, Images]
    skipped: int = 0

    def __getitem__(self, split: str) -> Images:
        """A split by name.

        Raises:
            InputError: the set has no such split; says which it has.
        """
        if split not in self.splits:
            raise InputError(f"{self.name} has no {split!r} images; it has: {', '.join(self.splits)}")
        return self.splits[split]

    def __contains__(self, split: str) -> bool:
        return split in self.splits

    def to(self, device: torch.device) -> DataSet:
        """The set with its images on a device, each split where it fits (see `place`); labels stay."""
        return replace(self, splits={n: replace(i, images=place(i.images, device)) for n, i in self.splits.items()})

    @property
    def pretraining(self) -> Images:
        """What to pretrain on: the unlabeled images where there are some, else the training images."""
        return self["unlabeled" if "unlabeled" in self else "train"]


def load(
    data: str | Path = "synthetic",
    root: str | Path = "data",
    image_size: int | None = None,
    download: bool = False,
    skip_unreadable: bool = False,
) -> DataSet:
    """An image set by name, folder or archive.

    Args:
        data: `"synthetic"`, `"cifar10"`, `"stl10"`, a folder, a `.tar`, `.tar.gz`, `.tar.xz` or `.zip`, or a `.npy`.
        root: where torchvision's sets lie.
        image_size: resize the shorter side to this many pixels and crop the centre; needed where sizes differ.
        download: let torchvision fetch what is missing.
        skip_unreadable: leave out images that cannot be decoded, and count them, instead of stopping.

    Raises:
        InputError: nothing there, no images, an empty class, unreadable images (named), images of different sizes.
    """
    if image_size is not None and image_size < 1:
        raise InputError(f"image_size is a number of pixels >= 1; given {image_size}")
    if data == "synthetic":
        return synthetic(size=image_size or 32)
    if data in ("cifar10", "stl10"):
        return _torchvision_set(str(data), Path(root), image_size, download)
    path = Path(data)
    if not path.exists():
        raise InputError(f"no data at {str(data)!r}; wanted a folder, an archive, or one of: {', '.join(NAMED)}")
    if path.suffix == ".npy":
        return _mapped(path, image_size)
    known = hash_file(path) if path.is_file() else _fingerprint(path)
    key = _key(known, image_size, skip_unreadable)
    name = _KNOWN_ARCHIVES.get(known, path.resolve().name.split(".")[0])
    if known not in _KNOWN_ARCHIVES and name in SET_NAMES:
        name += "-own"  # results on it must not be taken for those on the set of that name
    return _cached(key, lambda: _decode_all(path, name, image_size, skip_unreadable), name)


def synthetic(train: int = 10_000, test: int = 2_000, size: int = 32, seed: int = 0) -> DataSet:
    """Shapes with known factors (`ncssl_core.shapes`): ten classes, drawn in a second or two."""
    splits = {}
    for offset, (split, count) in enumerate((("train", train), ("test", test))):
        images, factors = draw_shapes(count, size, 2 * seed + offset)
        splits[split] = Images(images, factors["shape"].long(), (), factors)
    return DataSet("synthetic", SHAPES, _checksum(splits), splits)


def batches(
    images: UInt8[Tensor, "n 3 h w"],
    batch: int,
    device: torch.device,
    seed: int,
    epoch: int,
    first: int = 0,
    share: slice = slice(None),
    block: int = 0,
) -> Iterator[UInt8[Tensor, "batch 3 h w"]]:
    """One epoch in an order that depends on (seed, epoch) only, from batch `first` on; a last short batch is dropped.

    Images that lie on `device` are gathered there; others are copied over a batch at a time. Of each batch the part
    `share` is given. With `block`, blocks of so many neighbours come in random order, sixteen at a time shuffled into
    one another: what is read from a disk lies together.
    """
    order = _order(len(images), seed * 1_000_003 + epoch + 1, block).to(images.device)
    for start in range(first * batch, len(images) - batch + 1, batch):
        part = images[order[start : start + batch][share]]
        streamed = part.device.type != device.type
        yield part.pin_memory().to(device, non_blocking=True) if streamed else part


def place(images: UInt8[Tensor, "n 3 h w"], device: torch.device, reserve: float = 0.5) -> Tensor:
    """Put the images on the device if they take at most `reserve` of its free memory; else say so and stream them."""
    if device.type != "cuda":
        return images.to(device)
    free, _ = torch.cuda.mem_get_info(device)
    if images.nbytes <= reserve * free:
        return images.to(device)
    print(
        f"{images.nbytes / 2**30:.1f} GiB of images stay in host memory: {free / 2**30:.1f} GiB are free on {device}",
        file=sys.stderr,
    )
    return images


def _order(count: int, seed: int, block: int) -> Int64[Tensor, " n"]:
    if not block:
        return _permutation(count, seed)
    starts = _permutation(-(-count // block), seed) * block
    order = (starts[:, None] + torch.arange(block)).flatten()
    parts = order[order < count].split(16 * block)
    return torch.cat([part[_permutation(len(part), seed + 7919 * (i + 1))] for i, part in enumerate(parts)])


def _permutation(count: int, seed: int) -> Int64[Tensor, " n"]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


# ---- decoding folders and archives ------------------------------------------------------------------------------


def _decode_all(path: Path, name: str, image_size: int | None, skip_unreadable: bool) -> DataSet:
    found: dict[str, UInt8[np.ndarray, "h w 3"]] = {}
    unreadable: list[str] = []
    folders: set[str] = set()
    for file, pixels in _decoded(_entries(path, folders), image_size):
        if isinstance(pixels, str):
            unreadable.append(f"{file} ({pixels})")
            continue
        first = next(iter(found), file)
        if pixels.shape != found.get(first, pixels).shape:
            raise InputError(
                f"images differ in size: {first} is {_size(found[first])}, {file} is {_size(pixels)}; "
                "--image-size N makes all of them N x N"
            )
        found[file] = pixels
    if unreadable and not skip_unreadable:
        more = f" and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
        raise InputError(f"cannot read {', '.join(unreadable[:5])}{more}; --skip-unreadable leaves them out")
    if not found:
        raise InputError(f"no images in {path}; wanted train/<class>/* or images alone, as {', '.join(EXTENSIONS)}")
    classes, splits = _arrange(found, folders)
    return DataSet(name, classes, _checksum(splits), splits, len(unreadable))


def _decoded(
    entries: Iterator[tuple[str, bytes]], image_size: int | None
) -> Iterator[tuple[str, UInt8[np.ndarray, "h w 3"] | str]]:
    """Decode in order: photographs on all cores, thumbnails on one, since there threads only wait for each other."""
    waiting: deque[Future[list[tuple[str, Any]]]] = deque()

    def decode(files: list[tuple[str, bytes]]) -> list[tuple[str, Any]]:
        return [(name, _decode(data, image_size)) for name, data in files]

    with ThreadPoolExecutor() as pool:
        while part := list(islice(entries, 64)):
            if sum(len(data) for _, data in part) < 64 * 2**14 and not waiting:
                yield from decode(part)
                continue
            waiting.append(pool.submit(decode, part))
            if len(waiting) > 8:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _entries(path: Path, folders: set[str]) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of every image file, `folders` filled with the names of folders seen. Nothing is unpacked."""
    if path.is_dir():
        for folder, inner, files in _walk(path):
            inner[:] = [name for name in inner if not name.startswith(".")]
            here = folder.relative_to(path)
            folders.add(here.as_posix())
            for file in files:
                if _is_image(name := (here / file).as_posix()):
                    yield name, _read(path / name)
        return
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if info.is_dir():
                        folders.add(info.filename.rstrip("/"))
                    elif _is_image(info.filename):
                        _check_bytes(info.filename, info.file_size)
                        yield info.filename, archive.read(info)
        else:
            with tarfile.open(path, "r|*") as stream:
                for member in stream:
                    if member.isdir():
                        folders.add(member.name)
                    elif member.isfile() and _is_image(member.name):
                        _check_bytes(member.name, member.size)
                        content = stream.extractfile(member)
                        yield member.name, content.read() if content else b""
    except InputError:
        raise
    except Exception as error:  # an unpacker may raise anything on a broken archive
        raise InputError(f"cannot read {path} as an archive of images (is it complete?): {error}") from error


def _walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """(folder, sorted names of folders in it, of files), links followed unless they lead back up."""
    for here, inner, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        inner[:] = sorted(n for n in inner if not _is_above(os.path.join(here, n), real))
        yield Path(here), inner, sorted(files)


def _is_above(folder: str, real: str) -> bool:
    return os.path.islink(folder) and Path(real).is_relative_to(os.path.realpath(folder))


def _check_bytes(name: str, size: int) -> None:
    if size > _LARGEST:
        raise InputError(f"{name} unpacks to {size / 2**30:.1f} GiB; an image file has at most {_LARGEST >> 20} MiB")


def _read(path: Path) -> bytes:
    try:
        _check_bytes(str(path), path.stat().st_size)
        return path.read_bytes()
    except OSError:
        return b""  # decoding then reports it as unreadable, by name


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in EXTENSIONS and not any(
        p.startswith((".", "__MACOSX")) for p in path.parts if p != "."
    )


def _decode(data: bytes, image_size: int | None) -> UInt8[np.ndarray, "h w 3"] | str:
    """RGB pixels, upright, or why not."""
    try:
        with Image.open(BytesIO(data)) as image:
            if image_size is not None:
                image.draft("RGB", (2 * image_size, 2 * image_size))  # a large JPEG need not be decoded in full
            upright: Image.Image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion would clip them
                upright = Image.fromarray((np.asarray(upright, np.int64).clip(0, 65535) >> 8).astype(np.uint8))
            upright = upright.convert("RGB")
            if image_size is not None:
                upright = ImageOps.fit(upright, (image_size, image_size), Image.Resampling.BICUBIC)
            return np.asarray(upright)
    except Exception as error:  # a decoder may raise anything on a broken file
        return "empty file" if not data else f"{type(error).__name__}: {error}".split("\n")[0]


def _arrange(found: dict[str, Any], folders: set[str]) -> tuple[tuple[str, ...], dict[str, Images]]:
    """Splits and labels from the files' places."""
    prefix = _common_prefix(found)
    if not any(_relative(name, prefix)[0] == "train" for name in found):
        return (), {"train": _images(found, sorted(found))}
    groups: dict[str, dict[str, list[str]]] = {}
    has_test = any(_relative(name, prefix)[0] == "test" for name in found)  # then val/ is somebody's own
    for name in sorted(found):
        top, *rest = _relative(name, prefix)
        if top in _SPLITS and not (top == "val" and has_test):
            label = rest[0] if len(rest) > 1 else ""
            groups.setdefault(_SPLITS[top], {}).setdefault(label, []).append(name)
    _check_classes(groups, {_relative(f, prefix) for f in folders})
    classes = tuple(sorted(groups["train"])) if "" not in groups["train"] else ()
    splits = {}
    for split in ("train", "test", "unlabeled"):
        names = [n for group in sorted(groups.get(split, {}).items()) for n in group[1]]
        if names:
            labelled = classes if split != "unlabeled" else ()
            sizes = [len(groups[split].get(c, [])) for c in labelled]
            labels = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor(sizes)) if labelled else None
            splits[split] = _images(found, names, labels)
    return classes, splits


def _check_classes(groups: dict[str, dict[str, list[str]]], folders: set[tuple[str, ...]]) -> None:
    labelled = set(groups["train"])
    if "" in labelled and len(labelled) > 1:
        raise InputError(f"train/ mixes images in class folders with images in none: {groups['train'][''][0]}")
    empty = sorted(f[1] for f in folders if len(f) == 2 and f[0] == "train" and not any(
        f[1] == c for c in labelled))  # fmt: skip
    if empty and "" not in labelled:
        raise InputError(f"class folder train/{empty[0]} holds no images")
    if "" not in labelled and (strange := sorted(set(groups.get("test", {})) - labelled)):
        raise InputError(f"test/ has a class that train/ has not: {strange[0] or 'images in no class folder'}")


def _images(found: dict[str, Any], names: list[str], labels: Tensor | None = None) -> Images:
    pixels = torch.from_numpy(np.stack([found[n] for n in names]))
    return Images(pixels.permute(0, 3, 1, 2).contiguous(), labels, tuple(names))


def _common_prefix(names: Iterable[str]) -> int:
    """How many leading folders all names share, short of a split's own folder."""
    parts = [PurePosixPath(n).parts for n in names]
    depth = 0
    while all(len(p) > depth + 1 and p[depth] == parts[0][depth] for p in parts) and parts[0][depth] not in _SPLITS:
        depth += 1
    return depth


def _relative(name: str, prefix: int) -> tuple[str, ...]:
    return PurePosixPath(name).parts[prefix:]


def _size(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


# ---- arrays on disk ---------------------------------------------------------------------------------------------


def _mapped(path: Path, image_size: int | None) -> DataSet:
    """Images that stay on disk: pages are read when used, and given back when the system needs room."""
    pixels, wanted = _array(path, "c"), "wanted uint8 images of shape (n, 3, H, H)"
    square = pixels.ndim == 4 and pixels.shape[1] == 3 and pixels.shape[2] == pixels.shape[3]
    if pixels.dtype != np.uint8 or not square or not pixels.size:
        raise InputError(f"{path} holds {pixels.dtype} of shape {pixels.shape}; {wanted}")
    if image_size not in (None, pixels.shape[-1]):
        raise InputError(
            f"{path} holds images of {pixels.shape[-1]} pixels, which are used as they are; leave --image-size out"
        )
    labels, beside = None, path.with_suffix(".labels.npy")
    if beside.exists():
        given = _array(beside, "r")
        if given.shape != (len(pixels),) or given.dtype.kind not in "iu" or given.min() < 0:
            raise InputError(f"{beside} holds {given.dtype} of shape {given.shape}; wanted {len(pixels)} integers >= 0")
        labels = torch.from_numpy(given.astype(np.int64))
    images = Images(torch.from_numpy(pixels), labels, block=_BLOCK)
    some = torch.arange(0, len(pixels), max(1, len(pixels) // 1000))  # to tell sets apart without reading all of it
    checksum = hashlib.sha256(f"{pixels.shape} {_checksum({'train': images[some]})}".encode()).hexdigest()
    classes = () if labels is None else tuple(map(str, range(int(labels.max()) + 1)))
    name = f"{path.stem}-own" if path.stem in SET_NAMES else path.stem
    return DataSet(name, classes, checksum, {"train": images})


def _array(path: Path, mode: Literal["r", "c"]) -> np.ndarray[Any, Any]:
    try:
        loaded: np.ndarray[Any, Any] = np.load(path, mmap_mode=mode, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is no whole numpy array ({str(error).splitlines()[0]})") from error
    return loaded


# ---- torchvision's sets -----------------------------------------------------------------------------------------


def _torchvision_set(data: str, root: Path, image_size: int | None, download: bool) -> DataSet:
    from torchvision.datasets import CIFAR10, STL10

    name, folder, splits = {
        "cifar10": ("CIFAR-10", CIFAR10.base_folder, ("train", "test")),
        "stl10": ("STL-10", STL10.base_folder, ("train", "test", "unlabeled")),
    }[data]

    def read() -> DataSet:
        loaded = {}
        for split in splits:
            if data == "cifar10":
                cifar = CIFAR10(root, train=split == "train", download=download)
                images, labels, classes = cifar.data.transpose(0, 3, 1, 2), cifar.targets, cifar.classes
            else:
                stl = STL10(root, split=split, download=download)
                images, labels, classes = stl.data, stl.labels, stl.classes
            pixels = torch.from_numpy(np.ascontiguousarray(images))
            truth = None if split == "unlabeled" else torch.as_tensor(np.asarray(labels), dtype=torch.int64)
            loaded[split] = Images(_shrink(pixels, image_size), truth)
        return DataSet(name, tuple(classes), _checksum(loaded), loaded)

    try:
        if download or not (root / folder).is_dir():
            read_now = read()  # torchvision fetches, or says what is missing
            return _cached(_key(_fingerprint(root / folder), image_size), lambda: read_now, name)
        return _cached(_key(_fingerprint(root / folder), image_size), read, name)
    except (RuntimeError, FileNotFoundError) as error:
        raise InputError(f"{name} is not, or not whole, in {root}/; --download fetches it ({error})") from error


def _shrink(images: UInt8[Tensor, "n 3 h w"], size: int | None) -> UInt8[Tensor, "n 3 s s"]:
    if size is None or images.shape[-2:] == (size, size):
        return images
    parts = [torch.nn.functional.interpolate(i.float(), size=size, mode="bicubic", antialias=True)
             for i in images.split(1024)]  # fmt: skip
    return torch.cat([p.round_().clamp_(0, 255).to(torch.uint8) for p in parts])


# ---- cache ------------------------------------------------------------------------------------------------------


def _cached(key: str, make: Any, name: str) -> DataSet:
    folder = Path(os.environ.get("NCSSL_CACHE") or user_cache_path("ncssl"))
    path = folder / f"{key}.safetensors"
    if path.exists() and (cached := _from_cache(path, name)):
        return cached
    made: DataSet = make()
    tensors = {f"{split}/images": i.images for split, i in made.splits.items()}
    tensors |= {f"{split}/labels": i.labels for split, i in made.splits.items() if i.labels is not None}
    about = {"classes": made.classes, "checksum": made.checksum, "skipped": made.skipped,
             "names": {split: i.names for split, i in made.splits.items()}}  # fmt: skip
    try:
        write_atomically(path, lambda p: save_file(tensors, p, {"about": json.dumps(about)}))
    except InputError as error:
        print(f"not cached, will be decoded again next time: {error}", file=sys.stderr)
    return made


def _from_cache(path: Path, name: str) -> DataSet | None:
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
            splits, keys = {}, set(file.keys())
            for split, names in about["names"].items():
                labels = file.get_tensor(f"{split}/labels") if f"{split}/labels" in keys else None
                splits[split] = Images(file.get_tensor(f"{split}/images"), labels, tuple(names))
        return DataSet(name, tuple(about["classes"]), about["checksum"], splits, about["skipped"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        path.unlink(missing_ok=True)  # torn or foreign: decode again
        return None


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fingerprint(folder: Path) -> str:
    """Of a folder: names, sizes and times of everything below it."""
    listing = hashlib.sha256(str(folder.resolve()).encode())
    for here, inner, files in _walk(folder):
        listing.update(repr((str(here), inner)).encode())
        for file in files:
            path = here / file
            stat = path.stat() if path.exists() else None  # a dangling link has none
            listing.update(repr((file, stat and (stat.st_size, stat.st_mtime_ns))).encode())
    return listing.hexdigest()


def _key(*what: Any) -> str:
    return hashlib.sha256(repr((_CACHE_FORMAT, *what)).encode()).hexdigest()[:32]


def _checksum(splits: dict[str, Images]) -> str:
    digest = hashlib.sha256()
    for split in sorted(splits):
        digest.update(f"{split}{tuple(splits[split].images.shape)}".encode())
        for tensor in (splits[split].images, splits[split].labels):
            if tensor is not None:
                digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
