"""Ten thousand inputs that nobody meant: each is taken, or refused in one sentence; nothing is left elsewhere."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import as_archive, picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ncssl_core import InputError, PretrainConfig, claims, load, records
from ncssl_core.config import config_from, read_config
from ncssl_core.sweep import read_suite

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[1]


def fuzz(inputs):
    """So many inputs, the same ones every time; `NCSSL_FUZZ=1` draws others."""
    known = "NCSSL_FUZZ" not in os.environ
    return settings(max_examples=inputs, suppress_health_check=list(HealthCheck), derandomize=known, database=None)


def refused(job, *given):
    """What came of a job: its result, or None if it was refused in a sentence."""
    said = ""
    try:
        return job(*given)
    except InputError as error:
        said = str(error)
    assert said
    assert "\n" not in said
    return None


# ---- archives ---------------------------------------------------------------------------------------------------

IMAGES = [picture(0, (9, 9), kind="PNG"), picture(1, (9, 9)), picture(2, (9, 9), "L", "PNG"),
          picture(3, (9, 9), kind="GIF"), picture(4, (9, 9), "CMYK")]  # fmt: skip
PARTS = st.sampled_from(
    ["..", ".", "train", "test", "val", "unlabeled", "cat", "dog", "", "~", "a" * 300, "\u202e", "__MACOSX", "\x00"]
)
NAMES = st.tuples(st.sampled_from(["", "/", "../"]), st.lists(PARTS | st.text(max_size=4), max_size=4)).map(
    lambda n: n[0] + "/".join(n[1])
)
ENDINGS = st.sampled_from([".png", ".jpg", ".gif", ".txt", "", ".PNG/", ".tiff"])


@st.composite
def damaged(draw, whole):
    """Some bytes, with some of them changed, left out, doubled or cut off."""
    content = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        what = draw(st.sampled_from(["set", "cut", "insert", "end"]))
        if what == "set" and content:
            content[at] = draw(st.integers(0, 255))
        elif what == "cut":
            del content[at : at + draw(st.integers(1, 64))]
        elif what == "insert":
            content[at:at] = draw(st.binary(max_size=16))
        elif draw(st.booleans()):
            del content[at:]
    return bytes(content)


CONTENTS = st.dictionaries(
    st.tuples(NAMES, ENDINGS).map("".join), damaged(st.sampled_from(IMAGES)) | st.binary(max_size=40), max_size=5
)


@pytest.fixture(scope="module")
def den(tmp_path_factory):
    return tmp_path_factory.mktemp("den")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@fuzz(5000)
@given(CONTENTS, st.sampled_from([".tar", ".tar.gz", ".tar.xz", ".zip"]), st.data(), st.sampled_from([None, 8]))
def test_archives(den, contents, kind, data, image_size):
    folder = den / "in"
    for where in (folder, den / "cache"):
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir()
    os.environ["NCSSL_CACHE"] = str(den / "cache")
    path = folder / f"set{kind}"
    try:
        as_archive(path, contents)
    except (ValueError, OSError, IndexError):  # a name that no archive takes
        return
    path.write_bytes(data.draw(damaged(st.just(path.read_bytes()))))
    found = refused(lambda: load(path, image_size=image_size, skip_unreadable=data.draw(st.booleans())))
    if found is not None:
        images = found["train"].images
        assert images.ndim == 4
        assert len(images) <= len(contents) + 5
    assert {p.name for p in den.iterdir()} <= {"in", "cache"}
    assert [p.name for p in folder.iterdir()] == [path.name]


# ---- settings ---------------------------------------------------------------------------------------------------

LEAVES = (
    st.none() | st.booleans() | st.integers(-3, 10) | st.integers() | st.floats() | st.text(max_size=6)
    | st.sampled_from(["auto", "stl", "cpu", "vicreg", "barlow_twins", "mean", "1e-3", "nan", "tiny"])
)  # fmt: skip
VALUES = LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(st.text(max_size=4) | st.just("base"), LEAVES)
FIELDS = st.sampled_from(sorted(PretrainConfig.__dataclass_fields__)) | st.text(max_size=5)


@fuzz(1500)
@given(st.dictionaries(FIELDS, VALUES, max_size=6))
def test_settings(values):
    config = refused(config_from, values)
    if config is not None:
        assert config_from(json.loads(json.dumps(config.plain()))) == config


@fuzz(1000)
@given(
    damaged(st.dictionaries(FIELDS, VALUES, max_size=4).map(lambda d: yaml.safe_dump(d, allow_unicode=True).encode()))
)
def test_settings_files(den, text):
    (den / "run").mkdir(exist_ok=True)
    (den / "run" / "config.yaml").write_bytes(text)
    config = refused(read_config, den / "run")
    assert config is None or config.out == str(den / "run")


SUITE = yaml.safe_load((ROOT / "experiments" / "cpu-views.yaml").read_text())


@st.composite
def changed(draw, tree):
    """A tree of lists and dictionaries with a value or two replaced, left out, or added."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, 3))):
        at = tree
        while isinstance(at, dict | list) and at:
            key = draw(st.sampled_from(sorted(at))) if isinstance(at, dict) else draw(st.integers(0, len(at) - 1))
            if isinstance(at[key], dict | list) and at[key] and draw(st.integers(0, 3)):
                at = at[key]
                continue
            what = draw(st.sampled_from(["replace", "leave out", "add"]))
            if what == "replace":
                at[key] = draw(VALUES)
            elif what == "leave out":
                del at[key]
            elif isinstance(at, dict):
                at[draw(st.text(max_size=5))] = draw(VALUES)
            else:
                at.append(draw(VALUES))
            break
    return tree


@fuzz(500)
@given(changed(SUITE))
def test_suites(den, suite):
    path = den / "suite.yaml"
    path.write_text(yaml.safe_dump(suite, allow_unicode=True), encoding="utf-8")
    found = refused(read_suite, path)
    assert found is None or all(isinstance(task.config, PretrainConfig) for task in found.tasks)


# ---- records ----------------------------------------------------------------------------------------------------

RECORDS = {p.stem: json.loads(p.read_text()) for p in sorted((ROOT / "results").glob("*m8-e6*.json"))[:4]}


@fuzz(1500)
@given(changed(next(iter(RECORDS.values()))))
def test_records(den, record):
    folder = den / "records"
    folder.mkdir(exist_ok=True)
    (folder / "one.json").write_text(json.dumps(record))
    for name, other in list(RECORDS.items())[1:]:
        (folder / f"{name}.json").write_text(json.dumps(other))
    known = refused(records.read_all, folder)
    if known is not None:
        assert {v.claim for v in claims.ledger(known)} == set(claims.RULES)
        claims.curves(known)
        claims.arms(known)
        records.table(sorted(folder.glob("*.json")))


@fuzz(500)
@given(damaged(st.just(json.dumps(next(iter(RECORDS.values()))).encode())))
def test_record_files(den, text):
    (den / "one.json").write_bytes(text)
    found = refused(records.read, den / "one.json")
    assert found is None or found["schema"] <= records.SCHEMA
