"""What the battery of laws says of a user's functions, on the terminal."""

import importlib

from rich.markup import escape

from remnant.report import terminal


def check(path: str) -> int:
    """Run the battery of laws on every function of a user's file."""
    testing = importlib.import_module("remnant.testing")
    screen = terminal.console()
    failed = 0
    for result in testing.check_file(path):
        colour = {"ok": "green", "failed": "red", "skipped": "yellow"}[result.outcome]
        screen.print(
            (
                f"[{colour}]{result.outcome:7}[/] {escape(result.function)}: {result.law} "
                f"{escape(result.detail)}"
            ),
            highlight=False,
        )
        failed += result.outcome == "failed"
    return 1 if failed else 0
