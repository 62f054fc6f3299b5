"""Pages of the documentation that are made from tables of the source."""

import sys
from pathlib import Path


def written(page: Path, text: str) -> int:
    """Write a page; with --check, only say by the exit code whether it is up to date."""
    if "--check" in sys.argv:
        return int(not page.is_file() or page.read_text(encoding="utf-8") != text)
    page.write_text(text, encoding="utf-8")
    return 0
