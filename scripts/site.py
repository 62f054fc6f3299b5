"""Hooks of mkdocs: the design notes lie beside docs/ and belong to the site all the same."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

DESIGN = Path(__file__).parent.parent / "design"


def on_files(files: Files, config: Any) -> Files:
    """The design notes as pages below design/."""
    for path in sorted(DESIGN.glob("*.md")):
        files.append(File.generated(config, f"design/{path.name}", content=path.read_text()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to the design notes as they stand in the site."""
    return markdown.replace("](../design/", "](design/").replace("](../docs/", "](../")
