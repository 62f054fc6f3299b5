"""The options that several commands have. Nothing but click is imported until one is given."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

F = TypeVar("F", bound=Callable[..., object])


def out_option(default: str | None = None) -> Callable[[F], F]:
    """Where a report goes; without a default each run knows its own place."""
    return click.option(
        "-o", "--out", type=Path, default=default, show_default=True, help="Folder of the report."
    )


store_option = click.option(
    "--store",
    "store_path",
    default="runs",
    envvar="REMNANT_STORE",
    show_default=True,
    help="Folder that keeps all artefacts.",
)
set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change any setting; may be repeated.",
)


def _trust(context: click.Context, option: click.Parameter, given: bool) -> None:
    """Let models bring code for as long as the command runs, or do not."""
    door = importlib.import_module("remnant.remotecode")
    context.with_resource(door.trusting_remote_code(given))


trust_option = click.option(
    "--trust-remote-code",
    is_flag=True,
    expose_value=False,
    callback=_trust,
    help="Run the code that a model brings where transformers has none for it. Read it first.",
)


def _verify(context: click.Context, option: click.Parameter, given: bool) -> None:
    """Read models from outside again for as long as the command runs, or do not."""
    digests = importlib.import_module("remnant.flow.digests")
    context.with_resource(digests.verifying_models(given))


verify_option = click.option(
    "--verify-models",
    is_flag=True,
    expose_value=False,
    callback=_verify,
    help="Read models from outside again, which are known by the size and times of their files.",
)
dequantize_option = click.option(
    "--dequantize",
    is_flag=True,
    help="Decode packed weights (GPTQ, GGUF, bitsandbytes, ...) first, instead of refusing them.",
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["fp32", "stored", "bf16"]),
    help="Hold weights and compute in float32 (the default), as the files have it, or bfloat16.",
)


def devices_option(command: F) -> F:
    """Over how many devices a model is spread, in how many copies."""
    devices = click.option(
        "--devices",
        type=click.IntRange(min=1),
        default=1,
        help="Spread the model over so many devices (or processes) of this machine.",
    )
    replicate = click.option(
        "--replicate",
        metavar="N",
        type=click.IntRange(min=1),
        default=1,
        help="Keep N copies of the model, each spread over an Nth of the devices (HSDP).",
    )
    return devices(replicate(command))


estimate_option = click.option(
    "--estimate",
    is_flag=True,
    help="Say what it would need (memory, disk, time) and which setting fits; run nothing.",
)
stop_option = click.option(
    "--stop/--all",
    help=(
        "With --access weights: stop as soon as every verdict is decided, the cheap tests first; "
        "gone needs all. By default all tests are made, and the strongest is named."
    ),
)
