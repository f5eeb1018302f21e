"""Run notebooks and keep their outputs: `python tools/run_notebooks.py [docs/notebooks/NAME.ipynb ...]`.

Without names, all notebooks of docs/notebooks/ are run. Run it after a change, and read what it wrote.
tests/test_notebooks.py runs the notebooks again and compares.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "docs" / "notebooks"
CELL_SECONDS = 900  # far above what a cell takes: it ends a cell that hangs


def run(notebook: Path, folder: Path) -> nbformat.NotebookNode:
    """Return the notebook with the outputs of a fresh kernel.

    `folder`, which must be empty, stands for a checkout: what the notebook writes, temporary files too, stays in it.
    """
    os.symlink(ROOT / "examples", folder / "examples")
    place = folder / notebook.parent.relative_to(ROOT)
    place.mkdir(parents=True)
    client = NotebookClient(
        nbformat.read(notebook, as_version=4),
        timeout=CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(place)}},
    )
    temporary = folder / "tmp"
    temporary.mkdir()
    done = client.execute(env={**os.environ, "TMPDIR": str(temporary)})
    done.metadata.pop("language_info", None)  # the version of Python, which does not belong to the notebook
    for cell in done.cells:
        if cell.cell_type == "code":
            cell.outputs = list(_tidy(cell.outputs))
    return done


def _tidy(outputs: list[nbformat.NotebookNode]) -> Iterator[nbformat.NotebookNode]:
    """Yield the outputs with the pieces of a text put together, and each picture once, as PNG."""
    for name, group in groupby(outputs, key=lambda output: output.get("name")):
        pieces = list(group)
        if name is not None:
            pieces[0].text = "".join(piece.text for piece in pieces)
            yield pieces[0]
            continue
        for piece in pieces:
            piece.get("data", {}).pop("image/jpeg", None)
            yield piece


def main(chosen: list[Path]) -> None:
    for notebook in chosen or sorted(NOTEBOOKS.glob("*.ipynb")):
        folder = Path(tempfile.mkdtemp())
        try:
            done = run(notebook, folder)
        finally:
            shutil.rmtree(folder)
        nbformat.write(done, notebook)
        print(notebook.relative_to(ROOT))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main([Path(name).resolve() for name in sys.argv[1:]])
