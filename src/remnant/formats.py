"""What the libraries that quantize have to offer, as tables that need none of them. No torch.

A name is checked against these before a run begins: what a library would refuse after an hour is
refused at once.
"""

from collections.abc import Callable, Mapping
from typing import Any

# Types of llama.cpp that are written here without an importance matrix.
GGUF_TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K", "IQ4_XS")
# Presets of compressed-tensors that round weights in a form that vLLM loads.
CT_SCHEMES = ("W4A16", "W8A16", "FP8")
# Entries that share a scale in bitsandbytes. Source: bitsandbytes 0.50, functional.py.
BNB_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
# The kernels of all libraries read whole groups of 8 columns; hqq refuses others itself.
GROUP_STEP, MOST_GROUP = 8, 1 << 16

Params = Mapping[str, Any]


def fault_of(use: str, params: Params) -> str | None:
    """What is wrong with the parameters of a built-in quantizer, in a sentence.

    None where nothing is.

    Args:
        use: its key in the table of quantizers; of one that is not here nothing is known.
        params: all of its parameters, of the right types.
    """
    checks = _CHECKS.get(use, ())
    return next((fault for check in checks if (fault := check(params))), None)


def _one_of(name: str, known: tuple[Any, ...], what: str) -> Callable[[Params], str | None]:
    def check(params: Params) -> str | None:
        if name not in params or params[name] in known:
            return None
        return (
            f"{what} {', '.join(map(str, known[:-1]))} or {known[-1]}, not "
            f"{str(params[name])[:40]!r}."
        )

    return check


def _within(name: str, low: int, high: int, what: str) -> Callable[[Params], str | None]:
    def check(params: Params) -> str | None:
        value = params.get(name, low)
        return None if low <= value <= high else f"{what} {low} to {high}, not {str(value)[:40]}."

    return check


def _grouped(params: Params) -> str | None:
    size = params.get("group_size", 0)
    if 0 <= size <= MOST_GROUP and size % GROUP_STEP == 0:
        return None
    return (
        f"groups are multiples of {GROUP_STEP} columns up to {MOST_GROUP}, or 0 for whole rows, "
        f"not {str(size)[:40]}."
    )


def _bits(*known: int) -> Callable[[Params], str | None]:
    return _one_of("bits", known, "the bits are")


def _hqq_group(params: Params) -> str | None:
    return (
        "hqq has no scale per whole row; name a group." if params.get("group_size") == 0 else None
    )


def _adapter(params: Params) -> str | None:
    return (
        None
        if params.get("adapter")
        else "name the folder of the adapter with --set params.adapter=FOLDER."
    )


_SHOT = (_bits(3, 4, 8), _grouped)
_BLOCK = (_within("block", 1, MOST_GROUP, "blocks are of"),)
_CHECKS: Mapping[str, tuple[Callable[[Params], str | None], ...]] = {
    "rtn": (
        _within("bits", 2, 8, "the bits are"),
        _one_of("granularity", ("tensor", "channel", "group"), "the granularity is"),
        _within("group_size", 1, MOST_GROUP, "groups are of"),
        _one_of("scheme", ("sym", "half-step", "paper", "asym"), "the scheme is"),
    ),
    "nf4": _BLOCK,
    "fp4": _BLOCK,
    "fp8": (_within("block", 0, MOST_GROUP, "blocks are of"),),
    "q8_0": _BLOCK,
    "q4_0": _BLOCK,
    "cast": (_one_of("dtype", ("bfloat16", "float16"), "the dtype is"),),
    "lora": (_adapter,),
    "gptq": _SHOT,
    "awq": _SHOT,
    "autoround": (*_SHOT, _within("steps", 1, 100_000, "the steps are")),
    "compressed": (_one_of("scheme", CT_SCHEMES, "the scheme is"),),
    "bnb-4bit": (
        _one_of("levels", ("nf4", "fp4"), "the levels are"),
        _one_of("block", BNB_BLOCKS, "bitsandbytes has blocks of"),
    ),
    "torchao": (_within("bits", 2, 8, "the bits are"), _grouped),
    "torchao-8": (_one_of("kind", ("fp8", "int8-dynamic"), "the kind is"),),
    "hqq": (_bits(2, 3, 4, 8), _grouped, _hqq_group),
    "gguf": (_one_of("type", GGUF_TYPES, "the type is"),),
}
