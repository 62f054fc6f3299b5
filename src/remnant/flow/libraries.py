"""Whether the libraries that some pieces of work need are installed, told before long work."""

from collections.abc import Iterable
from importlib.util import find_spec

from remnant.errors import UserError
from remnant.flow.node import Node
from remnant.formats.table import FORMATS
from remnant.records import TransformSpec


def check_libraries(nodes: Iterable[Node]) -> None:
    """See that the libraries of all formats that are to be made are there.

    Raises:
        UserError: one is not.
    """
    for use in {node.spec.use for node in nodes if isinstance(node.spec, TransformSpec)}:
        known = FORMATS.get(use)
        if known and known.library and not is_there(known.library):
            raise UserError(
                f"This format needs {known.source}, which is not installed.", known.install
            )


def is_there(module: str) -> bool:
    """Whether a module can be imported, without importing it.

    >>> is_there("json"), is_there("no_such_module")
    (True, False)
    """
    try:
        return find_spec(module) is not None
    except ValueError:  # it was struck from the modules
        return False
