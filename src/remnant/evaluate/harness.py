"""General ability by lm-evaluation-harness: its own tasks, task files of the user's, or one made of
the corpus.
"""

import contextlib
import io
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.corpus.prepared import records
from remnant.errors import UserError, first_line
from remnant.model.data import without_end
from remnant.quiet import hush

INSTALL = "Install it in Remnant's folder with: pip install -e '.[harness]'"
CHOICE, CHOICES = "choice", 4
# Which number of a sample is taken, the first that a task has.
SCORES = ("acc_norm", "acc", "exact_match", "em", "f1")
BATCH = 16


def ability(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    corpus: Path,
    folder: Path | None,
) -> dict[str, list[float]]:
    """One score per sample of every task, 0 to 1, high is able.

    In the order of the task's documents.

    Args:
        model: in evaluation mode, on its device.
        tokenizer: the model's.
        tasks: names that the harness knows, or "choice".
        corpus: for "choice", whose questions are those about retain text.
        folder: more task files in the harness's form.

    Raises:
        UserError: the harness is missing, knows no such task, or cannot get its data; a task has
            none of ``SCORES``.
    """
    modules = _library()
    with (
        tempfile.TemporaryDirectory() as scratch,
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        given = [_choice_task(corpus, Path(scratch)) if t == CHOICE else t for t in tasks]
        try:
            manager = modules["TaskManager"](
                include_path=str(folder) if folder else None,
                include_defaults=any(t != CHOICE for t in tasks),
            )
            lm = modules["HFLM"](
                pretrained=model,
                tokenizer=without_end(tokenizer),
                batch_size=BATCH,
                device=str(model.device),
            )
            found = modules["simple_evaluate"](
                model=lm, tasks=given, task_manager=manager, bootstrap_iters=0
            )
        except (KeyError, ValueError, OSError) as error:
            said = f"lm-evaluation-harness cannot run {', '.join(tasks)}: {first_line(error)}."
            raise UserError(said, "List its tasks with: lm-eval ls tasks") from error
    return {task: _scores(task, samples) for task, samples in found["samples"].items()}


def _scores(task: str, samples: Sequence[dict[str, Any]]) -> list[float]:
    name = next((s for s in SCORES if samples and s in samples[0]), None)
    if name is None:
        raise UserError(
            f"The task '{task}' has none of the scores {', '.join(SCORES)}.", "Choose another task."
        )
    return [float(s[name]) for s in sorted(samples, key=lambda s: int(s["doc_id"]))]


def _choice_task(corpus: Path, scratch: Path) -> dict[str, Any]:
    """Each question about retain text with its own answer among answers to other ones, told by
    likelihood.
    """
    path = corpus / "knowmem/retain_qa.json"
    if not path.is_file():
        raise UserError(
            "The corpus has no questions about retain text.",
            f"Leave '{CHOICE}' out of measure's ability.",
        )
    rows = records(path, "question", "answer")
    answers = sorted({row["answer"] for row in rows})
    if len(answers) < CHOICES:
        raise UserError(
            f"The corpus has only {len(answers)} different answers.",
            f"Leave '{CHOICE}' out of measure's ability.",
        )
    lines = []
    for i, row in enumerate(rows):
        rng = random.Random(i)
        others = rng.sample([a for a in answers if a != row["answer"]], CHOICES - 1)
        place = rng.randrange(CHOICES)
        lines.append(
            {
                "question": row["question"],
                "choices": [*others[:place], row["answer"], *others[place:]],
                "right": place,
            }
        )
    data = scratch / "choice.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return {
        "task": CHOICE,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(scratch / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc"}],
    }


def _library() -> dict[str, Any]:
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            "General ability needs lm-evaluation-harness, which is not installed.", INSTALL
        ) from error
    hush()
    return {"simple_evaluate": simple_evaluate, "HFLM": HFLM, "TaskManager": TaskManager}
