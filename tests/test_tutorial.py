"""The tutorial does what it says, in a fresh kernel."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIAL = Path(__file__).parent.parent / "docs" / "tutorial.ipynb"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tutorial_runs_and_shows_that_four_bits_bring_it_back(tmp_path: Path) -> None:
    book = nbformat.read(TUTORIAL, as_version=4)
    assert all(not cell.get("outputs") for cell in book.cells)
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, timeout=200, kernel_name="python3", resources=where).execute()
    printed = [o.get("text", "") for c in book.cells for o in c.get("outputs", ())]
    back = {
        tuple(line.split()[:2]): float(line.split()[-1])
        for line in "".join(printed).splitlines()
        if "share of what was forgotten" in line
    }
    assert back["int4-tensor", "verbmem"] > 0.5 > back["int8", "verbmem"]
    assert (tmp_path / "report-tutorial" / "report.html").is_file()
