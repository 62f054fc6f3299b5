"""The command line.

Starting it imports neither torch nor the records; a command's body is loaded when it is called.
"""

import importlib
from pathlib import Path
from typing import Any

import click

from remnant import __version__, cli_pipeline
from remnant.cli_forget import alternatives, forget
from remnant.cli_tune import tune
from remnant.cli_view import view
from remnant.errors import UserError
from remnant.guard import done as _done
from remnant.guard import guarded as _guarded
from remnant.guard import known_store as _known_store
from remnant.guard import store_at as _store
from remnant.lean import import_leanly
from remnant.options import (
    dequantize_option,
    devices_option,
    dtype_option,
    estimate_option,
    out_option,
    set_option,
    stop_option,
    store_option,
    trust_option,
    verify_option,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="remnant")
def main() -> None:
    """Make a language model forget, and prove that it stays forgotten after quantization."""
    import_leanly()


@main.command()
@click.option("--full", is_flag=True, help="All six methods on both corpora (takes longer).")
@click.option("--real", is_flag=True, help="On a pretrained model of 135 million weights.")
@click.option("--tofu", help="Folder of the data set locuslab/TOFU, for --real.")
@click.option("--workers", default=0, help="Processes side by side; 0 chooses.")
@store_option
@_guarded
def demo(full: bool, real: bool, tofu: str | None, workers: int, store_path: str) -> int | None:
    """The whole story on the embedded lab: train, unlearn, quantize, measure, report."""
    if real:
        return _done("demo_real", _store(store_path), tofu, full, workers)
    return _done(
        "run", _store(store_path), "demo-full" if full else "demo", (), workers, None, True
    )


class Prepare(click.Command):
    """A command with an option for the download of every benchmark, known when it is called."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own options, then one for each benchmark."""
        readers = importlib.import_module("remnant.corpus").READERS
        named = [click.Option([f"--{name}"], help=r.help) for name, r in readers.items()]
        return [*super().get_params(ctx), *named]


@main.command(cls=Prepare)
@click.option(
    "--forget",
    multiple=True,
    help=(
        "Text that is to be forgotten: files or folders (text, JSON, CSV, Parquet, packed or not), "
        "or a data set of the hub (hub:OWNER/NAME)."
    ),
)
@click.option("--retain", multiple=True, help="Text that must be kept.")
@click.option(
    "--holdout",
    multiple=True,
    help="Text like the forget text that the model has never read (for PrivLeak).",
)
@click.option(
    "--columns",
    metavar="NAME=FIELD,...",
    help="Fields to be read, by what they are: question=Q,answer=A or text=BODY.",
)
@click.option("--holdout-share", type=float, help="Or: hold out this share of the retain text.")
@click.option(
    "--lab", type=click.Choice(["news", "books"]), help="A fictional corpus instead of files."
)
@click.option("--folder", help="A download whose benchmark is set; by default MUSE's.")
@click.option("--hub", help="A MUSE data set on the hub, owner/name.")
@click.option(
    "--tokenizer",
    help=(
        "Tokenizer of the model to come (folder or hub id); without it one is trained on the text."
    ),
)
@click.option("--vocab-size", type=int, help="Size of a trained tokenizer.")
@click.option("--prompt-tokens", type=int, help="Tokens of a VerMem prompt.")
@click.option("--answer-tokens", type=int, help="Tokens of the continuation.")
@click.option("--text-tokens", type=int, help="Tokens of one text; longer ones are cut.")
@click.option("--max-items", type=int, help="Items per metric.")
@click.option(
    "--drop-overlap",
    is_flag=True,
    default=None,
    help="Leave out retain and holdout texts that repeat forget text.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be read, and write nothing.")
@trust_option
@set_option
@store_option
@_guarded
def prepare(
    store_path: str, dry_run: bool, settings: tuple[str, ...], **options: Any
) -> int | None:
    """Turn text into a corpus in MUSE's layout, checked for overlap."""
    if dry_run:
        return _done("survey", settings, **options)
    return _done("prepare", _store(store_path), settings, **options)


@main.command()
@click.argument("corpus")
@click.option("--retrain", is_flag=True, help="Never read the forget split.")
@devices_option
@estimate_option
@dequantize_option
@trust_option
@verify_option
@set_option
@store_option
@_guarded
def train(
    corpus: str, retrain: bool, settings: tuple[str, ...], store_path: str, **options: Any
) -> int | None:
    """Train a target (or a retrain model) on a corpus."""
    return _done("train", _store(store_path), corpus, settings, retrain=retrain, **options)


@main.command()
@click.argument("target")
@click.option("--data", required=True, help="The prepared corpus.")
@click.option("--method", help="ga, ga_gdr, ga_klr, npo, npo_gdr or npo_klr.")
@click.option("--lr", type=float, help="Learning rate.")
@click.option("--steps", type=int, help="Most steps.")
@click.option(
    "--examples",
    type=click.Choice(["documents", "questions"]),
    help="What is trained on: documents, or questions with their answers.",
)
@click.option(
    "--alternatives",
    help="A file of other answers to the forget questions: one a line, or JSON.",
)
@click.option(
    "--weights",
    type=click.Choice(["fp32", "bf16", "bf16-stochastic-rounding"]),
    help="How weights are kept.",
)
@click.option("--grids", metavar="NAMES", help="Grids to train on, such as int4-g64,nf4.")
@click.option(
    "--promise", metavar="NAMES", help="Grids under which the edit must hold: int4-g128,nf4."
)
@devices_option
@estimate_option
@dequantize_option
@trust_option
@verify_option
@set_option
@store_option
@_guarded
def unlearn(store_path: str, target: str, data: str, **options: Any) -> int | None:
    """Unlearn the forget split from a model (a folder, a hub id or an artefact)."""
    return _done("unlearn", _store(store_path), target, data, **options)


@main.command()
@click.argument("model")
@click.option(
    "--use",
    required=True,
    help="int8, int4, int4-g64-asym, nf4, fp4, gptq4, awq4, ..., or mine.py:function.",
)
@click.option("--data", help="The prepared corpus, for what wants text.")
@click.option("--target", help="The model before unlearning, for what wants its weights.")
@estimate_option
@dequantize_option
@trust_option
@verify_option
@set_option
@store_option
@_guarded
def transform(
    model: str, use: str, settings: tuple[str, ...], store_path: str, **given: Any
) -> int | None:
    """Make a model of a model: a dense copy, quantized with recorded codes or changed otherwise."""
    return _done("transform", _store(store_path), model, use, settings=settings, **given)


@main.command()
@click.argument("adapter")
@dequantize_option
@trust_option
@verify_option
@store_option
@_guarded
def merge(adapter: str, dequantize: bool, store_path: str) -> int | None:
    """Merge an adapter into its model: ADAPTER is a folder by peft, or FOLDER@MODEL.

    Other commands do this by themselves where an adapter is named in the place of a model.
    """
    return _done("merge", _store(store_path), adapter, dequantize)


@main.command()
@click.argument("model")
@trust_option
@verify_option
@store_option
@_guarded
def dequantize(model: str, store_path: str) -> int | None:
    """Decode a packed model (GPTQ, AWQ, FP8, MXFP4, GGUF, bitsandbytes, ...) to a dense one.

    Other commands do this by themselves with --dequantize.
    """
    return _done("dequantize", _store(store_path), model)


@main.command()
@click.argument("model")
@click.option(
    "--as",
    "name",
    required=True,
    help="gguf-q4_k_m (or gguf:Q4_K_M), ct-w4a16, gptq4-g128, awq4-g128, bnb-nf4, ...",
)
@click.option("-o", "--out", required=True, help="A new folder.")
@click.option("--data", help="The prepared corpus, for calibration text.")
@dequantize_option
@trust_option
@verify_option
@set_option
@store_option
@_guarded
def deploy(
    model: str, name: str, out: str, settings: tuple[str, ...], store_path: str, **given: Any
) -> int | None:
    """Write a folder that a real runtime opens, with the record of where it came from."""
    return _done(
        "deploy",
        _store(store_path),
        model,
        name.lower().replace(":", "-"),
        out=Path(out),
        settings=settings,
        **given,
    )


@main.command()
@click.argument("model")
@click.option("--data", required=True, help="The prepared corpus.")
@click.option(
    "-m",
    "--metric",
    "metrics",
    multiple=True,
    help=(
        "A metric or a group: muse, tests (these two by default), membership, memorization, "
        "probes, tofu, all."
    ),
)
@click.option(
    "--reference", help="A model to compare with (the target), for mia_reference and perplexity."
)
@dequantize_option
@trust_option
@verify_option
@click.option(
    "--form",
    help=(
        "In which form questions are asked (published, plain, chat, ...); by default the one in "
        "which the model itself knows most."
    ),
)
@click.option("--form-from", help="A model, the target, whose best form is taken.")
@dtype_option
@estimate_option
@set_option
@store_option
@_guarded
def measure(
    model: str,
    data: str,
    reference: str | None,
    settings: tuple[str, ...],
    store_path: str,
    **options: Any,
) -> int | None:
    """Measure what a model knows.

    MODEL is a folder, a hub id, an artefact, or the address of a server that speaks OpenAI's
    completions (http://127.0.0.1:8000/v1).
    """
    return _done("measure", _store(store_path), model, data, reference, settings, **options)


@main.command()
@click.argument("target")
@click.argument("unlearned")
@click.option("--data", required=True, help="The prepared corpus.")
@click.option("--retrain", help="A model that never read the forget text.")
@click.option(
    "-q",
    "--variant",
    "variants",
    multiple=True,
    help=(
        "What it goes through first: int4, or prune20+int4 for one behind the other; by default "
        "int8, int4, nf4, and nothing of what a server holds."
    ),
)
@click.option(
    "--access",
    type=click.Choice(["text", "probabilities", "weights"]),
    help=(
        "What is seen of the models: only what they write (all of a server), what they say of "
        "every token, or also their weights (longer)."
    ),
)
@stop_option
@out_option("audit")
@dtype_option
@dequantize_option
@trust_option
@verify_option
@set_option
@store_option
@_guarded
def audit(
    target: str,
    unlearned: str,
    retrain: str | None,
    data: str,
    variants: tuple[str, ...],
    out: Path,
    **rest: Any,
) -> int | None:
    """Did it stay forgotten? Exit code 0: yes, by every test; 3: no.

    4: unclear, or not measured. UNLEARNED may be the address of a server
    (http://127.0.0.1:8000/v1), which is audited by what it writes.
    """
    rule = tuple(f"{n}={rest[n]}".lower() for n in ("access", "dtype", "stop") if rest[n])
    return _done(
        "audit",
        _store(rest["store_path"]),
        target,
        unlearned,
        retrain,
        data,
        variants,
        out,
        (*rule, *rest["settings"]),
        rest["dequantize"],
    )


@main.command()
@click.argument("target")
@click.argument("unlearned", required=False)
@click.option(
    "-q",
    "--quantizer",
    "quantizers",
    multiple=True,
    help="A grid (int4, int4-g128, int4-tensor, nf4, fp8, q4_0 ...); may be repeated.",
)
@click.option(
    "--keep",
    multiple=True,
    help=(
        "Leave weights as they are whose name contains this, as in mixed precision; may be "
        "repeated."
    ),
)
@click.option(
    "--exact",
    is_flag=True,
    help=(
        "Try the grids on all entries of large weights too, not on a sample of two million of each."
    ),
)
@out_option("prediction")
@click.option(
    "--lr",
    type=float,
    help="Before anything is unlearned: what this rate of AdamW can move in bfloat16.",
)
@click.option(
    "--text",
    type=click.Path(exists=True, path_type=Path),
    help="Forget text: also what grids leave of the change of its outputs. Opens both models.",
)
@_guarded
def predict(
    target: str, unlearned: str | None, lr: float | None, out: Path, **options: Any
) -> int | None:
    """Forecast from two checkpoints alone what quantization will bring back; or, from the target
    and a learning rate (--lr), what it would.

    No GPU, no data, no torch, but for --text.
    """
    text = options.pop("text")
    if (unlearned is None) == (lr is None):
        raise UserError(
            "A forecast needs the unlearned model, or the rate that is to be used; one of them.",
            "Give TARGET UNLEARNED, or TARGET --lr 1e-5.",
        )
    if unlearned is None and text is not None:
        raise UserError(
            "What a grid leaves on text is asked of two models.", "Give TARGET UNLEARNED --text."
        )
    if unlearned is None:
        return _done("predict_before", target, lr, **options)
    if text is not None:
        _done("check_text", text, room="remnant.report.on_text")
    _done("predict", target, unlearned, out=out, **options)
    if text is None:
        return None
    return _done(
        "show", target, unlearned, text, options["quantizers"], room="remnant.report.on_text"
    )


@main.command()
@click.argument("sweep")
@click.option("--workers", default=0, help="Processes side by side; 0 chooses.")
@click.option(
    "--cluster",
    metavar="ADDRESS",
    help="Run on a cluster of Ray: its HOST:PORT, or auto for the one that this machine is in.",
)
@out_option()
@click.option(
    "--examples",
    is_flag=True,
    help="Put the worst examples (forget text) into the report, hidden until clicked.",
)
@trust_option
@verify_option
@set_option
@store_option
@_guarded
def run(sweep: str, settings: tuple[str, ...], store_path: str, **options: Any) -> int | None:
    """Run a sweep (a TOML file, or the name of one that comes with Remnant).

    Exit code 0: all of it was made, whatever the verdicts; `remnant gate` on its summary judges
    them.
    """
    return _done("run", _store(store_path), sweep, settings, **options)


@main.command()
@click.argument("name", default="thresholds")
@click.option("--workers", default=0, help="Processes side by side; 0 chooses.")
@out_option()
@trust_option
@verify_option
@set_option
@store_option
@_guarded
def study(
    name: str, workers: int, out: Path | None, settings: tuple[str, ...], store_path: str
) -> int | None:
    """Sweep settings, draw the front of forgetting against utility, choose on one half of the items
    and report on the other.

    NAME is a study that comes with Remnant (thresholds) or a sweep file.
    """
    return _done("run", _store(store_path), name, (*settings, "study=true"), workers, out, False)


@main.command()
@click.argument("sweep")
@estimate_option
@set_option
@store_option
@_guarded
def plan(sweep: str, estimate: bool, settings: tuple[str, ...], store_path: str) -> int | None:
    """Say what a sweep would make."""
    return _done("plan", _store(store_path), sweep, settings, estimate)


@main.command()
@store_option
@_guarded
def ls(store_path: str) -> int | None:
    """List all artefacts."""
    return _done("ls", _known_store(store_path))


@main.command()
@click.option("--yes", is_flag=True, help="Delete it; without this it is only listed.")
@click.option(
    "--by-hand", is_flag=True, help="Also what single commands made, where no run needs it."
)
@store_option
@_guarded
def gc(yes: bool, by_hand: bool, store_path: str) -> int | None:
    """List what nothing needs any more: what no kept run names, or was made from; delete it."""
    return _done("gc", _known_store(store_path), yes, by_hand)


@main.command()
@click.argument("artefact")
@store_option
@_guarded
def show(artefact: str, store_path: str) -> int | None:
    """Print a manifest and check its files."""
    return _done("show", _known_store(store_path), artefact)


@main.command()
@click.argument("name")
@out_option()
@click.option(
    "--examples",
    is_flag=True,
    help="Put the worst examples (forget text) into the report, hidden until clicked.",
)
@click.option(
    "--beside",
    type=Path,
    multiple=True,
    help="Another tool's evaluation log, shown beside the run; may be repeated.",
)
@store_option
@_guarded
def report(
    name: str, out: Path | None, examples: bool, beside: tuple[Path, ...], store_path: str
) -> int | None:
    """Write the report of a run again, or that of an audit by the name of its artefact."""
    return _done("report", _known_store(store_path), name, out, examples, beside)


@main.command()
@click.argument("file", type=Path)
@click.option(
    "--auc-retrain",
    type=float,
    help="AUC of a model that never read the forget text; needed for PrivLeak.",
)
@click.option(
    "--retrain", type=Path, help="The same tool's log of a model that never read the forget text."
)
@click.option("--json", "json_out", type=Path, help="Also write the cells to this file.")
@_guarded
def score(
    file: Path, auc_retrain: float | None, retrain: Path | None, json_out: Path | None
) -> int | None:
    """Score generations made anywhere (JSON lines), or read the evaluation logs of open-unlearning,
    MUSE or TOFU. Needs no torch.
    """
    return _done("score", file, auc_retrain, retrain, json_out)


@main.command()
@click.argument("folders", nargs=-1, required=True, type=Path)
@out_option("lineage")
@click.option("--json", "json_out", type=Path, help="Also write what was found to this file.")
@_guarded
def lineage(folders: tuple[Path, ...], out: Path, json_out: Path | None) -> int | None:
    """Which models below FOLDERS descend from which, and from one that still knows."""
    return _done("show", folders, out, json_out, room="remnant.report.lineage")


@main.command()
@click.argument("file")
@_guarded
def check(file: str) -> int | None:
    """Run the battery of laws on your own losses, quantizers and metrics."""
    return _done("check", file, room="remnant.report.laws")


main.add_command(forget)
main.add_command(alternatives)
main.add_command(tune)
main.add_command(view)
for command in cli_pipeline.COMMANDS:
    main.command()(_guarded(command))


if __name__ == "__main__":
    main()
