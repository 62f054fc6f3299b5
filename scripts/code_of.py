"""Print the code of a notebook, for the type checker: python scripts/code_of.py NOTEBOOK."""

import json
import sys
from pathlib import Path


def code(notebook: Path) -> str:
    """All code cells, one after the other."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


if __name__ == "__main__":
    print(code(Path(sys.argv[1])))
