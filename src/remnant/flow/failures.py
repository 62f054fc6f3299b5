"""What is kept of pieces that failed, until they are tried again. No torch."""

import json
from collections.abc import Sequence
from pathlib import Path

from remnant.durable import tell
from remnant.flow.node import Node
from remnant.flow.store import FAILURE, Store
from remnant.records import Piece
from remnant.secrecy import scrubbed


def failed_of(store: Store, nodes: Sequence[Node]) -> set[str]:
    """The names of the pieces that somebody has noted as failed."""
    return {n.name for n in nodes if (store.scratch(n.name) / FAILURE).is_file()}


def note_failure(store: Store, node: Node, message: str, trace: str = "") -> None:
    """Keep why a piece failed, for ``failures`` to tell; at least say it where that cannot be
    kept.
    """
    scratch = store.scratch(node.name)
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        (scratch / FAILURE).write_text(
            json.dumps({"message": scrubbed(message), "traceback": scrubbed(trace)}),
            encoding="utf-8",
        )
    except OSError as error:
        tell(f"{node.name} failed: {scrubbed(message)} This could not be kept ({error.strerror}).")


def failures(store: Store, nodes: Sequence[Node | Piece]) -> dict[str, dict[str, str]]:
    """Message and traceback of the pieces that failed, by name."""
    paths = {n.name: store.scratch(n.name) / FAILURE for n in nodes if not store.has(n.name)}
    return {name: _failure(path) for name, path in paths.items() if path.is_file()}


def _failure(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_bytes())
        return {"message": str(found["message"]), "traceback": str(found["traceback"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {
            "message": f"it failed, and {path} cannot be read. Run the same command again.",
            "traceback": "",
        }


def forget_failures(store: Store, nodes: Sequence[Node]) -> None:
    """Let the pieces that failed be tried again."""
    for node in nodes:
        (store.scratch(node.name) / FAILURE).unlink(missing_ok=True)
