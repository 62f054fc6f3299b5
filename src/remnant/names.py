"""What may be the name of a sweep, a corpus or a run: names become parts of files' names and of
tables, never paths. No torch.
"""

from typing import Annotated

from pydantic import AfterValidator

# Letters and bytes that leave room for what is put behind a name in a file's name, whose limit is
# 255 bytes.
MOST_LETTERS, MOST_BYTES = 100, 200


def fault_of_name(name: str) -> str | None:
    """Why something is no name.

    None where it is one: printable, without slashes, no dots alone, no dash or space in front.
    """
    if not name.strip() or name.strip(".") == "":
        return "a name needs a letter or digit"
    if not name.isprintable() or "/" in name or "\\" in name:
        return "a name has no slashes, line breaks or other control characters"
    if name[0] in "- " or name[-1] == " ":
        return "a name does not begin with a dash or a space, nor end in a space"
    if len(name) > MOST_LETTERS or len(name.encode()) > MOST_BYTES:
        return f"a name has at most {MOST_LETTERS} letters"
    return None


def _checked(name: str) -> str:
    if fault := fault_of_name(name):
        raise ValueError(fault)
    return name


Name = Annotated[str, AfterValidator(_checked)]
