"""Documents as text: pages of the web and PDF, by extractors that are installed beside Remnant."""

import io
from collections.abc import Callable, Mapping
from typing import NamedTuple

from remnant.errors import UserError, first_line
from remnant.installed import is_there

INSTALL = (
    "Install it in Remnant's folder with pip install -e '.[documents]', or convert the file to "
    "plain text."
)


class Extractor(NamedTuple):
    """What reads a kind of document: ``module`` must be there; ``text`` raises what it likes."""

    kind: str
    module: str
    text: Callable[[bytes], str]


def page_text(raw: bytes) -> str:
    """The main text of a page of the web, without menus and footers; empty if there is none."""
    import trafilatura  # not always installed

    return str(trafilatura.extract(raw, include_comments=False) or "")


def pdf_text(raw: bytes) -> str:
    """The text of a PDF, its pages one behind the other; empty if they are pictures."""
    import pypdf  # not always installed

    reader = pypdf.PdfReader(io.BytesIO(raw))
    return "\n".join(page.extract_text() for page in reader.pages)


_PAGE = Extractor("a web page (HTML)", "trafilatura", page_text)
EXTRACTORS: Mapping[str, Extractor] = {
    ".html": _PAGE,
    ".htm": _PAGE,
    ".xhtml": _PAGE,
    ".pdf": Extractor("a document (PDF)", "pypdf", pdf_text),
}


def lacking(suffix: str) -> str:
    """What must be installed to read a kind of file, in words behind its name; empty if nothing."""
    extractor = EXTRACTORS.get(suffix)
    if extractor is None or is_there(extractor.module):
        return ""
    return f"is {extractor.kind}, which is read by {extractor.module}, and that is not installed"


def document(where: str, raw: bytes, suffix: str) -> str:
    """The text of a document.

    Raises:
        UserError: its extractor is not installed or fails, or finds no text.
    """
    if said := lacking(suffix):
        raise UserError(f"{where} {said}.", INSTALL)
    extractor = EXTRACTORS[suffix]
    try:
        text = extractor.text(raw)
    except Exception as error:  # extractors raise whatever a damaged document brings about
        raise UserError(
            f"{where} cannot be read by {extractor.module}: {first_line(error).rstrip('.')}.",
            "Convert it to plain text first.",
        ) from error
    if not text.strip():
        raise UserError(
            f"{where} holds no text that {extractor.module} finds.",
            "If its pages are pictures, read them by a program for that (OCR), or leave it out.",
        )
    return text
