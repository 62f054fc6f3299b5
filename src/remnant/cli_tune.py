"""The command that searches settings: remnant tune."""

from pathlib import Path
from typing import Any

import click

from remnant.guard import done, guarded, store_at
from remnant.options import (
    dequantize_option,
    estimate_option,
    set_option,
    store_option,
    trust_option,
    verify_option,
)

ROOM = "remnant.tuning.told"


@click.command()
@click.argument("corpus")
@click.argument("target")
@click.option(
    "--methods",
    default="all",
    show_default=True,
    metavar="all|NAME,...",
    help="Which methods are compared.",
)
@click.option(
    "--budget",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="Trials of each method.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="The same gives the same trials.",
)
@click.option(
    "--floor",
    type=click.FloatRange(0, 1),
    default=0.9,
    show_default=True,
    help="Least share of the target's utility.",
)
@click.option(
    "--span",
    "spans",
    multiple=True,
    metavar="NAME=LOW:HIGH",
    help="Search a setting within these bounds (lr, alpha, steps, params.beta, ...).",
)
@click.option("--retrain", help="A model that never read the forget text, to report beside them.")
@click.option(
    "-o",
    "--out",
    type=Path,
    default=Path("tune"),
    show_default=True,
    help="Folder of the report and tune.json.",
)
@estimate_option
@dequantize_option
@trust_option
@verify_option
@set_option
@store_option
@guarded
def tune(
    corpus: str, target: str, store_path: str, out: Path, retrain: str | None, **options: Any
) -> int | None:
    """Search the settings of many methods by the same number of trials, and report the best of each
    on items that nothing was chosen by.

    A setting that is fixed with --set is not searched; under a method's name it is that method's
    alone (--set rmu.params.layer=7). Interrupted, the same command goes on.
    """
    return done("tune", store_at(store_path), corpus, target, (retrain, out), room=ROOM, **options)
