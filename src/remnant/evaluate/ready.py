"""Whether all is there that some pieces of work need from elsewhere, told before the first of them
is made. No torch.
"""

import importlib
from collections.abc import Sequence

from remnant.flow.finite import check_sources
from remnant.flow.libraries import check_libraries
from remnant.flow.node import Node
from remnant.flow.place import Outside, check_hub
from remnant.records import MeasureSpec


def check_ready(nodes: Sequence[Node]) -> None:
    """See that libraries and models from outside are there, and that servers answer.

    Raises:
        UserError: one is not, or does not.
    """
    check_libraries(nodes)
    given = [source for node in nodes for source in node.inputs.values()]
    for source in given:
        if isinstance(source, Outside):
            check_hub(source.source)
    check_sources(nodes)
    _check_servers(nodes)


def _check_servers(nodes: Sequence[Node]) -> None:
    """See that the servers answer that will be asked when other work is done."""
    specs = [node.spec for node in nodes]
    asked = [spec.endpoint for spec in specs if isinstance(spec, MeasureSpec) and spec.endpoint]
    first = specs[0] if specs else None
    if isinstance(first, MeasureSpec) and first.endpoint:
        return  # it is asked at once
    for spec in dict.fromkeys(asked):
        importlib.import_module("remnant.evaluate.endpoint").Endpoint(spec)
