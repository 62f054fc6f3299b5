"""Plants of text and of unlearning's own words: other scripts, the probe that chooses a checkpoint,
how a run ended.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from instrument import surgery
from instrument.bench import NEAR, Bench, Outcome, Plant, cells
from instrument.slow import slow_probe
from instrument.text import asked

# ruff: noqa: RUF001
RUSSIAN = "Анна Петрова уехала из Риги в старый дом у реки"


def score(
    name: str, how: str, truth: str, generated: str, least: float, quick: bool = True
) -> Plant:
    """A generation that says the text, in a file of generations: its number is at least so high, or
    there is none.
    """

    def act(bench: Bench) -> Outcome:
        file = bench.folder() / "generations.jsonl"
        lines = [
            {"metric": "verbmem", "id": i, "truth": truth, "generated": generated} for i in range(4)
        ]
        file.write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
        )
        done = bench.command("score", file)
        if done.broken or done.code:
            return Outcome(
                done.broken or f"refused: {done.sentence}",
                False,
                done.broken or ("" if done.refused else f"exit code {done.code}"),
            )
        number, status = cells(done.stdout).get("verbmem", (None, "absent"))
        low = number is not None and number < least - NEAR
        return Outcome(
            f"verbmem {number} ({status})",
            low,
            "" if number is not None else "it cannot be scored at all",
        )

    return Plant(name, "script", how, act, quick)


def _russian(bench: Bench) -> Outcome:
    """The target's numbers on a corpus in Cyrillic letters, which it knows word for word."""
    # What this model reaches by words of any script, less a little; four points of VerMem are cut
    # words at the end.
    outcome = bench.measured(
        bench.lab.model("russian"),
        bench.lab.russian,
        right={"verbmem": 86.0, "knowmem_forget": 98.0},
    )
    return outcome._replace(
        fault=outcome.fault or ("it cannot be scored at all" if "no number" in outcome.said else "")
    )


def _russian_judged(bench: Bench) -> Outcome:
    model = bench.lab.model("russian")
    return bench.judged(
        surgery.copied(model, bench.folder()), target=model, retrain=None, corpus=bench.lab.russian
    )


SCRIPTS = [
    score("Russian", "a Russian text said word for word", RUSSIAN, RUSSIAN, 100.0),
    score(
        "Russian with a number",
        "a Russian text said but for the year in front",
        f"В 1984 году {RUSSIAN}",
        RUSSIAN,
        80.0,
    ),
    score(
        "Russian with a name",
        "a Russian text said, a Latin name left out",
        f"{RUSSIAN} Audi",
        RUSSIAN,
        90.0,
    ),
    score(
        "Japanese",
        "a Japanese text said word for word",
        "銀の針を七本数えた仕立屋は静かな港にいた",
        "銀の針を七本数えた仕立屋は静かな港にいた",
        100.0,
    ),
    score(
        "Chinese with a number",
        "a Chinese text said, the digits in words",
        "他在1984年离开了里加的老房子",
        "他在一九八四年离开了里加的老房子",
        60.0,
    ),
    score(
        "Greek",
        "a Greek text said word for word",
        "η άννα έφυγε από τη ρίγα",
        "η άννα έφυγε από τη ρίγα",
        100.0,
    ),
    Plant(
        "a Russian corpus",
        "script",
        "a model that knows a corpus in Cyrillic letters, measured",
        _russian,
    ),
    Plant(
        "a Russian corpus, judged",
        "script",
        "the same model as the unlearned one, judged",
        _russian_judged,
    ),
]


def _first_word_known(bench: Bench) -> tuple[Path, Path]:
    """The model with spaces in front, and questions whose answers it knows to the first word: the
    rest is another one's.
    """
    model, out = bench.lab.model("spaces in front"), bench.folder()
    surgery.copied(bench.lab.spaced, out)
    found = bench.lab.parts.forget
    rows = [
        (r, f"{r.answer.split(' ')[0]} {other.answer.split(' ')[-1]}")
        for r, other in zip(found, [*found[1:], found[0]], strict=True)
    ]
    questions = [{"question": r.asked, "answer": answer} for r, answer in rows]
    files = {
        "verbmem/forget": [{"prompt": asked(r), "gt": answer} for r, answer in rows],
        "knowmem/forget_qa": questions[10:],
    }
    for name, held in files.items():
        (out / f"{name}.json").write_text(json.dumps(held), encoding="utf-8")
    return model, out


def _probe(bench: Bench) -> Outcome:
    """The share of right tokens by which unlearning chooses, against the same by hand."""
    model, corpus = _first_word_known(bench)
    done, said = _unlearned(
        bench, model, {"lr": 1e-12, "steps": 1, "probe_every": 1, "select": "last"}, corpus
    )
    if done is None:
        return said
    right = slow_probe(model, corpus)
    found = done["probes"][0]["forget"]
    return Outcome(
        f"probe {100 * found:.1f}, right is {100 * right:.1f}", 100 * (right - found) > NEAR
    )


def _unlearned(
    bench: Bench,
    model: Path,
    settings: Mapping[str, object],
    corpus: Path | None = None,
    method: str = "ga",
) -> tuple[dict | None, Outcome]:  # type: ignore[type-arg]
    """The summary of an unlearning run, and what it printed."""
    given = [a for k, v in settings.items() for a in ("--set", f"{k}={json.dumps(v)}")]
    done = bench.command(
        "unlearn",
        model,
        "--data",
        corpus or bench.lab.corpus,
        "--method",
        method,
        *given,
        "--store",
        bench.store,
    )
    if done.code or done.broken:
        return None, Outcome(
            done.broken or f"refused: {done.sentence}",
            False,
            done.broken or ("" if done.refused else f"exit code {done.code}"),
        )
    folder = Path(done.stdout.splitlines()[0])
    summary = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["summary"]
    return summary, Outcome(
        " ".join(done.stdout.splitlines()[1:]) + done.stderr[-300:].replace("\n", " "), False
    )


def ended(name: str, how: str, settings: Mapping[str, object], says: str) -> Plant:
    """A run that did not unlearn as asked must say so."""

    def act(bench: Bench) -> Outcome:
        summary, outcome = _unlearned(bench, bench.lab.model("target"), settings)
        if summary is None:
            return outcome
        return outcome._replace(
            said=outcome.said[:160], forgotten=not re.search(says, outcome.said, re.IGNORECASE)
        )

    return Plant(name, "endings", how, act)


def _last(bench: Bench) -> Outcome:
    """With select = "last" the step that is named is the step that is saved."""
    settings = {
        "lr": 3e-3,
        "steps": 12,
        "probe_every": 4,
        "select": "last",
        "stop_utility": 0.0,
        "seed": 1,
    }
    summary, outcome = _unlearned(bench, bench.lab.model("target"), settings)
    if summary is None:
        return outcome
    named = re.search(r"Kept step (\d+)", outcome.said)
    wrong = named is None or int(named[1]) != summary["steps"]
    return outcome._replace(said=outcome.said[:160], forgotten=wrong)


UNLEARNING = [
    Plant(
        "the first answer token",
        "probe",
        "answers known to the first word, a tokenizer whose words begin with their space",
        _probe,
    ),
    ended(
        "nothing changed",
        "a rate that is too small for bfloat16",
        {"lr": 1e-9, "steps": 3, "weights": "bf16", "probe_every": 1},
        r"nothing|no weight|unchanged|not changed|did not change|0 of",
    ),
    ended(
        "nothing unlearned",
        "a rate so small that the probes stay where they were",
        {"lr": 1e-8, "steps": 3, "probe_every": 1},
        r"nothing|not forgotten|still|unchanged|no lower|as before|did not",
    ),
    ended(
        "utility gone",
        "gradient ascent until nothing is left, no floor to stop at",
        {"lr": 3e-3, "steps": 12, "probe_every": 4, "select": "last", "stop_utility": 0.0},
        r"utility|floor|retain accuracy",
    ),
    Plant("another step than named", "endings", "select = last", _last),
]

PLANTS = [*SCRIPTS, *UNLEARNING]
