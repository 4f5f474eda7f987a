"""Image sets from every place they may come from, and what is said of those that cannot be used."""

import io
import pickle
import re
import time

import numpy as np
import pytest
import torch
from conftest import as_archive, as_folder, files, picture
from PIL import Image

from ncssl_core import InputError, load, synthetic
from ncssl_core import datasets as module
from ncssl_core.datasets import batches, place


@pytest.mark.parametrize("kind", ["folder", "set.tar", "set.tar.gz", "set.tar.xz", "set.zip"])
@pytest.mark.parametrize("prefix", ["", "my set/inner/"])
def test_the_same_set_from_a_folder_or_an_archive(tmp_path, kind, prefix):
    contents = {prefix + name: data for name, data in files().items()}
    if kind == "folder":
        data = load(as_folder(tmp_path / "set", contents))
    else:
        data = load(as_archive(tmp_path / kind, contents))
    assert data.classes == ("cat", "dog")
    assert data.name == "set"
    train = data["train"]
    assert train.images.shape == (8, 3, 12, 12)
    assert train.images.dtype == torch.uint8
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    assert train.names[0].endswith("train/cat/000.jpg")
    first = np.asarray(Image.open(io.BytesIO(contents[prefix + "train/cat/000.jpg"])))
    assert np.array_equal(train.images[0].permute(1, 2, 0), first)
    assert data.checksum == load(as_folder(tmp_path / "again", contents)).checksum


def test_images_alone_are_a_training_set_without_labels(tmp_path):
    contents = {f"holiday/day{i}/{j}.png": picture(10 * i + j, kind="PNG") for i in range(2) for j in range(3)}
    data = load(as_folder(tmp_path / "photos", contents))
    assert data.classes == ()
    assert data["train"].labels is None
    assert len(data["train"]) == 6
    with pytest.raises(InputError, match="photos has no 'test' images; it has: train"):
        data["test"]


def test_unlabeled_and_val_folders(tmp_path):
    contents = {**files(splits=("train", "val")), "unlabeled/a.jpg": picture(1), "unlabeled/x/b.jpg": picture(2)}
    data = load(as_folder(tmp_path / "set", contents))
    assert len(data["test"]) == 8
    assert len(data.pretraining) == 2
    assert data["unlabeled"].labels is None


def test_hidden_folders_are_no_classes_and_val_is_not_mixed_into_test(tmp_path):
    contents = {**files(splits=("train", "val", "test")), "train/.ipynb_checkpoints/a.jpg": picture()}
    data = load(as_folder(tmp_path / "set", contents))
    assert data.classes == ("cat", "dog")
    assert len(data["test"]) == 8
    assert data["test"].names[0] == "test/cat/000.jpg"


def test_a_test_set_may_lack_a_class(tmp_path):
    contents = files()
    data = load(as_folder(tmp_path / "s", {k: v for k, v in contents.items() if not k.startswith("test/cat")}))
    assert data["test"].labels.tolist() == [1] * 4


@pytest.mark.parametrize(
    ("size", "mode", "kind"), [((12, 12), "L", "PNG"), ((12, 12), "CMYK", "JPEG"), ((12, 12), "RGBA", "PNG"),
                               ((1, 1), "RGB", "PNG"), ((12, 12), "RGB", "GIF")],
)  # fmt: skip
def test_every_kind_of_image_becomes_rgb(tmp_path, size, mode, kind):
    data = load(as_folder(tmp_path / "s", {f"a.{kind.lower()}": picture(0, size, mode, kind)}))
    assert data["train"].images.shape == (1, 3, *size)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(tmp_path / "deep.png")
    assert load(tmp_path)["train"].images.unique().tolist() == [128]


def test_photographs_stand_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    Image.fromarray(np.zeros((10, 20, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert load(tmp_path)["train"].images.shape[-2:] == (20, 10)


def test_image_size_resizes_and_crops_the_centre(tmp_path):
    contents = {"a.png": picture(0, (40, 20), kind="PNG"), "b.jpg": picture(1, (15, 33))}
    folder = as_folder(tmp_path / "s", contents)
    with pytest.raises(InputError, match=r"a.png is 40x20, b.jpg is 15x33; --image-size"):
        load(folder)
    data = load(folder, image_size=16)
    assert data["train"].images.shape == (2, 3, 16, 16)
    image = Image.open(io.BytesIO(contents["a.png"]))
    centre = image.resize((16, 16), Image.Resampling.BICUBIC, box=(10, 0, 30, 20))
    assert np.array_equal(data["train"].images[0].permute(1, 2, 0), centre)


def broken(what):
    good = files()
    if what == "truncated":
        good["train/dog/001.jpg"] = good["train/dog/001.jpg"][:100]
    elif what == "empty":
        good["train/dog/001.jpg"] = b""
    elif what == "text":
        good["train/dog/001.jpg"] = b"not an image at all"
    return good


@pytest.mark.parametrize("what", ["truncated", "empty", "text"])
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_an_unreadable_image_is_named_and_may_be_skipped(tmp_path, what, kind):
    contents = broken(what)
    path = as_folder(tmp_path / "s", contents) if kind == "folder" else as_archive(tmp_path / "s.tar", contents)
    with pytest.raises(InputError, match=r"cannot read train/dog/001.jpg \(.+\); --skip-unreadable"):
        load(path)
    data = load(path, skip_unreadable=True)
    assert data.skipped == 1
    assert data["train"].labels.tolist() == [0] * 4 + [1] * 3


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({}, "no images in .*; wanted train/<class>"),
        ({"notes.txt": b"x"}, "no images in"),
        ({**files(), "train/emu/readme.txt": b""}, "class folder train/emu holds no images"),
        ({**files(), "train/loose.jpg": picture()}, "train/ mixes images in class folders with images in none"),
        ({**files(), "test/emu/a.jpg": picture()}, "test/ has a class that train/ has not: emu"),
    ],
)
def test_folders_that_make_no_set(tmp_path, contents, message):
    folder = as_folder(tmp_path / "s", contents)
    folder.mkdir(exist_ok=True)
    with pytest.raises(InputError, match=message):
        load(folder)


@pytest.mark.parametrize("kind", ["s.tar.xz", "s.zip", "s.tar"])
def test_an_archive_cut_short_is_one_sentence(tmp_path, kind):
    path = as_archive(tmp_path / kind, files(per_class=30))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"cannot read .* as an archive of images \(is it complete\?\)|cannot read tr"):
        load(path)


def test_a_missing_place_lists_what_there_is(tmp_path):
    with pytest.raises(InputError, match="wanted a folder, an archive, or one of: cifar10, stl10, synthetic"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="CIFAR-10 is not, or not whole, in .*; --download fetches it"):
        load("cifar10", root=tmp_path)


def test_nothing_is_decoded_twice(tmp_path, monkeypatch):
    folder = as_folder(tmp_path / "s", files())
    before = load(folder)
    monkeypatch.setattr(module, "_decode_all", None)  # a second decoding would fail
    after = load(folder)
    assert torch.equal(before["train"].images, after["train"].images)
    assert after["train"].names == before["train"].names
    assert after["test"].labels.tolist() == before["test"].labels.tolist()
    monkeypatch.undo()
    time.sleep(0.01)
    (folder / "train/cat/000.jpg").write_bytes(picture(99))  # a changed folder is another set
    assert load(folder).checksum != before.checksum


def test_a_torn_cache_file_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("NCSSL_CACHE", str(tmp_path / "cache"))
    folder = as_folder(tmp_path / "s", files())
    before = load(folder)
    (cached,) = (tmp_path / "cache").iterdir()
    cached.write_bytes(cached.read_bytes()[:-50])
    assert load(folder).checksum == before.checksum
    assert load(folder).checksum == before.checksum


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NCSSL_CACHE", str(tmp_path / "file"))
    assert len(load(as_folder(tmp_path / "s", files()))["train"]) == 8
    assert "not cached" in capsys.readouterr().err


# ---- torchvision's sets, in their real layouts --------------------------------------------------------------------


def test_stl10_loads_through_torchvision_with_its_unlabeled_split(tmp_path, monkeypatch):
    from torchvision.datasets import STL10
    from torchvision.datasets.utils import calculate_md5

    folder = tmp_path / STL10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = {
        n: rng.integers(0, 256, (k, 3, 96, 96), np.uint8) for n, k in (("train", 6), ("test", 4), ("unlabeled", 9))
    }
    for name, images in pixels.items():
        images.transpose(0, 1, 3, 2).tofile(folder / f"{name}_X.bin")  # column-major, as published
    labels = {"train": [1, 2, 3, 10, 1, 2], "test": [4, 5, 6, 7]}
    for name, values in labels.items():
        np.array(values, np.uint8).tofile(folder / f"{name}_y.bin")
    names = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    (folder / STL10.class_names_file).write_text("\n".join(names) + "\n")
    (folder / STL10.folds_list_file).write_text("0 1 2\n")
    for attribute in ("train_list", "test_list"):  # the published checksums, made to fit these small files
        listed = [[f, calculate_md5(folder / f)] for f, _ in getattr(STL10, attribute)]
        monkeypatch.setattr(STL10, attribute, listed)

    data = load("stl10", root=tmp_path)
    assert data.name == "STL-10"
    assert data.classes == tuple(names)
    for split, images in pixels.items():
        assert np.array_equal(data[split].images, images)
    assert data["train"].labels.tolist() == [0, 1, 2, 9, 0, 1]
    assert data["unlabeled"].labels is None
    assert torch.equal(data.pretraining.images, data["unlabeled"].images)
    assert load("stl10", root=tmp_path, image_size=64)["train"].images.shape == (6, 3, 64, 64)


def test_cifar10_loads_through_torchvision(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import calculate_md5

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    for attribute in ("train_list", "test_list"):
        listed = []
        for file, _ in getattr(CIFAR10, attribute):
            batch = {"data": rng.integers(0, 256, (4, 3072), np.uint8), "labels": [0, 9, 3, 3]}
            (folder / file).write_bytes(pickle.dumps(batch))
            listed.append([file, calculate_md5(folder / file)])
        monkeypatch.setattr(CIFAR10, attribute, listed)
    names = [f"class{i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setitem(CIFAR10.meta, "md5", calculate_md5(folder / "batches.meta"))
    data = load("cifar10", root=tmp_path)
    assert data.name == "CIFAR-10"
    assert data["train"].images.shape == (20, 3, 32, 32)
    first = pickle.loads((folder / "data_batch_1").read_bytes())["data"][0]
    assert np.array_equal(data["train"].images[0].flatten(), first)
    assert data["test"].labels.tolist() == [0, 9, 3, 3]


# ---- the built-in set, and parts of a set -------------------------------------------------------------------------


def test_the_embedded_set_is_made_from_its_seed(shapes):
    assert synthetic(train=400, test=100).checksum == shapes.checksum
    assert synthetic(train=400, test=100, seed=1).checksum != shapes.checksum
    counts = shapes["train"].labels.bincount()
    assert counts.tolist() == [40] * 10
    assert torch.equal(shapes["train"].factors["shape"].long(), shapes["train"].labels)


def test_the_embedded_factors_are_independent_of_the_class():
    data = synthetic(train=4000, test=10)["train"]
    for name in ("scale", "rotation", "position", "foreground", "background", "texture", "lighting"):
        values = data.factors[name].flatten(1) if data.factors[name].ndim > 1 else data.factors[name][:, None]
        between = torch.stack([values[data.labels == c].mean(0) for c in range(10)]).var(0)
        assert (between / values.var(0) < 4 * 10 / len(data)).all(), name  # about 1 / (images a class), if independent


def test_fractions_are_nested_and_validation_is_apart(shapes):
    train = shapes["train"]
    half, quarter = train.fraction(0.5, 3), train.fraction(0.25, 3)
    assert (len(half), len(quarter)) == (200, 100)
    rows = {r.tobytes() for r in half.images.numpy()}
    assert all(r.tobytes() in rows for r in quarter.images.numpy())
    rest, held = train.hold_out(60, 1)
    assert (len(rest), len(held)) == (340, 60)
    assert not {r.tobytes() for r in rest.images.numpy()} & {r.tobytes() for r in held.images.numpy()}
    for bad in (0, 1.5, -1):
        with pytest.raises(InputError, match="share in"):
            train.fraction(bad)
    with pytest.raises(InputError, match="cannot hold out 400 of 400"):
        train.hold_out(400)


def test_batches_cover_an_epoch_once_and_can_start_in_its_middle():
    images, cpu = torch.arange(23, dtype=torch.uint8).view(23, 1, 1, 1), torch.device("cpu")
    epoch = list(batches(images, 5, cpu, seed=1, epoch=0))
    assert [len(b) for b in epoch] == [5] * 4  # the last short batch is dropped
    assert len(torch.cat(epoch).unique()) == 20
    assert all(torch.equal(a, b) for a, b in zip(epoch[2:], batches(images, 5, cpu, 1, 0, first=2), strict=True))
    assert not torch.equal(torch.cat(epoch), torch.cat(list(batches(images, 5, cpu, 1, 1))))
    assert place(images, cpu) is images


def test_a_folder_cannot_pass_for_a_known_set(tmp_path):
    for name in ("CIFAR-10", "STL-10", "Imagenette-96"):
        assert load(as_folder(tmp_path / name, files())).name == f"{name}-own"
    assert load(as_folder(tmp_path / "pets", files())).name == "pets"


# ---- arrays on disk ---------------------------------------------------------------------------------------------


@pytest.fixture
def array(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 3, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "set.npy", pixels)
    return tmp_path / "set.npy", torch.from_numpy(pixels)


def test_an_array_is_mapped_and_its_parts_are_slices(array):
    path, pixels = array
    data = load(path)
    assert torch.equal(data["train"].images, pixels)
    assert (data.name, data.classes, data["train"].labels) == ("set", (), None)
    rest, held = data["train"].hold_out(100)
    assert torch.equal(held.images, pixels[900:])
    assert torch.equal(rest.fraction(0.5).images, pixels[:450])
    assert rest.fraction(0.5).images.data_ptr() == data["train"].images.data_ptr()  # nothing was copied
    assert rest.fraction(0.5).block == data["train"].block > 0
    np.save(path.with_suffix(".labels.npy"), np.arange(1000) % 7)
    assert load(path).classes == tuple("0123456")
    (path.parent / "other").mkdir()
    np.save(path.parent / "other" / "set.npy", pixels.flip(0).numpy())
    assert load(path.parent / "other" / "set.npy").checksum != data.checksum


@pytest.mark.parametrize("count", [1000, 4096, 9001])
def test_an_epoch_in_blocks_shows_every_image_once_and_reads_what_lies_together(count):
    images = torch.arange(count, dtype=torch.int32)
    first, again, other = (
        torch.cat(list(batches(images, 1, torch.device("cpu"), 0, epoch, block=64))) for epoch in (0, 0, 1)
    )
    assert torch.equal(first.sort()[0], images)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for part in first.split(1024)[:-1]:
        assert len(set((part // 64).tolist())) <= 17  # the last block may be short
    assert (first.diff() == 1).float().mean() < 0.05


@pytest.mark.parametrize(
    ("content", "says"),
    [(np.zeros((4, 3, 8, 8), np.float32), "holds float32 of shape (4, 3, 8, 8); wanted uint8 images of shape"),
     (np.zeros((4, 8, 8, 3), np.uint8), "holds uint8 of shape (4, 8, 8, 3)"),
     (np.zeros((0, 3, 8, 8), np.uint8), "holds uint8 of shape (0, 3, 8, 8)"),
     (np.zeros((4, 3, 8, 9), np.uint8), "(n, 3, H, H)"),
     (np.array([{"a": 1}], object), "is no whole numpy array"),
     (b"not an array", "is no whole numpy array"),
     (b"", "is no whole numpy array")],
)  # fmt: skip
def test_an_array_that_holds_no_images_is_refused_in_a_sentence(tmp_path, content, says):
    path = tmp_path / "set.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(InputError, match=re.escape(says)):
        load(path)


def test_an_array_cut_short_is_refused(array):
    path, _ = array
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="is no whole numpy array"):
        load(path)


def test_labels_that_do_not_fit_an_array_are_refused(array):
    path, _ = array
    np.save(path.with_suffix(".labels.npy"), np.zeros(999, np.int64))
    with pytest.raises(InputError, match="wanted 1000 integers >= 0"):
        load(path)
