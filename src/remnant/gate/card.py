"""Cases of a gate as a section of a model card, with the hub's metadata of evaluation results.

Source of the form: model-index, as huggingface_hub writes it.
"""

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from remnant import __version__
from remnant.corpus import METRICS, of_role
from remnant.errors import UserError, first_line
from remnant.gate.decide import Audited, Case

TASK = f"Unlearning, audited by Remnant {__version__}"
BEGIN, END = "<!-- remnant gate: begin -->", "<!-- remnant gate: end -->"
# What Markdown would take for the end of a cell or the beginning of an element.
_ESCAPES = str.maketrans({"|": "\\|", "<": "&lt;", ">": "&gt;", "\n": " "})


def read_card(path: Path) -> str:
    """A model card as it is; empty where there is none.

    Raises:
        UserError: it cannot be read, or its metadata is no YAML.
    """
    try:
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        _opened(before)
    except (OSError, ValueError, importlib.import_module("yaml").YAMLError) as error:
        raise UserError(
            f"The model card {path} cannot be read ({first_line(error)}).", "Mend it, or move it."
        ) from error
    return before


def _opened(text: str) -> Any:
    hub = importlib.import_module("huggingface_hub")  # takes a second, and only this needs it
    whole = text if text.lstrip().startswith("---") else f"---\n{{}}\n---\n{text}"
    return hub.ModelCard(whole, ignore_metadata_errors=True)


def card(found: Audited, cases: Sequence[Case], before: str = "") -> str:
    """A model card with the verdicts in it: those of an earlier gate are replaced, all else of the
    card stays.

    Args:
        found: the audit, whose numbers stand beside the verdicts.
        cases: the forms that were promised, at least one.
        before: the card as it was; empty where there was none.
    """
    hub, old = importlib.import_module("huggingface_hub"), _opened(before)
    kept = [r for r in old.data.eval_results or () if r.task_name != TASK]
    own = [hub.EvalResult(**result) for result in _results(found, cases)]
    old.data.model_name = old.data.model_name or cases[0].model
    old.data.eval_results = kept + own
    text = _without(old.text).rstrip()
    section = f"{BEGIN}\n{_section(cases, found)}\n{END}\n"
    return f"---\n{old.data.to_yaml()}\n---\n{text}\n\n{section}"


def _without(text: str) -> str:
    head, begun, rest = text.partition(BEGIN)
    return head + rest.partition(END)[2] if begun else text


def _results(found: Audited, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """The verdict on every case, then what plain asking finds and the utility, x100."""
    wanted = {*of_role("knowledge"), *of_role("utility")}
    for case in cases:
        name = Path(case.corpus or "corpus").name
        about = {
            "task_type": "text-generation",
            "task_name": TASK,
            "dataset_type": name,
            "dataset_name": name if case.seed is None else f"{name}, seed {case.seed}",
            "dataset_config": case.form,
        }
        verdict = {"metric_type": "verdict", "metric_name": "Verdict"}
        yield {**about, **verdict, "metric_value": case.outcome}
        place = (case.corpus, case.seed, case.model, case.form)
        for cell in found.cells:
            here = (cell.corpus, cell.seed, cell.model, cell.form) == place
            if here and cell.metric in wanted and cell.value is not None:
                title = METRICS[cell.metric].title or cell.metric
                number = {"metric_type": cell.metric, "metric_name": title}
                yield {**about, **number, "metric_value": round(cell.value, 2)}


def _section(cases: Sequence[Case], found: Audited) -> str:
    rule, unread = found.rule, any(cell.model == "retrain" for cell in found.cells)
    # Without a never-read model knowledge is counted from nothing (design/006-verdict.md).
    told = rule.max_told if unread else rule.max_retained
    rows = [f"| {_cell(c.name)} | {c.outcome} | {_cell(c.reason)} |" for c in cases]
    lines = [
        "## Does it stay forgotten?",
        "",
        "| model and form | verdict | why |",
        "|---|---|---|",
        *rows,
        "",
        f"Audited by Remnant {__version__} with access to {rule.access}; plain asking may find "
        f"{rule.max_retained:.0%}, a stronger test {told:.0%}, and at least "
        f"{rule.utility_floor:.0%} of the utility must be left. Only *gone* is a pass.",
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.translate(_ESCAPES)
