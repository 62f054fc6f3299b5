"""Formats are values: their short names go both ways, their parameters are checked in one place,
and what they say of themselves is what their functions do."""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import pytest

from remnant import methods
from remnant.errors import UserError
from remnant.flow import plan as planning
from remnant.forecast.kernels import KINDS
from remnant.formats.table import (
    FORMATS,
    NAMES,
    by_name,
    checked,
    decided_by_text,
    deployed_names,
    short,
)
from remnant.methods import TRANSFORM_READS, chain, step
from remnant.records import CorpusSpec, RunSpec, SweepSpec, TransformSpec
from remnant.resolve import resolve

# What names have stood for since they were first used; artefacts are known by it.
MEANT: Mapping[str, tuple[str, dict[str, Any]]] = {
    "int4": ("rtn", {"bits": 4, "granularity": "channel", "group_size": 128, "scheme": "sym"}),
    "int8-tensor": (
        "rtn", {"bits": 8, "granularity": "tensor", "group_size": 128, "scheme": "sym"}
    ),
    "int3-g64-half-step": (
        "rtn", {"bits": 3, "granularity": "group", "group_size": 64, "scheme": "half-step"}
    ),
    "int2-channel-paper": (
        "rtn", {"bits": 2, "granularity": "channel", "group_size": 128, "scheme": "paper"}
    ),
    "nf4": ("nf4", {"block": 64}),
    "fp4-b32": ("fp4", {"block": 32}),
    "fp8": ("fp8", {"block": 0}),
    "q8_0": ("q8_0", {"block": 32}),
    "q4_0": ("q4_0", {"block": 32}),
    "bf16": ("cast", {"dtype": "bfloat16"}),
    "fp16": ("cast", {"dtype": "float16"}),
    "gptq3": ("gptq", {"bits": 3, "group_size": 0}),
    "awq4-g128": ("awq", {"bits": 4, "group_size": 128}),
    "autoround8-g32": ("autoround", {"bits": 8, "group_size": 32, "steps": 200}),
    "ct-w8a16": ("compressed", {"scheme": "W8A16"}),
    "ct-fp8": ("compressed", {"scheme": "FP8"}),
    "bnb-fp4": ("bnb-4bit", {"levels": "fp4", "block": 64, "double": False}),
    "bnb-nf4-b128-dq": ("bnb-4bit", {"levels": "nf4", "block": 128, "double": True}),
    "bnb-int8": ("bnb-int8", {}),
    "ao-int4-g128-asym": ("torchao", {"bits": 4, "group_size": 128, "asymmetric": True}),
    "ao-int8-dynamic": ("torchao-8", {"kind": "int8-dynamic"}),
    "hqq2-g16": ("hqq", {"bits": 2, "group_size": 16}),
    "hqq4": ("hqq", {"bits": 4, "group_size": 64}),
    "gguf-iq4_xs": ("gguf", {"type": "IQ4_XS"}),
}  # fmt: skip


@pytest.mark.parametrize("name", MEANT)
def test_a_name_stands_for_what_it_always_stood_for(name: str) -> None:
    spec = step(name).spec
    assert (spec.use, dict(spec.params)) == MEANT[name]


@pytest.mark.parametrize("name", [*MEANT, *NAMES])
def test_names_and_parameters_go_both_ways_and_one_format_alone_reads_a_name(name: str) -> None:
    found = by_name(name)
    assert found is not None
    assert sum(one.read(name) is not None for one in FORMATS.values()) == 1
    back = found.format.write(found.params)
    assert back is not None
    assert by_name(back) == found
    assert back == name or name == "int2-channel-paper"
    assert short(found.format.key, found.params.model_dump()) == (back, {})


@pytest.mark.parametrize("name", ["int9", "nf4-", "ct-W4A16", "gptq5", "q5_0", "full", "", "int4 "])
def test_other_names_stand_for_nothing(name: str) -> None:
    assert by_name(name) is None


@pytest.mark.parametrize("key", FORMATS)
def test_a_record_has_the_parameters_and_defaults_of_its_function(key: str) -> None:
    found = FORMATS[key]
    module, function = found.path.split(":")
    taken = inspect.signature(getattr(import_module(module), function)).parameters.values()
    tuned = {p.name: p.default for p in taken if p.kind is p.KEYWORD_ONLY}
    fields = found.params.model_fields
    assert set(fields) == set(tuned)
    assert {n: f.default for n, f in fields.items() if not f.is_required()} == {
        n: v for n, v in tuned.items() if not fields[n].is_required()
    }


@pytest.mark.parametrize("key", FORMATS)
def test_what_a_format_says_of_itself_is_so(key: str) -> None:
    found = FORMATS[key]
    reads = resolve("transform", key, FORMATS, TRANSFORM_READS, {}).reads
    assert found.by_text == ("batches" in reads)
    assert (found.grid is None) or reads == ("weight",)
    for path in filter(None, (found.path, found.saver, found.opener)):
        module, function = path.split(":")
        assert callable(getattr(import_module(module), function))
    for name in found.names:
        named = by_name(name)
        assert named is not None
        assert named.format is found
        assert found.grid is None or found.grid(named.params).kind in KINDS


@pytest.mark.parametrize(
    ("key", "params", "says"),
    [
        ("rtn", {"bits": 1}, "the bits are 2 to 8, not 1"),
        ("rtn", {"scheme": "odd", "bits": 9}, "the bits are 2 to 8, not 9.* the scheme is sym"),
        ("nf4", {"block": 0}, "blocks are of 1 to 65536, not 0"),
        ("gptq", {"bits": 5}, "the bits are 3, 4 or 8, not '5'"),
        ("awq", {"group_size": 7}, "groups are multiples of 8 columns"),
        ("autoround", {"steps": 0}, "the steps are 1 to 100000, not 0"),
        ("hqq", {"group_size": 0}, "hqq has no scale per whole row"),
        ("bnb-4bit", {"block": 48}, "bitsandbytes has blocks of 32, 64"),
        ("compressed", {"scheme": "W9A9"}, "the scheme is W4A16, W8A16"),
    ],
)
def test_what_a_library_would_refuse_is_refused_in_words(
    key: str, params: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        checked(FORMATS[key], params)
    with pytest.raises(UserError, match=says):
        step(TransformSpec(use=key, params=params))


def test_the_formats_that_are_deployed_have_a_saver_and_a_runtime_that_asks_for_them() -> None:
    assert {"ct-w4a16", "gptq4-g128", "bnb-nf4", "ao-fp8", "gguf-q4_k_m"} <= set(deployed_names())
    assert not {"int4", "nf4", "hqq4", "bnb-nf4-b128-dq"} & set(deployed_names())


@pytest.mark.parametrize(
    ("steps", "decided"),
    [
        (["gptq4"], True),
        (["int8", "awq4-g128"], True),
        (["autoround4 steps=50"], True),
        (["gptq bits=4"], True),
        (["int4"], False),
        (["gguf-q4_k_m"], False),
        (["int4-g0"], False),
        (["mine.py:gptq"], False),
    ],
)
def test_the_forecast_knows_where_calibration_text_decides(steps: list[str], decided: bool) -> None:
    assert decided_by_text(steps) == decided


def test_a_plan_looks_every_quantizer_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[str] = []

    def counted(kind: str, use: str, *rest: Any) -> Any:
        looked_up.extend([use] * (kind == "transform"))
        return resolve(kind, use, *rest)

    monkeypatch.setattr(methods, "resolve", counted)
    sweep = SweepSpec(
        name="s",
        seeds=(0, 1),
        corpus=(CorpusSpec(lab="news"), CorpusSpec(lab="books")),
        unlearn=(RunSpec(method="ga"), RunSpec(method="npo")),
        quantizers=("int4", "bf16+nf4"),
        packed=("bnb-fp4",),
    )
    nodes = planning.plan(sweep)
    assert sorted(looked_up) == ["bnb-4bit", "cast", "nf4", "rtn"]
    assert {n.label.form for n in nodes if n.stage == "measure"} == {
        "full", "int4", "bf16+nf4", "bnb-fp4 packed"
    }  # fmt: skip


def test_a_chain_has_its_steps_in_order_and_a_users_function_is_one_step() -> None:
    assert [by.spec.use for by in chain("bf16+full+int4").steps] == ["cast", "rtn"]
    assert methods.steps("mine.py:one+two") == ["mine.py:one+two"]
