"""The part of the command line that stands in pipelines: options and arguments of its commands.

Bodies are loaded when they are called.
"""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from remnant.guard import done
from remnant.options import dequantize_option, store_option, trust_option

ROOM = "remnant.pipeline"
policy_option = click.option(
    "--policy", type=Path, required=True, help="What is promised (policy.toml)."
)


@click.argument("models", nargs=-1, required=True, metavar="SUMMARY | TARGET UNLEARNED")
@policy_option
@click.option("--model", help="Which unlearned model of the summary, if it has several.")
@click.option("--junit", type=Path, help="Also write the cases to this file, as JUnit XML.")
@click.option("--sarif", type=Path, help="Also write them to this file, as SARIF.")
@click.option(
    "--card", type=Path, help="Also write them into this model card, as evaluation results."
)
@click.option("--data", help="The prepared corpus, if models are given.")
@click.option("--retrain", help="A model that never read the forget text, if models are given.")
@click.option(
    "--out", type=Path, default=Path("audit"), show_default=True, help="Folder of the report."
)
@dequantize_option
@trust_option
@store_option
def gate(models: tuple[str, ...], policy: Path, model: str | None, **rest: Any) -> int | None:
    """Is what was promised kept? Exit code 0: in every form; 3: no; 4: not known.

    SUMMARY is the summary.json of an audit that was made. With TARGET and UNLEARNED the audit is
    made first, by the policy's rule and in its forms.
    """
    files = {name: rest.pop(name) for name in ("junit", "sarif", "card")}
    source = click.get_current_context().get_parameter_source("store_path")
    rest["store_named"] = source is ParameterSource.COMMANDLINE
    return done("gate", models, policy, model, files, **rest, room=ROOM)


@click.argument("audit")
@policy_option
@click.option("--key", type=Path, required=True, help="The private key (PEM).")
@click.option("--certificate", type=Path, help="Of the key; it must hold today.")
@click.option("--expires", metavar="YYYY-MM-DD", help="The last day on which the statement counts.")
@click.option("--model", help="Which unlearned model of the audit, if it has several.")
@click.option(
    "--deployed",
    type=Path,
    multiple=True,
    help="A folder that deploy wrote of an audited form; may be repeated.",
)
@click.option(
    "-o",
    "--out",
    type=Path,
    default=Path("verdict.intoto.json"),
    show_default=True,
    help="The statement.",
)
@store_option
def sign(audit: str, policy: Path, key: Path, out: Path, **rest: Any) -> int | None:
    """Sign the verdicts of an audit over the files of the models that were audited.

    AUDIT is its summary.json, or its name in the store. The exit code is that of the gate on what
    was signed; 3 also where a model was changed after its audit, and nothing is signed then.
    """
    return done("sign", audit, policy, key, out, rest.pop("deployed"), **rest, room=ROOM)


@click.argument("statement", type=Path)
@click.argument("models", nargs=-1, required=True, type=Path)
@policy_option
@click.option("--key", type=Path, help="The public key (PEM).")
@click.option("--certificate", type=Path, help="Or the certificate of the key; it must hold today.")
def verify(
    statement: Path,
    models: tuple[Path, ...],
    policy: Path,
    key: Path | None,
    certificate: Path | None,
) -> int | None:
    """Does a signed verdict hold for these MODELS? Exit code 0: yes, and all is gone.

    3: anything was changed or has ended, in words, or the verdict is no pass; 4: it is open.
    """
    return done("verify", statement, models, policy, key, certificate, room=ROOM)


COMMANDS = (gate, sign, verify)
