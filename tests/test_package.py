"""The package's face, and that its rooms keep apart."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import as_folder, picture

import ncssl_core

PACKAGE = Path(ncssl_core.__file__).parent
FLOORS = [  # a room imports only from floors above it in this list
    {"base"},
    {"parallel"},
    {"losses", "augment", "datasets", "models", "spectra", "records", "shapes", "watch", "theory"},
    {"config", "probe", "figures", "claims", "neighbours"},
    {"sliders", "linear_ssl"},
    {"pretrain"},
    {"sweep", "recommend"},
    {"cli"},
    {"__main__"},
]
MAY = {("datasets", "shapes")}  # the built-in set is one of the sets


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ncssl_core":
            yield from [node.module.split(".")[1]] if "." in node.module else [a.name for a in node.names]


def test_rooms_import_only_from_rooms_below():
    floor = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
    for path in PACKAGE.glob("*.py"):
        if path.stem == "__init__":
            continue
        for other in imports(path):
            if other != "__version__":
                assert floor[other] < floor[path.stem] or (path.stem, other) in MAY, f"{path.stem} imports {other}"


def test_the_theory_needs_only_numpy_and_scipy():
    allowed = {
        "ncssl_core",
        "__future__",
        "collections",
        "dataclasses",
        "functools",
        "heapq",
        "jaxtyping",
        "math",
        "numpy",
        "scipy",
        "typing",
    }
    for path in PACKAGE.glob("theory/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in allowed, f"{path.name} imports {name}"
        assert all(room in ("base", "theory") for room in imports(path))


def test_public_names_are_there_and_a_wrong_one_lists_them():
    for name in ncssl_core.__all__:
        assert getattr(ncssl_core, name) is not None
    rooms = {path.stem for path in PACKAGE.glob("*.py")}
    assert not rooms & set(ncssl_core.__all__)  # a room's name would hide the public name once it is imported
    assert set(ncssl_core.__all__) == set(dir(ncssl_core))
    with pytest.raises(AttributeError, match="it has: .*BarlowTwinsLoss"):
        ncssl_core.barlow


@pytest.mark.parametrize("module", ["", ".records", ".claims", ".theory.kernels"])
def test_the_face_needs_no_torch(module):
    code = f"import sys; import ncssl_core{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_functions_and_classes_have_docstrings():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (PACKAGE.parent / "README.md").read_text(), re.DOTALL)
    own_images, parts, _ = blocks  # the third is a test of its own, in test_pretrain
    as_folder(tmp_path / "photos", {f"{i}.jpg": picture(i, (70, 64)) for i in range(8)})
    monkeypatch.chdir(tmp_path)
    small = own_images.replace("epochs=50", "epochs=1, batch=8, dim=16, device='cpu'")
    assert small != own_images
    scope: dict[str, object] = {}
    exec(small, scope)
    assert scope["features"].shape == (8, 128)
    exec(parts, scope)
    assert scope["views"].shape == (4, 256, 3, 32, 32)
    assert scope["loss"].ndim == 0
