"""The command that shows a store while it works: remnant view."""

import click

from remnant.guard import done, guarded, known_store
from remnant.options import store_option


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="On this machine (127.0.0.1) alone; 0 takes one that is free.",
)
@store_option
@guarded
def view(port: int, store_path: str) -> int | None:
    """Show the runs of a store in a browser, while they go.

    Nothing leaves this machine, no text that was to be forgotten is shown, and nothing can be
    changed from there. Ctrl-C ends it; what runs goes on.
    """
    return done("show", known_store(store_path), port, room="remnant.report.live")
