"""What stands around the body of every command: how it is found, and how it ends.

Neither torch nor the records are imported before a body is called.
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remnant.errors import Interrupted, UserError

if TYPE_CHECKING:
    from remnant.flow.store import Store

Command = Callable[..., Any]


def done(verb: str, *given: Any, room: str = "remnant.verbs", **options: Any) -> int | None:
    """Call a command's body, the one door to everything heavy; its exit code, if it has one."""
    body: Callable[..., int | None] = getattr(importlib.import_module(room), verb)
    return body(*given, **options)


def store_at(path: str) -> "Store":
    """The store of a folder, opened."""
    store: Store = importlib.import_module("remnant.flow.store").Store(Path(path)).open()
    return store


def known_store(path: str) -> "Store":
    """The store of a folder, opened; for what only looks at one, so that a mistyped name makes
    none.

    Raises:
        UserError: there is none.
    """
    if not (Path(path) / "objects").is_dir():
        raise UserError(f"There is no store {path} yet.", "Name the folder of one with --store.")
    return store_at(path)


def guarded(body: Command) -> Command:
    """User errors as one sentence and exit code 2; an interruption as 130.

    A verdict as the body's own code.
    """

    @functools.wraps(body)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            code = body(*args, **kwargs)
        except Interrupted as error:
            click.echo(str(error), err=True)
            sys.exit(130)
        except UserError as error:
            click.echo(f"remnant: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("Interrupted; finished work is kept. The same command goes on.", err=True)
            sys.exit(130)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        sys.exit(code or 0)

    return wrapped
