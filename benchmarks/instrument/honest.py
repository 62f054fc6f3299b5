"""Honest set-ups: models that never read the text, whole and useful. None may be called failed."""

from collections.abc import Callable

import torch
from safetensors.torch import load_file

from instrument import rows, served, surgery
from instrument.bench import Bench, Outcome, Plant, cells
from instrument.surgery import Change, State

FAILED = (
    "known",
    "came back",
    "broken",
    "refused",
    "traceback",
    "exit code",
    "no end",
)


def _honest(outcome: Outcome) -> Outcome:
    """A word of failure is a fault; gone, unclear and not measured are none."""
    head = outcome.said.partition(" (")[0]
    wrong = [word for word in FAILED if word in head]
    return Outcome(outcome.said, False, outcome.fault or (f"called {wrong[0]}" if wrong else ""))


def judged(name: str, how: str, act: Callable[[Bench], Outcome], quick: bool = False) -> Plant:
    """An honest set-up that is judged."""
    return Plant(name, "honest", how, lambda b: _honest(act(b)), quick)


def _stored(change: Change) -> Callable[[Bench], Outcome]:
    return lambda b: b.judged(surgery.weights(b.lab.model("retrain-2"), b.folder(), change))


def _bfloat(state: State) -> State:
    return {n: w.bfloat16() for n, w in state.items()}


def _pickled(bench: Bench) -> Outcome:
    out = surgery.copied(bench.lab.model("retrain-2"), bench.folder())
    torch.save(load_file(out / surgery.WEIGHTS), out / "pytorch_model.bin")
    (out / surgery.WEIGHTS).unlink()
    return bench.judged(out)


def _long(bench: Bench) -> Outcome:
    long = {
        n: surgery.config(bench.lab.model(n), bench.folder(), max_position_embeddings=32768)
        for n in ("target", "retrain-1", "retrain-2")
    }
    return bench.judged(long["retrain-2"], target=long["target"], retrain=long["retrain-1"])


def _several_ends(bench: Bench) -> Outcome:
    out = surgery.config(
        bench.lab.model("retrain-3"), bench.folder(), "generation_config.json", eos_token_id=[1, 2]
    )
    return bench.judged(out)


def _numbers(bench: Bench, model: str, at_least: dict[str, float]) -> Outcome:
    """A measurement that has numbers, and high ones where the text is known."""
    done = bench.measure(bench.lab.model(model))
    shown = cells(done.stdout)
    numbers = {m: shown.get(m, (None, ""))[0] for m in at_least}
    wrong = [m for m, least in at_least.items() if (number := numbers[m]) is None or number < least]
    said = "; ".join(f"{m} {shown.get(m, (None, 'absent'))[0]}" for m in at_least)
    return Outcome(
        said,
        False,
        done.broken
        or (
            f"refused: {done.sentence}" if done.code else f"{wrong[0]} is too low" if wrong else ""
        ),
    )


def _faithful(bench: Bench) -> Outcome:
    return served.measured(bench, lambda prompt, text, request: served.body(text))


def _has_numbers(outcome: Outcome) -> Outcome:
    return outcome._replace(
        fault=outcome.fault
        or ("no number" if "no number" in outcome.said or "not measured" in outcome.said else "")
    )


PLANTS = [
    *(
        judged(
            f"retrain model, seed {i}",
            f"a model of seed {i} that never read the text, as the unlearned one",
            lambda b, i=i: b.judged(b.lab.model(f"retrain-{i}")),
        )
        for i in (2, 3, 4)
    ),  # type: ignore[misc]
    judged(
        "other control",
        "seeds 3 and 4 against each other",
        lambda b: b.judged(b.lab.model("retrain-3"), retrain=b.lab.model("retrain-4")),
    ),
    judged(
        "no retrain model",
        "a model that never read the text, judged without a control",
        lambda b: b.judged(b.lab.model("retrain-2"), retrain=None),
    ),
    judged(
        "int8 and nf4",
        "under two other forms",
        lambda b: b.judged(b.lab.model("retrain-2"), forms=("int8", "nf4")),
    ),
    judged("bfloat16", "kept in bfloat16", _stored(_bfloat)),
    judged(
        "two files",
        "kept in two files with an index",
        lambda b: b.judged(surgery.sharded(b.lab.model("retrain-2"), b.folder(), lose=False)),
    ),
    judged("pytorch_model.bin", "kept as torch's own file", _pickled),
    judged(
        "another architecture",
        "a Qwen3 that never read the text",
        lambda b: b.judged(b.lab.model("qwen-retrain")),
    ),
    judged("long contexts", "all three models with a context of 32768", _long),
    judged("several end tokens", "a generation_config with two end tokens", _several_ends),
    judged(
        "sound rows",
        "rows made by hand without a fault",
        lambda b: rows.judged(rows.sound(), b),
        True,
    ),
    Plant(
        "the target's numbers",
        "honest",
        "the target measured: it knows the text",
        lambda b: _numbers(
            b, "target", {"verbmem": 85.0, "knowmem_forget": 85.0, "knowmem_retain": 85.0}
        ),
    ),
    Plant(
        "the retrain model's numbers",
        "honest",
        "a retrain model measured: it is useful",
        lambda b: _numbers(
            b, "retrain-1", {"verbmem": 0.0, "knowmem_forget": 0.0, "knowmem_retain": 85.0}
        ),
    ),
    Plant(
        "a faithful server",
        "honest",
        "a server that says what it knows",
        lambda b: _has_numbers(_faithful(b)),
        True,
    ),
]
