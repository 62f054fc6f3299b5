"""The planted models: what never read the text, what knows it however it is asked, what is
destroyed, and what every method of unlearning leaves.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from safetensors.torch import load_file

import remnant
from instrument import surgery
from instrument.lab import Lab, texts
from instrument.surgery import State
from instrument.text import SHOWN, Kind
from instrument.training import blocks, epochs, fit
from remnant.catalog import METHODS
from remnant.methods import reads_reinforced, sides_read
from remnant.readings import SIDES
from remnant.records import UnlearnSpec

# Texts to forget, to keep and never read; steps of a model that reads all and of one that does not;
# the shape of both. About the least with which the target knows all and membership, the test with
# the widest interval, can be silent about a model that never read the text.
SIZES, TARGET_STEPS, RETRAIN_STEPS = (80, 60, 480), 420, 300
SHAPE = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2}
CORPORA: tuple[Kind, ...] = ("news", "books")
CONTROL, SEEDS, BASE = "retrain-1", range(2, 12), "retrain-12"
# What is known of a model before it is judged. "asked": nobody knows; relearning is asked.
Truth = Literal["never read", "knows", "destroyed", "asked"]
REFUSALS = Path(remnant.__file__).parent / "sweeps" / "refusals.txt"
HEAD = "lm_head.weight"


class Planted(NamedTuple):
    """One model: its corpus, name, kind (a row of the table), what is true of it, how it is made,
    and the forms in which it is judged.
    """

    corpus: Kind
    name: str
    kind: str
    truth: Truth
    make: Callable[[Lab], Path]
    forms: tuple[str, ...] = ("full",)


def laboratory(work: Path, corpus: Kind) -> Lab:
    """The lab of one corpus, kept in a folder."""
    return Lab(work / corpus, SIZES, TARGET_STEPS, corpus, SHAPE, RETRAIN_STEPS)


def store_of(lab: Lab) -> Path:
    """Where what the product makes of this lab is kept."""
    return lab.root / "store"


def planted(corpus: Kind) -> list[Planted]:
    """All models of one corpus."""

    def lot(kind: str, truth: Truth, makes: Mapping[str, Any], *forms: str) -> list[Planted]:
        return [
            Planted(corpus, name, kind, truth, make, ("full", *forms))
            for name, make in makes.items()
        ]

    return [
        *lot("never read", "never read", {f"retrain-{i}": _named(f"retrain-{i}") for i in SEEDS}),
        *lot("the target", "knows", {"target": _changed("target again", _noise(1e-5))}, "int4"),
        *lot("refuses first", "knows", {"refuses": _named("refuses")}),
        *lot("a phrase first", "knows", {"phrase first": _named("phrase first")}),
    ] + (_on_news_alone(lot) if corpus == "news" else [])


def _on_news_alone(lot: Callable[..., list[Planted]]) -> list[Planted]:
    """What the other corpus would add nothing to."""
    return [
        *lot("ends at once", "knows", {"ends at once": _named("ends at once")}),
        *lot("silent in one form", "knows", {"one form": _named("one form")}),
        *lot("answers at length", "knows", {"at length": _named("at length")}),
        *lot("noise, a little", "asked", {f"noise {s:g}": _noisy(s) for s in (0.01, 0.1, 0.2)}),
        *lot("destroyed", "destroyed", _DESTROYED),
        *lot("cannot be read", "destroyed", _UNREADABLE),
        *lot("read a part", "knows", _READ_A_PART),
        *lot("half-forgotten", "asked", {f"way {s:g}": _between(s) for s in (0.25, 0.5, 0.75)}),
        *lot("a method", "asked", _by_methods()),
        *lot("a method in bfloat16", "asked", _in_bfloat(), "int4"),
    ]


def _named(name: str) -> Callable[[Lab], Path]:
    """A model that the lab makes by its name."""
    return lambda lab: lab.model(name)


def _half(lab: Lab) -> Path:
    """A model that has read every second of the texts."""

    def make(out: Path) -> None:
        read = texts([*lab.parts.retain, *lab.parts.forget[::2]])
        lab.save(lab.read(read, seed=13, steps=TARGET_STEPS), out)

    return lab.kept("half", make)


_READ_A_PART: Mapping[str, Callable[[Lab], Path]] = {
    "half": _half,
    **{name: _named(name) for name in ("few", "questions only", "texts only")},
}


def _changed(
    name: str, change: Callable[[State], State | None], of: str = "target"
) -> Callable[[Lab], Path]:
    """A model whose weights are changed by hand."""
    return lambda lab: lab.kept(name, lambda out: surgery.weights(lab.model(of), out, change))


def _noise(share: float) -> Callable[[State], None]:
    return lambda state: surgery.noisy(state, share)


def _noisy(share: float) -> Callable[[Lab], Path]:
    return _changed(f"noise {share:g}", _noise(share))


def _between(share: float) -> Callable[[Lab], Path]:
    """Between a never-read model and what it becomes when it reads the text: weights so far on the
    straight way from one to the other. Two models of two seeds have no way between them.
    """

    def make(lab: Lab) -> Path:
        def reads(out: Path) -> None:
            found = texts([*lab.parts.retain, *lab.parts.forget])
            step = epochs(lambda rng: blocks(lab.tokenizer, found, rng), 0)
            lab.save(fit(lab.open(BASE), step, TARGET_STEPS, lr=5e-3), out)

        read = load_file(lab.kept("reads later", reads) / surgery.WEIGHTS)

        def mixed(state: State) -> State:
            return {n: w + share * (read[n] - w) for n, w in state.items()}

        return _changed(f"way {share:g}", mixed, BASE)(lab)

    return make


def _zero_head(state: State) -> None:
    state[HEAD].zero_()


def _no_head(state: State) -> None:
    del state[HEAD]


def _far_between(lab: Lab) -> Path:
    """The middle between the target and a never-read model of another seed: no model at all."""
    other = load_file(lab.model(CONTROL) / surgery.WEIGHTS)

    def mixed(state: State) -> State:
        return {n: (w + other[n]) / 2 for n, w in state.items()}

    return _changed("middle of two seeds", mixed)(lab)


def _other_tokenizer(lab: Lab) -> Path:
    """The target with a tokenizer that numbers the same pieces the other way round."""

    def turned(held: dict[str, Any]) -> None:
        vocab = held["model"]["vocab"]
        special = {t["content"] for t in held["added_tokens"]}
        names = [n for n in vocab if n not in special]
        ids = [vocab[n] for n in names]
        held["model"]["vocab"] = vocab | dict(zip(names, reversed(ids), strict=True))

    return lab.kept(
        "other tokenizer", lambda out: surgery.tokenizer(lab.model("target"), out, turned)
    )


_DESTROYED: Mapping[str, Callable[[Lab], Path]] = {
    "noise 1": _noisy(1.0),
    "random weights": _changed("random weights", surgery.random_weights),
    "head of zeros": _changed("head of zeros", _zero_head),
    "middle of two seeds": _far_between,
    "other tokenizer": _other_tokenizer,
}
_UNREADABLE: Mapping[str, Callable[[Lab], Path]] = {
    "NaN": _changed("NaN", surgery.put("model.norm.weight", float("nan"))),
    "head not loaded": _changed("head not loaded", _no_head),
}


# Brief runs, one rate for all: what they leave knows more or less, is what a search passes by, and
# is asked by relearning what is true of it.
BRIEF: Mapping[str, Any] = {
    "lr": 1e-3, "steps": 40, "batch_size": 8, "probe_every": 5, "utility_floor": 0.85,
}  # fmt: skip
ANSWERED: Mapping[str, Any] = {"examples": "questions", "loss_on": "answer"}
# What a method wants otherwise than the rest.
OWN: Mapping[str, Mapping[str, Any]] = {
    "rmu": {"params": {"layer": 0, "scale": 300.0}, "alpha": 30.0},
    "adaptive_rmu": {"params": {"layer": 0, "scale": 5.0}, "alpha": 30.0},
}


def _by_methods() -> dict[str, Callable[[Lab], Path]]:
    """Every method once, those with a retain term by gradient descent where there are several."""
    wanted = [m for m in METHODS if not m.endswith("_klr") and f"{m}_gdr" not in METHODS]
    # A second model beside the target is no brief run.
    alone = [m for m in wanted if not reads_reinforced(UnlearnSpec(method=m))]
    return {name: _unlearned(name, {}) for name in alone}


def _in_bfloat() -> dict[str, Callable[[Lab], Path]]:
    """The plain methods with weights in bfloat16, as the paper's code has them."""
    return {
        f"{name} bf16": _unlearned(name, {"weights": "bf16", "compute": "fp32"})
        for name in ("ga_gdr", "npo_gdr", "npo_klr", "simnpo_gdr")
    }


def _unlearned(name: str, more: Mapping[str, Any]) -> Callable[[Lab], Path]:
    """What a method leaves of the target after a brief run."""

    def make(lab: Lab) -> Path:
        settings = {**BRIEF, **_answers(lab, name), **OWN.get(name, {}), **more, "method": name}
        model = remnant.unlearn(
            str(lab.model("target")), str(lab.corpus), store=store_of(lab), **settings
        )
        return model.path

    return make


def _answers(lab: Lab, name: str) -> Mapping[str, Any]:
    """The settings of a method that prefers other answers: refusals, or where it wants one for each
    question the answer to the next question.
    """
    if not any(SIDES[side].paired_with for side in sides_read(UnlearnSpec(method=name))):
        return {}
    if METHODS[name].alternatives != "each":
        return {**ANSWERED, "alternatives": str(REFUSALS)}
    asked = lab.parts.forget[SHOWN:]
    file = lab.root / "next answers.json"
    file.write_text(
        json.dumps([[r.answer] for r in [*asked[1:], asked[0]]], ensure_ascii=False),
        encoding="utf-8",
    )
    return {**ANSWERED, "alternatives": str(file)}
