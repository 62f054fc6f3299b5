"""Whether the libraries that some pieces of work need are installed, told before long work."""

from collections.abc import Iterable

from remnant.errors import UserError
from remnant.flow.node import Node
from remnant.formats.table import FORMATS
from remnant.installed import is_there
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
