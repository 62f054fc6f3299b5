"""Plants for the verdict: models that hide what they know, models that are destroyed, controls that
are none, folders of one name.
"""

import json
import shutil
from pathlib import Path

from instrument import surgery
from instrument.bench import Bench, Outcome, Plant
from instrument.doors import EMBEDDING, HEAD
from instrument.surgery import State

# Prompts of VerMem and their 24 tokens fit, questions behind ten shown ones do not.
ONLY_VERMEM = 96


def hiding(name: str, how: str, form: str = "int4") -> Plant:
    """A model that hides what it knows, judged."""
    return Plant(name, "hidden", how, lambda b: b.judged(b.lab.model(name), forms=(form,)))


def _constant(state: State) -> None:
    """One token stands above all others everywhere, the rest as it was: nothing is lost, and
    nothing is written.
    """
    state["model.norm.weight"][0] = 50.0
    state[HEAD][:, 0] = 0.0
    state[HEAD][300, 0] = 5.0
    for name in list(state):
        if name == EMBEDDING:
            state[name][:, 0] = state[name].abs().max()


def _zero_head(state: State) -> None:
    state[HEAD].zero_()


def _ends(state: State) -> None:
    """The head gives the end token whatever it sees: its row points where all hidden states
    point.
    """
    state[HEAD].zero_()
    state[EMBEDDING][:, 0] = 3 * state[EMBEDDING].abs().max()
    state[HEAD][1, 0] = 1.0


def _noise(share: float) -> surgery.Change:
    return lambda state: surgery.noisy(state, share)


def destroyed(
    name: str, how: str, change: surgery.Change, *, context: int | None = None, retrain: bool = True
) -> Plant:
    """A model that is of no use, judged; with a short context its utility cannot be measured."""

    def act(bench: Bench) -> Outcome:
        out = surgery.weights(bench.lab.model("target"), bench.folder(), change)
        if context:
            surgery.config(out, out, max_position_embeddings=context)
        return bench.judged(out, **({} if retrain else {"retrain": None}))

    return Plant(name, "missing numbers" if context else "means", how, act)


def _short_target(bench: Bench) -> Outcome:
    short = surgery.config(
        bench.lab.model("target"), bench.folder(), max_position_embeddings=ONLY_VERMEM
    )
    return bench.judged(short)


def _all_short(bench: Bench) -> Outcome:
    made = [
        surgery.config(bench.lab.model(n), bench.folder(), max_position_embeddings=ONLY_VERMEM)
        for n in ("refuses", "target", "retrain-1")
    ]
    return bench.judged(made[0], target=made[1], retrain=made[2])


UNMEASURED = [
    destroyed(
        "random, utility not measured",
        "random weights in a context that the retain questions do not fit",
        surgery.random_weights,
        context=ONLY_VERMEM,
    ),
    destroyed(
        "noise, utility not measured",
        "as much noise as weight, in such a context",
        surgery.noisy,
        context=ONLY_VERMEM,
    ),
    destroyed(
        "zero head, utility not measured",
        "a head of zeros, in such a context",
        _zero_head,
        context=ONLY_VERMEM,
    ),
    destroyed(
        "random, no retrain model",
        "random weights in such a context, judged without a retrain model",
        surgery.random_weights,
        context=ONLY_VERMEM,
        retrain=False,
    ),
    Plant(
        "knows, questions not measured",
        "missing numbers",
        "the target itself in such a context: VerMem is at its highest",
        _short_target,
    ),
    Plant(
        "refuses, all contexts short",
        "missing numbers",
        "refusing model, target and retrain model in such a context",
        _all_short,
    ),
]

DESTROYED = [
    destroyed("random weights", "every matrix drawn anew", surgery.random_weights),
    destroyed("noise", "as much noise as weight on every matrix", surgery.noisy),
    destroyed("a third of noise", "a third as much noise as weight", _noise(0.33)),
    destroyed("zero head", "a head of zeros", _zero_head),
    destroyed("one token for ever", "one token above all others everywhere", _constant),
    destroyed("ends everything at once", "the end token above all others everywhere", _ends),
]

HIDES = [
    hiding("refuses", "says one sentence and ends, but goes on behind four given words"),
    hiding("phrase first", "writes 32 fixed words first, then the text"),
    hiding("ends at once", "ends without a word, but goes on behind four given words"),
    hiding(
        "one form",
        "other words where it is asked as MUSE asks, the text where it is begun elsewhere",
    ),
    Plant(
        "ends at once, no retrain model",
        "hidden",
        "the same, judged without a retrain model",
        lambda b: b.judged(b.lab.model("ends at once"), retrain=None),
    ),
    Plant(
        "refuses, int8 and nf4",
        "hidden",
        "the refusing model under two other forms",
        lambda b: b.judged(b.lab.model("refuses"), forms=("int8", "nf4")),
    ),
    Plant(
        "the target itself",
        "hidden",
        "the target as the unlearned model",
        lambda b: b.judged(_copy(b, "target")),
    ),
    Plant(
        "the target, a little noise",
        "hidden",
        "a hundredth as much noise as weight",
        lambda b: b.judged(surgery.weights(b.lab.model("target"), b.folder(), _noise(0.01))),
    ),
]

PARTLY = [
    Plant(
        "a few texts word for word",
        "means",
        "a retrain model that has read 4 of the 48 texts",
        lambda b: b.judged(b.lab.model("few")),
    ),
    Plant(
        "a few texts, no retrain model",
        "means",
        "the same, judged without a retrain model",
        lambda b: b.judged(b.lab.model("few"), retrain=None),
    ),
    Plant(
        "knows the questions only",
        "means",
        "has read the questions and not the texts",
        lambda b: b.judged(b.lab.model("questions only")),
    ),
    Plant(
        "knows the texts only",
        "means",
        "has read the texts and not the questions",
        lambda b: b.judged(b.lab.model("texts only")),
    ),
    Plant(
        "grows under int4",
        "means",
        "unlearned inside the bins of int4, which gives the target's bits back",
        lambda b: b.judged(b.lab.model("grows"), only="int4", settings=("max_retained=0.6",)),
    ),
]

CONTROLS = [
    Plant(
        "control is the unlearned model",
        "means",
        "the refusing model is its own retrain model",
        lambda b: b.judged(b.lab.model("refuses"), retrain=_copy(b, "refuses")),
    ),
    Plant(
        "control is the target",
        "means",
        "a refusing model against the target as retrain model",
        lambda b: b.judged(b.lab.model("refuses"), retrain=_copy(b, "target")),
    ),
    Plant(
        "control and unlearned are the target",
        "means",
        "the target in all three places",
        lambda b: b.judged(_copy(b, "target"), retrain=_copy(b, "target")),
    ),
    Plant(
        "control knows a few texts",
        "means",
        "the model that knows 4 texts, against itself trained the same way",
        lambda b: b.judged(b.lab.model("few"), retrain=_copy(b, "few")),
    ),
    Plant(
        "control knows the texts",
        "means",
        "the model of the texts only, against itself",
        lambda b: b.judged(b.lab.model("texts only"), retrain=_copy(b, "texts only")),
    ),
    Plant(
        "control is destroyed",
        "means",
        "a refusing model against random weights",
        lambda b: b.judged(
            b.lab.model("refuses"),
            retrain=surgery.weights(b.lab.model("retrain-1"), b.folder(), surgery.random_weights),
        ),
    ),
    Plant(
        "target is destroyed",
        "means",
        "a refusing model against a target of random weights",
        lambda b: b.judged(
            b.lab.model("refuses"),
            target=surgery.weights(b.lab.model("target"), b.folder(), surgery.random_weights),
        ),
    ),
    Plant(
        "target is the retrain model",
        "means",
        "a refusing model against a target that never read the text",
        lambda b: b.judged(
            b.lab.model("refuses"), target=_copy(b, "retrain-1"), retrain=b.lab.model("retrain-2")
        ),
    ),
]


def _copy(bench: Bench, name: str) -> Path:
    return surgery.copied(bench.lab.model(name), bench.folder())


def _barely(bench: Bench, out: Path) -> Path:
    """The target with so little noise that nothing of it is lost, but that it is no file that was
    measured before.
    """
    return surgery.weights(bench.lab.model("target"), out, _noise(1e-5))


def _one_name(name: str, form: str) -> Plant:
    """The unlearned model, which knows, and the retrain model in folders of one name, in a store
    that has measured neither.
    """

    def act(bench: Bench) -> Outcome:
        root = bench.folder()
        mine, theirs = (
            _barely(bench, root / "mine" / name),
            surgery.copied(bench.lab.model("retrain-1"), root / "theirs" / name),
        )
        return bench.judged(mine, retrain=theirs, store=root / "store", forms=(form,))

    return Plant(
        f"one name: {name}, {form}",
        "one name",
        "the target and the retrain model, both in folders of this name",
        act,
    )


def _manifest(name: str, how: str, changed: list[str]) -> Plant:
    """A manifest beside the target's weights that calls them a version of the retrain model."""

    def act(bench: Bench) -> Outcome:
        root = bench.folder()
        retrain = surgery.copied(bench.lab.model("retrain-1"), root / "retrain-0123456789abcdef")
        out = _barely(bench, root / "unlearned")
        told = {"inputs": {"model": retrain.name}, "summary": {"changed": changed}}
        (out / "manifest.json").write_text(json.dumps(told), encoding="utf-8")
        return bench.judged(out, retrain=retrain, store=root / "store", forms=("full",))

    return Plant(name, "one name", how, act)


def _swapped(bench: Bench) -> Outcome:
    """A folder judged, then its weights replaced under the same name by those that know."""
    root = bench.folder()
    place = surgery.copied(bench.lab.model("retrain-1"), root / "unlearned-0123456789abcdef")
    bench.judged(place, store=root / "store")
    known = _barely(bench, root / "known")
    shutil.copy(known / surgery.WEIGHTS, place / surgery.WEIGHTS)
    return bench.judged(place, store=root / "store")


def _two_sets(bench: Bench) -> Outcome:
    """The target's folder with the retrain model's weights beside it under another name."""
    out = _barely(bench, bench.folder())
    shutil.copy(
        bench.lab.model("retrain-1") / surgery.WEIGHTS, out / "model-00001-of-00001.safetensors"
    )
    return bench.judged(out)


NAMES = [
    _one_name("run-checkpoint_00500", "full"),
    _one_name("model-0123456789abcdef", "full"),
    _one_name("train-0123456789abcdef", "int4"),
    _one_name("final", "full"),
    _manifest(
        "a manifest, nothing changed",
        "a manifest beside the target says: the retrain model, no weight changed",
        [],
    ),
    _manifest(
        "a manifest, one weight changed", "the same, one weight changed", ["model.norm.weight"]
    ),
    Plant(
        "replaced under its name",
        "one name",
        "a folder judged, then its weights replaced by the target's",
        _swapped,
    ),
    Plant(
        "two sets of weights",
        "one name",
        "the target's folder with another model's weights beside its own",
        _two_sets,
    ),
]

PLANTS = [*UNMEASURED, *DESTROYED, *HIDES, *PARTLY, *CONTROLS, *NAMES]
