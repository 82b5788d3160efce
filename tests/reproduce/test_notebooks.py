"""Every notebook runs from top to bottom, in a fresh kernel, in its own folder."""

import nbformat
import pytest
from nbclient import NotebookClient

from reproduce import ROOT

pytestmark = pytest.mark.slow

BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("book", BOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs(book, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    read = nbformat.read(book, as_version=4)
    NotebookClient(read, timeout=300, resources={"metadata": {"path": str(book.parent)}}).execute()
    drawn = [
        out
        for cell in read.cells
        for out in cell.get("outputs", [])
        if {"image/png", "image/svg+xml"} & {*out.get("data", {})}
    ]
    assert len(drawn) >= 3
