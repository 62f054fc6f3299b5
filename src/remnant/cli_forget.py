"""The commands for a deletion request, remnant forget, and for what a method may prefer to the
truth, remnant alternatives.
"""

import importlib
import re
from pathlib import Path
from typing import Any

import click

from remnant.guard import done, guarded, store_at
from remnant.options import dequantize_option, set_option, store_option, trust_option, verify_option

SECONDS = {"s": 1, "m": 60, "h": 3600}


class Duration(click.ParamType[float]):
    """A time as people write it: 90s, 30m, 2h; in seconds."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """The seconds, or click's own sentence."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", str(value).strip())
        if not found:
            self.fail(f"{value!r} is no time; write 90s, 30m or 2h.", param, ctx)
        return float(found[1]) * SECONDS[found[2]]


@click.command()
@click.argument("model")
@click.option("--forget", multiple=True, required=True, help="What is to be forgotten.")
@click.option("--retain", multiple=True, help="Text of the same kind that must be kept.")
@click.option(
    "--holdout", multiple=True, help="Text like the forget text that the model never read."
)
@click.option("--retrain", help="A model that never read the forget text, if there is one.")
@click.option(
    "--deploy",
    multiple=True,
    metavar="FORM",
    help="Write the files of a format too (gguf-q4_k_m, ct-w4a16, bnb-nf4, ...), and audit it.",
)
@click.option(
    "--budget",
    type=Duration(),
    default="30m",
    show_default=True,
    help="How long it may take.",
)
@click.option("-o", "--out", required=True, type=Path, help="A new folder for what comes of it.")
@dequantize_option
@trust_option
@verify_option
@set_option
@store_option
@guarded
def forget(model: str, out: Path, budget: float, store_path: str, **given: Any) -> int | None:
    """Make a model forget a text, from raw files to deployable ones and a verdict.

    Makes a model that never read the text where it can, pushes the model as far as it bears within
    the budget, audits the best trial, and ends with the exit code of the verdict, as audit does.
    Interrupted, the same command goes on.
    """
    deletion = importlib.import_module("remnant.deletion")
    texts = {side: given[side] for side in ("forget", "retain", "holdout") if given[side]}
    request = deletion.Request(model, texts, given["retrain"], given["deploy"], given["dequantize"])
    code: int = deletion.run(request, out, store_at(store_path), budget, given["settings"])
    return code


@click.command()
@click.argument("target")
@click.option("--data", required=True, help="The prepared corpus, whose questions are asked.")
@click.option("--each", type=click.IntRange(1), default=5, show_default=True, help="Answers each.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the samples.")
@click.option("-o", "--out", required=True, type=Path, help="A new file (.json) for them.")
@trust_option
@store_option
@guarded
def alternatives(
    target: str, data: str, each: int, seed: int, out: Path, store_path: str
) -> int | None:
    """Let a model invent other answers to the forget questions, which AltPO prefers to the truth.

    Interrupted, the same command goes on.
    """
    room = "remnant.alternatives"
    return done("run", target, data, out, store_at(store_path), (each, seed), room=room)
