"""Every built-in method by its name, as data: where its function lives, its version, meaning, range
and source.

This file imports nothing heavy, so plans are checked without torch. To add a method, write its
function and add one line here; the version enters the identity of every artefact made with it, so
raise it when results change.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from remnant.formats import CT_SCHEMES, GGUF_TYPES

# Raise a stage's version when its results change; artefacts of older versions are then made again.
STAGE_VERSIONS: Mapping[str, int] = {
    "prepare": 2,
    "train": 2,
    "unlearn": 3,
    "perturb": 2,
    "measure": 4,
    "explain": 6,
    "judge": 3,
    "deploy": 3,
}

Better = Literal["low", "high", "zero", "none"]


class Entry(NamedTuple):
    """One built-in: ``path`` is "module:function", ``better`` the direction in which the model has
    forgotten (or is useful).
    """

    path: str
    version: int
    meaning: str
    source: str
    better: Better = "none"
    unit: str = ""


class Metric(NamedTuple):
    """One built-in metric, read as an Entry is, and what it is measured on.

    ``on``: sets of items (``ITEM_SETS``); with "forget" and "holdout" among them the number is how
    well the two can be told apart. ``params``: keyword arguments that are not the function's
    defaults. ``columns``: which fields of Tokens it reads. ``span``: the range of the number that
    is shown.
    """

    path: str
    version: int
    meaning: str
    source: str
    better: Better
    on: tuple[str, ...]
    params: Mapping[str, object] = {}
    columns: tuple[str, ...] = ("logp",)
    unit: str = "x100"
    span: str = "0 to 100"


_LOSS = "remnant.functional.losses:"
LOSSES: Mapping[str, Entry] = {
    "ga": Entry(_LOSS + "ga", 1, "gradient ascent on forget text", "arXiv 2210.01504", unit="nats"),
    "npo": Entry(
        _LOSS + "npo",
        1,
        "negative preference optimisation on sequence likelihoods",
        "arXiv 2404.05868, eq. 3",
        unit="nats",
    ),
    "gdr": Entry(_LOSS + "gdr", 1, "cross entropy on retain text", "arXiv 2401.06121", unit="nats"),
    "klr": Entry(
        _LOSS + "klr",
        1,
        "KL from target to policy on retain text",
        "arXiv 2410.16454, eq. 10",
        unit="nats",
    ),
}

METHODS: Mapping[str, tuple[str, ...]] = {
    "ga": ("ga",),
    "ga_gdr": ("ga", "gdr"),
    "ga_klr": ("ga", "klr"),
    "npo": ("npo",),
    "npo_gdr": ("npo", "gdr"),
    "npo_klr": ("npo", "klr"),
}

# What writes the files of a format that a runtime opens; the quantizers that are missing here are
# grids to study.
SAVERS: Mapping[str, str] = {
    "compressed": "remnant.deploy.oneshot:save",
    "gptq": "remnant.deploy.oneshot:save",
    "awq": "remnant.deploy.oneshot:save",
    "autoround": "remnant.deploy.oneshot:save",
    "bnb-4bit": "remnant.deploy.bnb:save",
    "bnb-int8": "remnant.deploy.bnb:save",
    "torchao": "remnant.deploy.torchao:save",
    "torchao-8": "remnant.deploy.torchao:save",
    "gguf": "remnant.deploy.llamacpp:save",
}

_QUANT = "remnant.functional.quantizers:"
QUANTIZERS: Mapping[str, Entry] = {
    "rtn": Entry(
        _QUANT + "rtn", 1, "round to nearest on an integer grid", "arXiv 2410.16454, section 4"
    ),
    "nf4": Entry(_QUANT + "nf4", 1, "4-bit NormalFloat in blocks", "arXiv 2305.14314"),
    "fp4": Entry(_QUANT + "fp4", 1, "4-bit float (e2m1) in blocks", "bitsandbytes"),
    "fp8": Entry(_QUANT + "fp8", 1, "8-bit float (e4m3) with a scale per row", "arXiv 2209.05433"),
    "q8_0": Entry(_QUANT + "q8_0", 1, "GGUF's 8-bit blocks of 32", "llama.cpp, ggml-quants.c"),
    "q4_0": Entry(_QUANT + "q4_0", 1, "GGUF's 4-bit blocks of 32", "llama.cpp, ggml-quants.c"),
    "cast": Entry(_QUANT + "cast", 1, "a narrower float, bfloat16 or float16", "torch"),
    "lora": Entry(
        "remnant.deploy.lora:merge",
        1,
        "a LoRA adapter merged into the weights, by peft",
        "arXiv 2106.09685, eq. 3",
    ),
    "gptq": Entry(
        "remnant.deploy.oneshot:gptq",
        1,
        "error-compensating rounding on calibration text",
        "arXiv 2210.17323",
    ),
    "awq": Entry(
        "remnant.deploy.oneshot:awq",
        1,
        "activation-aware scaling, then rounding",
        "arXiv 2306.00978",
    ),
    "autoround": Entry(
        "remnant.deploy.oneshot:autoround",
        1,
        "rounding learned on calibration text",
        "arXiv 2309.05516",
    ),
    "compressed": Entry(
        "remnant.deploy.oneshot:rounded",
        1,
        "rounding as vLLM loads it, by llm-compressor",
        "compressed-tensors",
    ),
    "bnb-4bit": Entry(
        "remnant.deploy.bnb:four_bit", 1, "NF4 and FP4 by bitsandbytes", "arXiv 2305.14314"
    ),
    "bnb-int8": Entry(
        "remnant.deploy.bnb:int8", 1, "LLM.int8 weights by bitsandbytes", "arXiv 2208.07339"
    ),
    "torchao": Entry("remnant.deploy.torchao:intx", 1, "integer weights by torchao", "torchao"),
    "torchao-8": Entry(
        "remnant.deploy.torchao:eight",
        1,
        "8-bit floats, and integers beside rounded activations, by torchao",
        "torchao",
    ),
    "hqq": Entry("remnant.deploy.hqq:hqq", 1, "half-quadratic quantization", "hqq"),
    "gguf": Entry(
        "remnant.deploy.llamacpp:gguf",
        1,
        "whole files by llama.cpp, embeddings and head included",
        "llama.cpp",
    ),
}

# Where items come from: files of a corpus, or these turned otherwise.
ITEM_SETS: Mapping[str, str] = {
    "verbmem": "prompts cut from forget text",
    "verbmem_retain": "prompts cut from retain text",
    "verbmem_begun": (
        "the same prompts as verbmem, with the first quarter of the continuation given"
    ),
    "verbmem_primed": "the same prompts as verbmem, behind another passage of forget text",
    "knowmem_forget": "questions about forget text, behind ten answered ones",
    "knowmem_retain": "questions about retain text, behind ten answered ones",
    "knowmem_reworded": "the questions about forget text in another frame and without examples",
    "knowmem_prefilled": "the questions about forget text with the first half of the answer given",
    "privleak_forget": "forget text as a whole",
    "privleak_holdout": "text like it that was never read",
    "tofu_forget": "TOFU's questions about the authors to be forgotten",
    "tofu_retain": "TOFU's questions about other fictitious authors",
    "tofu_authors": "TOFU's questions about real authors",
    "tofu_facts": "TOFU's questions about the world",
}

_TEXT, _MEMBER = "remnant.functional.text:", "remnant.functional.membership:"
_MEMORY, _TOFU = "remnant.functional.memory:", "remnant.functional.tofu:"
_TEXTS = ("privleak_forget", "privleak_holdout")
_MUSE, _GREEDY, _VOCABULARY = "arXiv 2407.06460", ("logp", "rank"), ("logp", "mean", "spread")
_QUESTIONS = ("tofu_forget", "tofu_retain", "tofu_authors", "tofu_facts")


def _attack(function: str, meaning: str, source: str, **more: Any) -> Metric:
    """A membership attack: AUC, near 0 where forget text is known, 50 where it cannot be told from
    text that was never read.
    """
    return Metric(
        _MEMBER + function, 1, f"membership by {meaning}, AUC", source, "none", _TEXTS, **more
    )


METRICS: Mapping[str, Metric] = {
    "verbmem": Metric(_TEXT + "overlap", 3, ("ROUGE-L F1 of the continuation of forget "
"text"), f"{_MUSE}, eq. 1", "low", ("verbmem",)),
    "knowmem_forget": Metric(
        _TEXT + "overlap", 3, "ROUGE-L F1 of answers about forget text", f"{_MUSE}, eq. 2", "low",
        ("knowmem_forget",)
    ),
    "knowmem_retain": Metric(_TEXT + "overlap", 3, ("ROUGE-L F1 of answers about retain text "
"(utility)"), _MUSE, "high", ("knowmem_retain",)),
    "verbmem_retain": Metric(
        _TEXT + "overlap", 3, ("ROUGE-L F1 of the continuation of retain text (utility, no "
"questions)"), "own", "high", ("verbmem_retain",)
    ),
    "privleak": Metric(
        _MEMBER + "min_k", 2, "Min-40% AUC against the retrain model's", f"{_MUSE}, eq. 3", "zero",
        _TEXTS, span="-100 upwards"
    ),
    "mia_loss": _attack("mean_loss", "mean loss", "arXiv 1709.01604"),
    "mia_zlib": _attack("zlib_ratio", "loss over compressed length", "arXiv 2012.07805"),
    "mia_lower": _attack("lower_case_ratio", "loss over that of the lower-cased text",
    "arXiv 2012.07805"),
    "mia_min20": _attack("min_k", "the lowest fifth of log-probabilities", "arXiv 2310.16789",
    params={"ratio": 0.2}),
    "mia_min60": _attack("min_k", ("the lowest three fifths of "
"log-probabilities"), "arXiv 2310.16789", params={"ratio": 0.6}),
    "mia_min_plus": _attack("min_k_plus_plus", "Min-20%++", "arXiv 2404.02936",
    columns=_VOCABULARY),
    "mia_recall": _attack("recall", "ReCaLL behind a text that was never read", "arXiv 2406.15968"),
    "mia_reference": _attack("reference_gap", "loss minus that of a reference model",
    "arXiv 2012.07805"),
    "mia_gradient": _attack("gradient_norm", "norm of the gradient", "arXiv 2104.10706"),
    "exact_memorization": Metric(
        _MEMORY + "exact_memorization", 1, ("share of right greedy tokens of forget "
"text"), "arXiv 2205.10770", "low", ("verbmem",),
        columns=_GREEDY,
    ),
    "extraction_strength": Metric(
        _MEMORY + "extraction_strength", 1, ("share of forget text that follows from the "
"rest"), "arXiv 2012.07805", "low", ("verbmem",),
        columns=_GREEDY,
    ),
    "probability": Metric(_MEMORY + "probability", 1, "probability per token of forget text",
    "arXiv 2401.06121", "low", ("verbmem",)),
    "longest_run": Metric(_MEMORY + "longest_run", 2, ("longest common run of words in the "
"continuation"), "own", "low", ("verbmem",)),
    "leak": Metric(_MEMORY + "leak_at_k", 2, ("best ROUGE-L F1 of four sampled "
"continuations"), "arXiv 2511.04934", "low", ("verbmem",)),
    "leak_answers": Metric(
        _MEMORY + "leak_at_k", 2, ("best ROUGE-L F1 of four sampled answers on forget "
"text"), "arXiv 2511.04934", "low", ("knowmem_forget",)
    ),
    "probability_answers": Metric(
        _MEMORY + "probability", 1, ("probability per token of answers about forget "
"text"), "arXiv 2401.06121", "low", ("knowmem_forget",)
    ),
    "verbmem_begun": Metric(
        _TEXT + "overlap", 2, ("the rest of the continuation of forget text, its first quarter "
"given"), "own", "low", ("verbmem_begun",)
    ),
    "verbmem_primed": Metric(_TEXT + "overlap", 2, ("VerMem behind another passage of forget "
"text"), "own", "low", ("verbmem_primed",)),
    "knowmem_reworded": Metric(_TEXT + "overlap", 2, ("KnowMem in another frame, without "
"examples"), "own", "low", ("knowmem_reworded",)),
    "knowmem_prefilled": Metric(
        _TEXT + "overlap", 2, ("the second half of answers about forget text, the first "
"given"), "own", "low", ("knowmem_prefilled",)
    ),
    "perplexity": Metric(
        _MEMORY + "perplexity", 1, ("perplexity of the continuations under the reference "
"model"), "own", "none", ("verbmem",),
        unit="", span="1 upwards",
    ),
    "tofu_probability": Metric(
        _TOFU + "answer_probability", 1, "probability per token of the answer", "arXiv 2401.06121",
        "none", ("tofu_forget", "tofu_retain")
    ),
    "tofu_choice": Metric(
        _TOFU + "choice_probability", 1, "the answer's share of the probability",
        "arXiv 2401.06121", "high", ("tofu_authors", "tofu_facts")
    ),
    "tofu_rouge": Metric(_TOFU + "rouge_recall", 2, "ROUGE-L recall of the answer, stemmed",
    "arXiv 2401.06121", "none", _QUESTIONS),
    "tofu_truth_ratio": Metric(_TOFU + "truth_ratio", 1, "wrong answers against the true one",
    "arXiv 2401.06121", "none", _QUESTIONS),
}  # fmt: skip

# What plain asking is: greedy answers. A verdict also wants utility, the first measure of it that
# there is.
PLAIN = ("verbmem", "knowmem_forget")
UTILITY = ("knowmem_retain", "verbmem_retain")
# What still tells forget text apart where plain asking finds nothing, by kind; each kind must be
# silent before a verdict passes.
TESTS: Mapping[str, tuple[str, ...]] = {
    "given beginning": ("verbmem_begun", "knowmem_prefilled"),
    "samples": ("leak", "leak_answers"),
    "probability per token": ("probability", "probability_answers"),
    "membership": ("privleak",),
}

METRIC_GROUPS: Mapping[str, tuple[str, ...]] = {
    "muse": ("verbmem", "knowmem_forget", "knowmem_retain", "privleak"),
    "tests": tuple(name for names in TESTS.values() for name in names),
    "membership": ("privleak", *(name for name in METRICS if name.startswith("mia_"))),
    "memorization": (
        "verbmem",
        "exact_memorization",
        "extraction_strength",
        "probability",
        "longest_run",
    ),
    "probes": (
        "leak",
        "leak_answers",
        "verbmem_begun",
        "verbmem_primed",
        "knowmem_reworded",
        "knowmem_prefilled",
    ),
    "tofu": tuple(name for name in METRICS if name.startswith("tofu_")),
    "all": tuple(METRICS),
}

_RTN_NAME = re.compile(
    r"int(?P<bits>[2-8])(?:-(?P<granularity>tensor|channel|g(?P<group>[0-9]{1,6})))?(?:-(?P<scheme>asym|half-step|paper))?"
)
_BLOCK_NAME = re.compile(r"(?P<use>nf4|fp4)(?:-b(?P<block>[0-9]{1,6}))?")
_FIXED_NAMES: Mapping[str, int] = {"fp8": 0, "q8_0": 32, "q4_0": 32}
_CASTS: Mapping[str, str] = {"bf16": "bfloat16", "fp16": "float16"}
_SHOT_NAME = re.compile(r"(?P<use>gptq|awq|autoround)(?P<bits>[348])(?:-g(?P<group>[0-9]{1,6}))?")
_BNB_NAME = re.compile(r"bnb-(?P<levels>nf4|fp4)(?:-b(?P<block>[0-9]{1,6}))?(?P<double>-dq)?")
_TORCHAO_NAME = re.compile(r"ao-int(?P<bits>[2-8])(?:-g(?P<group>[0-9]{1,6}))?(?P<asym>-asym)?")
_HQQ_NAME = re.compile(r"hqq(?P<bits>[2348])(?:-g(?P<group>[0-9]{1,6}))?")
_WHOLE_NAME = re.compile(r"(?P<use>ct|gguf)-(?P<kind>[a-z0-9_]+)")
QUANTIZER_NAMES = (
    "full", "bf16", "int8", "int4", "int3", "int2", "int4-tensor", "int4-g128", "int4-g32-asym",
    "nf4", "fp4", "fp8", "q8_0", "q4_0",
    "gptq4", "awq4", "autoround4-g128", "ct-w4a16", "ct-w8a16", "ct-fp8", "bnb-nf4", "bnb-fp4",
    "bnb-nf4-b128-dq", "bnb-int8",
    "ao-int4-g128-asym", "hqq4", "gguf-q8_0", "gguf-q4_k_m",
)  # fmt: skip

# Short names of formats whose files a runtime opens.
DEPLOYED = (
    "gguf-q4_k_m", "gguf-q8_0", "ct-w4a16", "ct-w8a16", "ct-fp8", "gptq4-g128", "awq4-g128",
    "autoround4-g128", "bnb-nf4", "bnb-fp4",
    "bnb-int8", "ao-int4-g128", "ao-fp8", "ao-int8-dynamic",
)  # fmt: skip


# All names of formats with a library's own types, to suggest the nearest where one is mistyped.
TYPED_NAMES = (*(f"gguf-{t.lower()}" for t in GGUF_TYPES), *(f"ct-{s.lower()}" for s in CT_SCHEMES))


def quantizer_params(name: str) -> tuple[str, dict[str, object]] | None:
    """A short name as (table key, parameters): "int4-g64-asym" -> ("rtn", {bits: 4, ...}).

    None if it is not one.
    """
    if match := _RTN_NAME.fullmatch(name):
        params: dict[str, object] = {"bits": int(match["bits"]), "scheme": match["scheme"] or "sym"}
        if match["group"]:
            return "rtn", params | {"granularity": "group", "group_size": int(match["group"])}
        return "rtn", params | {"granularity": match["granularity"] or "channel"}
    if match := _BLOCK_NAME.fullmatch(name):
        return match["use"], {"block": int(match["block"] or 64)}
    if name in _CASTS:
        return "cast", {"dtype": _CASTS[name]}
    if name in _FIXED_NAMES:
        return name, {"block": _FIXED_NAMES[name]}
    if match := _SHOT_NAME.fullmatch(name):
        return match["use"], {"bits": int(match["bits"]), "group_size": int(match["group"] or 0)}
    return _library_params(name)


def rtn_name(params: Mapping[str, Any]) -> str | None:
    """The short name of rounding to nearest with some parameters; None where it has none."""
    step = {"tensor": "-tensor", "channel": "", "group": f"-g{params.get('group_size', 128)}"}.get(
        params.get("granularity", "channel")
    )
    scheme = params.get("scheme", "sym")
    name = f"int{params.get('bits', 4)}{step}{'' if scheme == 'sym' else f'-{scheme}'}"
    return name if step is not None and _RTN_NAME.fullmatch(name) else None


def _library_params(name: str) -> tuple[str, dict[str, object]] | None:
    """The formats whose quantizing is left to a library."""
    if match := _BNB_NAME.fullmatch(name):
        return "bnb-4bit", {
            "levels": match["levels"],
            "block": int(match["block"] or 64),
            "double": bool(match["double"]),
        }
    if match := _TORCHAO_NAME.fullmatch(name):
        return "torchao", {
            "bits": int(match["bits"]),
            "group_size": int(match["group"] or 0),
            "asymmetric": bool(match["asym"]),
        }
    if name in ("ao-fp8", "ao-int8-dynamic"):
        return "torchao-8", {"kind": name.removeprefix("ao-")}
    if match := _HQQ_NAME.fullmatch(name):
        return "hqq", {"bits": int(match["bits"]), "group_size": int(match["group"] or 64)}
    if match := _WHOLE_NAME.fullmatch(name):
        kind = match["kind"].upper()
        if match["use"] == "ct":
            return ("compressed", {"scheme": kind}) if kind in CT_SCHEMES else None
        return ("gguf", {"type": kind}) if kind in GGUF_TYPES else None
    return None
