"""Chapters as notebooks for Colab and Jupyter: what sphinx-tojupyter made of them, tidied.

    python book/_ext/notebooks.py _build/jupyter/book _build/html/notebooks
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
from house import commit, repository, site
from nbformat.v4 import new_code_cell, new_markdown_cell

INSTALL = """\
# On Colab this installs the book's package, which takes less than a minute; elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    %pip install --quiet "ncssl-core[book] @ git+{home}{at}"
"""
NO_ADDRESS = """\
# This notebook was made from a copy of the project that has no address yet. If this cell fails,
# install the package from the project's folder: pip install ".[book]"
import ncssl_core
"""
TIDY = [
    (r"\*\*Proof\.\*\*\s+Proof\. ", "**Proof.** "),
    (r"^## +\((?P<title>.*)\)(?P<number>Exercise [\d.]+)$", r"### \g<number> (\g<title>)"),
    (r"^## Solution$", "**Solution.**"),
    (r"^# (In this chapter|What to do in practice)$", r"### \1"),
    (r"\$ (.+?) \$", r"$\1$"),
]


def install_cell() -> str:
    """The first code cell."""
    home, at = repository(), commit()
    return INSTALL.format(home=home, at=f"@{at}" if at else "") if home else NO_ADDRESS


def tidy(text: str) -> str:
    """Markdown as a notebook wants it; links to other pages lead to the published book, or to nowhere without one."""
    for pattern, new in TIDY:
        text = re.sub(pattern, new, text, flags=re.MULTILINE)
    home = site()
    link = rf"[\1]({home}book/\2.html\3)" if home else r"\1"
    return re.sub(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?:\.\./)*([\w/.-]+)\.ipynb(#[^)]*)?\)", link, text).strip()


def convert(source: Path, target: Path) -> None:
    """One chapter's notebook, the same bytes for the same chapter."""
    made = nbformat.read(source, as_version=4)
    cells = []
    for cell in made.cells:
        text = tidy(cell.source) if cell.cell_type == "markdown" else cell.source.strip()
        if text:
            cells.append(new_markdown_cell(text) if cell.cell_type == "markdown" else new_code_cell(text))
    cells.insert(next(i for i, c in enumerate(cells) if c.cell_type == "code"), new_code_cell(install_cell().strip()))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.validate(notebook)
    nbformat.write(notebook, target)


def main(source: Path, target: Path) -> None:
    """Every chapter: a page outside the appendices that has code."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.rglob("*.ipynb")):
        code = any(c.cell_type == "code" for c in nbformat.read(path, as_version=4).cells)
        if code and "appendices" not in path.parts:
            convert(path, target / path.name)
            print(f"notebook: {target / path.name}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
