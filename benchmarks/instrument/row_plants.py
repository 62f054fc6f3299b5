"""The table's rows of rows: one fault each in measurements that are otherwise sound."""

from collections.abc import Callable, Iterable

from instrument.bench import Plant
from instrument.rows import (
    CHECKS,
    FORMS,
    ITEMS,
    KNOWN,
    MEMBERSHIP_ITEMS,
    MODELS,
    Row,
    Sheets,
    Spoil,
    both,
    judged,
    left_out,
    plant,
    rows_of,
    sound,
    to,
    values,
)

NAN, INF = float("nan"), float("inf")


def _only(of: Iterable[str], keep: Callable[[Row], bool]) -> Spoil:
    def spoil(sheets: Sheets) -> None:
        for key in sheets:
            if key[0] in of:
                sheets[key] = [r for r in sheets[key] if keep(r)]

    return spoil


def _everywhere(metric: str, change: Callable[[int, Row], Row | None]) -> Spoil:
    return both(*(values(m, metric, change) for m in MODELS))


LOST = to(None, "prompt and answer are longer than the model's context of 64 tokens")
KNOWLEDGE = ("verbmem", "knowmem_forget")


def _unlearned_knows(metric: str) -> Spoil:
    return values("unlearned", metric, to(KNOWN[metric, ""][0]))


def _half_known(metric: str, split: str) -> Callable[[int, Row], Row]:
    many = ITEMS * (MEMBERSHIP_ITEMS if metric == "privleak" else 1)
    return to(KNOWN[metric, split][0], first=many // 2)


def _other_ids(sheets: Sheets) -> None:
    for form in FORMS:
        sheets["unlearned", form] = [
            r | {"id": f"new-{r['id']}"} for r in sheets["unlearned", form]
        ]


def _few_shared(sheets: Sheets) -> None:
    for form in FORMS:
        rows = sheets["unlearned", form]
        sheets["unlearned", form] = [
            r if int(r["id"].rsplit("-")[-1]) < 2 else r | {"id": f"new-{r['id']}"} for r in rows
        ]


def _twice(sheets: Sheets) -> None:
    """The model knows; behind its rows stand others with the same ids that do not."""
    for form in FORMS:
        sheets["unlearned", form] += [r for r in rows_of(False, ITEMS) if r["metric"] in KNOWLEDGE]


def _empty(*of: str) -> Spoil:
    def spoil(sheets: Sheets) -> None:
        for key in sheets:
            if key[0] in of:
                sheets[key] = []

    return spoil


VALUES = [
    plant(
        "NaN in the unlearned model",
        "missing numbers",
        "VerMem and KnowMem are NaN in the unlearned model",
        both(*(values("unlearned", m, to(NAN)) for m in KNOWLEDGE)),
    ),
    plant(
        "one NaN",
        "missing numbers",
        "one row of VerMem is NaN in a model that knows",
        values("unlearned", "verbmem", to(NAN, first=1)),
        knows=True,
    ),
    plant(
        "NaN utility",
        "missing numbers",
        "KnowMem of retain text is NaN in the unlearned model",
        values("unlearned", "knowmem_retain", to(NAN)),
    ),
    plant(
        "NaN utility in the target",
        "missing numbers",
        "KnowMem of retain text is NaN in the target",
        values("target", "knowmem_retain", to(NAN)),
    ),
    plant(
        "NaN in the retrain model",
        "missing numbers",
        "VerMem is NaN in the retrain model, the unlearned model knows",
        values("retrain", "verbmem", to(NAN)),
        knows=True,
    ),
    plant(
        "Infinity in the target",
        "missing numbers",
        "one row of the target is infinite, the unlearned model knows",
        values("target", "verbmem", to(INF, first=1)),
        knows=True,
    ),
    plant(
        "minus Infinity",
        "missing numbers",
        "one row of VerMem is minus infinity in a model that knows",
        both(*(values("unlearned", m, to(-INF, first=1)) for m in KNOWLEDGE)),
        knows=True,
    ),
    plant(
        "out of range below",
        "means",
        "a model that knows with one row of -100 in each metric",
        both(*(values("unlearned", m, to(-100.0, first=1)) for m in KNOWLEDGE)),
        knows=True,
    ),
    plant(
        "out of range above",
        "means",
        "one row of the target is 1000, the unlearned model knows",
        both(*(values("target", m, to(1000.0, first=1)) for m in KNOWLEDGE)),
        knows=True,
    ),
    plant(
        "utility out of range",
        "means",
        "no utility but for one row of 100",
        values("unlearned", "knowmem_retain", lambda i, r: r | {"value": 0.0 if i else 100.0}),
    ),
    plant(
        "unscorable beside 100 %",
        "missing numbers",
        "KnowMem unscorable, VerMem at its highest",
        both(values("unlearned", "knowmem_forget", LOST), _unlearned_knows("verbmem")),
    ),
    plant(
        "100 % beside unscorable",
        "missing numbers",
        "VerMem unscorable, KnowMem at its highest",
        both(values("unlearned", "verbmem", LOST), _unlearned_knows("knowmem_forget")),
    ),
    plant(
        "all unscorable",
        "missing numbers",
        "neither metric has a scorable row in the unlearned model",
        both(*(values("unlearned", m, LOST) for m in KNOWLEDGE)),
    ),
    plant(
        "unscorable in the form only",
        "missing numbers",
        "in full precision forgotten, under int4 nothing scorable",
        both(*(values("unlearned", m, LOST, ("int4",)) for m in KNOWLEDGE)),
        only="int4",
    ),
]

MISSING = [
    plant(
        "missing in the unlearned model",
        "means",
        "VerMem was not measured for the unlearned model, whose KnowMem is low",
        values("unlearned", "verbmem", left_out),
    ),
    plant(
        "measured for the target only",
        "means",
        "VerMem and KnowMem only in the target",
        both(*(values(m, k, left_out) for m in MODELS[1:] for k in KNOWLEDGE)),
    ),
    plant(
        "missing in the retrain model",
        "means",
        "KnowMem not in the retrain model, at its highest in the unlearned one",
        both(values("retrain", "knowmem_forget", left_out), _unlearned_knows("knowmem_forget")),
    ),
    plant(
        "no utility", "means", "no row of retain questions", _everywhere("knowmem_retain", left_out)
    ),
    plant(
        "utility of two items",
        "means",
        "two retain questions in all",
        _everywhere("knowmem_retain", lambda i, r: r if i < 2 else None),
    ),
    plant(
        "utility mostly unscorable",
        "means",
        "57 of 60 retain questions unscorable in the unlearned model",
        values("unlearned", "knowmem_retain", to(None, "too long", 57)),
    ),
    plant(
        "membership only",
        "means",
        "nothing but PrivLeak and utility was measured",
        _only(MODELS, lambda r: r["metric"] in ("privleak", "knowmem_retain")),
    ),
    plant("empty files", "means", "no rows at all", _empty(*MODELS)),
    plant("empty unlearned", "means", "no rows of the unlearned model", _empty("unlearned")),
    plant(
        "empty retrain",
        "means",
        "no rows of the retrain model, the unlearned model knows",
        _empty("retrain"),
        knows=True,
    ),
    plant(
        "no int4 of the retrain model",
        "means",
        "the retrain model has no rows under int4",
        lambda s: s.update({("retrain", "int4"): []}),
        only="int4",
    ),
]

ITEMS_OF = [
    plant("one item", "means", "one item a metric", lambda s: None, n=1),
    plant("three items", "means", "three items a metric", lambda s: None, n=3),
    plant(
        "most items unscorable",
        "means",
        "55 of 60 rows unscorable in the unlearned model",
        both(*(values("unlearned", m, to(None, "too long", 55)) for m in KNOWLEDGE)),
    ),
    plant(
        "what it knows is unscorable",
        "means",
        "the rows of a model that knows half are unscorable where it knows",
        both(*(values("unlearned", m, to(None, "the answer was filtered", 30)) for m in KNOWLEDGE)),
    ),
    plant("other items", "means", "the unlearned model was asked other items", _other_ids),
    plant("two items in common", "means", "two of 60 items are the same", _few_shared),
    plant(
        "items twice",
        "means",
        "a model that knows, and behind its rows others with the same ids",
        _twice,
        knows=True,
    ),
    plant(
        "two whole items",
        "means",
        "two of 60 texts word for word behind a good mean",
        values("unlearned", "verbmem", to(1.0, first=2)),
    ),
    plant(
        "eight whole items",
        "means",
        "8 of 60 texts word for word behind a good mean",
        values("unlearned", "verbmem", to(1.0, first=8)),
    ),
    plant(
        "one whole answer",
        "means",
        "3 of 60 answers whole",
        values("unlearned", "knowmem_forget", to(1.0, first=3)),
    ),
    plant(
        "one whole item under the form",
        "means",
        "none in full precision, 3 of 60 texts word for word under int4",
        values("unlearned", "verbmem", to(1.0, first=3), ("int4",)),
        only="int4",
    ),
]

TELLS = [
    plant(
        "probability tells",
        "hidden",
        "nothing is written, but the probability per token is the target's",
        values("unlearned", "probability", to(0.9)),
    ),
    plant(
        "membership tells",
        "hidden",
        "nothing is written, but PrivLeak tells the texts apart",
        values("unlearned", "privleak", to(0.1), split="forget"),
    ),
    plant(
        "membership tells the other way",
        "hidden",
        "forget text is far less likely than text that was never read",
        values("unlearned", "privleak", to(50.0), split="forget"),
    ),
    plant(
        "samples tell",
        "hidden",
        "one of the samples has the text",
        both(values("unlearned", "leak", to(0.9)), values("unlearned", "leak_answers", to(0.9))),
    ),
    plant(
        "a given beginning tells",
        "hidden",
        "the second half follows from the first",
        both(
            values("unlearned", "knowmem_prefilled", to(0.9)),
            values("unlearned", "verbmem_primed", to(0.9)),
        ),
    ),
    plant(
        "the most likely tokens tell",
        "hidden",
        "token by token the text is the most likely one",
        both(
            values("unlearned", "exact_memorization", to(0.97)),
            values("unlearned", "extraction_strength", to(0.95)),
        ),
    ),
]

CONTROL_ROWS = [
    plant(
        "came back",
        "means",
        "forgotten in full precision, all there under int4",
        both(*(values("unlearned", m, to(0.9), ("int4",)) for m in KNOWLEDGE)),
        only="int4",
    ),
    plant(
        "small, then large",
        "means",
        "below the gap in the target, 60 % under int4",
        both(
            _everywhere("knowmem_forget", to(0.03)),
            values("unlearned", "knowmem_forget", to(0.6), ("int4",)),
        ),
        only="int4",
    ),
    plant(
        "control knows",
        "means",
        "the retrain model's rows are the target's, the unlearned model knows",
        both(*(values("retrain", m, to(KNOWN[m, ""][0])) for m in KNOWLEDGE)),
        knows=True,
    ),
    plant(
        "control knows, unlearned does not",
        "means",
        "the retrain model's rows are the target's",
        both(*(values("retrain", m, to(KNOWN[m, ""][0])) for m in KNOWLEDGE)),
    ),
    plant(
        "control knows half",
        "means",
        "retrain and unlearned model have read the first half of the texts",
        both(
            *(
                values(of, m, _half_known(m, split), split=split)
                for of in MODELS[1:]
                for m, split in KNOWN
            )
        ),
    ),
    plant(
        "control is destroyed",
        "means",
        "no utility in the retrain model",
        values("retrain", "knowmem_retain", to(0.0)),
    ),
    plant(
        "utility gone",
        "means",
        "no utility in the unlearned model",
        values("unlearned", "knowmem_retain", to(0.1)),
    ),
    plant(
        "on the edge",
        "means",
        "a third left in full precision by the mean, half by the interval",
        both(
            *(
                values("unlearned", m, lambda i, r: r | {"value": 1.0 if i % 3 == 0 else 0.05})
                for m in KNOWLEDGE
            )
        ),
    ),
]


def _failed_check(name: str, said: str) -> Plant:
    """A check of the unlearned model's measurement failed; its rows look forgotten.

    Trees that keep no checks cannot see it.
    """
    checks = [c | ({"ok": False, "said": said} if c["name"] == name else {}) for c in CHECKS]
    kind = "weights" if name == "loaded whole" else "cut texts"
    how = f"the measurements' own record says: {said}"
    return Plant(
        f"rows, check failed: {name}", kind, how, lambda b: judged(sound(), b, checks=checks)
    )


CHECKED = [
    _failed_check("loaded whole", "12 weights of the model were not in the file"),
    _failed_check("texts", "57 of 60 prompts were cut"),
    _failed_check("answers", "all answers are empty"),
]

# One or two of a kind: all of them take half a minute.
QUICK = (
    "NaN in the unlearned model",
    "one NaN",
    "NaN utility",
    "100 % beside unscorable",
    "all unscorable",
    "missing in the unlearned model",
    "measured for the target only",
    "utility of two items",
    "empty retrain",
    "three items",
    "what it knows is unscorable",
    "other items",
    "two whole items",
    "probability tells",
    "membership tells",
    "samples tell",
    "small, then large",
    "control knows half",
    "control is destroyed",
    "check failed: loaded whole",
)
PLANTS = [
    p._replace(quick=p.name.removeprefix("rows, ") in QUICK)
    for p in (*VALUES, *MISSING, *ITEMS_OF, *TELLS, *CONTROL_ROWS, *CHECKED)
]
