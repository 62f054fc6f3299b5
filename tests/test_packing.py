"""Packed models: every kind is measured as its dense copy or refused by name, and none is rounded
twice in silence."""

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant import api, cli
from remnant.errors import UserError
from remnant.flow import plan as planning
from remnant.flow import sources
from remnant.flow.place import Outside
from remnant.flow.run import make
from remnant.flow.store import Store
from remnant.methods import step
from remnant.model.load import open_model, open_tokenizer, save_model
from remnant.packing import PACKINGS, gguf_in, packing_in
from remnant.records import DequantizeResult, SweepSpec, TrainSpec
from remnant.testing import tiny_model
from tests import packers
from tests.zoo import zoo_model

Save = Callable[[PreTrainedModel, str], Path]
IDS = torch.arange(4, 40)[None]
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [64, 64]}
# How far the kernels of a library are from its own dense copy; on CPUs that can, bitsandbytes
# multiplies in bfloat16, and some formats round activations too.
DEPLOYED = {
    "bnb-nf4": 0.05, "bnb-int8": 0.1, "ct-w4a16": 1e-6, "ct-fp8": 0.2, "ct-nvfp4a16": 0.05,
    "ct-mxfp4a16": 1e-6, "ao-int4-g64": 1e-6, "ao-fp8": 1e-6, "ao-int8-dynamic": 0.1,
}  # fmt: skip
LIBRARY = {"bnb": "bitsandbytes", "ct-": "llmcompressor", "ao-": "torchao"}
SLOW = ("ct-nvfp4a16", "ct-mxfp4a16", "ao-fp8", "ao-int8-dynamic", "ct-fp8", "bnb-int8")


@pytest.fixture
def folder(tokenizer: PreTrainedTokenizerBase, folder_of: Save) -> Path:
    """A model that group sizes of 64 and 128 divide."""
    return folder_of(wide(len(tokenizer)), "plain")


def wide(vocabulary: int) -> PreTrainedModel:
    shape: dict[str, Any] = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 256}
    return tiny_model(vocab=vocabulary, initializer_range=0.2, **shape)


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    found: Tensor = model(input_ids=IDS).logits.float()
    return found


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(a) for a in arguments])


def printed(done: Result) -> Path:
    assert done.exit_code == 0, done.output
    return Path(next(line for line in done.stdout.splitlines() if "/dequantize-" in line))


def made(node: planning.Node, store: Store) -> Path:
    for piece in planning.ordered([node]):
        make(store, piece, lambda *a: None)
    return store.path(node.name)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in DEPLOYED]
)
def test_what_libraries_pack_is_measured_and_decoded_as_its_dense_copy(
    name: str, folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip(LIBRARY[name[:3]])
    store = Store(tmp_path / "store").open()
    node = planning.deploy_node(step(name), Outside(str(folder)), None)
    packed = made(node, store)
    copied = node.inputs["dense"]
    assert isinstance(copied, planning.Node)
    dense = open_model(str(made(copied, store)))
    assert apart(logits(open_model(str(packed))), logits(dense)) <= DEPLOYED[name]
    decoding = sources.model(store, node.name, dequantize=True)
    assert isinstance(decoding, planning.Node)
    back = open_model(str(made(decoding, store)))
    assert packing_in(store.path(decoding.name)) is None
    for key, value in dense.state_dict().items():
        assert torch.allclose(back.state_dict()[key], value, rtol=1e-4, atol=1e-6), key
    said = store.manifest(decoding.name).of(DequantizeResult)
    known = packing_in(packed)
    assert known
    assert said.packed_as == known.name
    assert said.against_packed
    assert said.against_packed.relative <= DEPLOYED[name]


FILES: dict[str, tuple[packers.Pack, dict[str, Any]]] = {
    "gptq": (packers.gptq(), GPTQ),
    "gptq with the order of activations": (packers.gptq(shuffled=True), GPTQ),
    "gptq of 8 bits": (packers.gptq(bits=8), GPTQ | {"bits": 8}),
    "gptq, second layout": (packers.gptq(less=0), GPTQ | {"checkpoint_format": "gptq_v2"}),
    "gptq, symmetric": (packers.gptq(symmetric=True), GPTQ | {"sym": True}),
    "gptq, symmetric, said to be of the first layout": (
        packers.gptq(symmetric=True, less=0),
        GPTQ | {"sym": True},
    ),
    "awq": (packers.awq, AWQ),
    "fp8": (packers.fp8, FP8),
}


@pytest.mark.parametrize("name", FILES)
def test_files_decode_to_what_their_codes_stand_for(
    name: str, folder: Path, tmp_path: Path
) -> None:
    pack, settings = FILES[name]
    dense = packers.write(folder, tmp_path / "packed", pack, **settings)
    made = printed(call("dequantize", tmp_path / "packed", "--store", tmp_path / "store"))
    found = open_model(str(made)).state_dict()
    assert all(torch.equal(found[key], value) for key, value in dense.items())
    assert set(found) == set(dense)


@pytest.mark.parametrize("key", ["fp8", "mxfp4"])
def test_floats_are_measured_as_the_weights_that_they_stand_for(
    key: str, folder: Path, folder_of: Save, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    if key == "mxfp4":
        folder = folder_of(zoo_model("gpt_oss", len(tokenizer)), "oss")
        dense = packers.mxfp4(folder, tmp_path / "packed")
    else:
        dense = packers.write(folder, tmp_path / "packed", packers.fp8, **FP8)
    expected = open_model(str(folder))
    expected.load_state_dict(dense)
    found = open_model(str(tmp_path / "packed"))
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    assert torch.equal(logits(found), logits(expected))


@pytest.mark.parametrize("key", [k for k, p in PACKINGS.items() if k != "gguf" and p.needs])
def test_what_a_missing_library_opens_is_refused_by_its_name(
    key: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(folder, {"quant_method": key})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        open_model(str(folder))
    said = str(caught.value)
    assert f"is packed as {PACKINGS[key].name}" in said
    assert all(module in said for module in PACKINGS[key].needs)
    assert "pip install" in said
    assert "--dequantize" in said


@pytest.mark.parametrize("key", ["hqq", "auto-round", "quanto", "aqlm", "unheard-of", None])
def test_what_nothing_here_reads_is_refused_by_name_wherever_it_is_given(
    key: str | None, folder: Path, corpus: Path, tmp_path: Path
) -> None:
    configure(folder, {"quant_method": key} if key else {"bits": 4})
    given = key or "a quantizer without a name"
    shown = PACKINGS[given].name if given in PACKINGS else given
    with pytest.raises(UserError, match=f"is packed as {shown}, and"):
        open_model(str(folder))
    for arguments in (
        ("measure", folder, "--data", corpus),
        ("unlearn", folder, "--data", corpus, "--method", "npo", "--dequantize"),
        ("dequantize", folder),
    ):
        done = call(*arguments, "--store", tmp_path / "s")
        assert done.exit_code == 2, done.output
        assert f"is packed as {shown}" in done.output
        assert "Give the model from before it was packed." in done.output


def configure(folder: Path, settings: dict[str, Any] | None) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))


def commands(packed: Path, corpus: Path, plain: Path) -> dict[str, Sequence[object]]:
    """Every command that wants numbers, with a packed model in every place of one."""
    data = ("--data", corpus)
    return {
        "unlearn": ("unlearn", packed, *data, "--method", "ga", "--steps", 1),
        "train": ("train", corpus, "--set", f"base={packed}", "--set", "steps=1"),
        "transform": ("transform", packed, "--use", "int4"),
        "mix": ("transform", plain, "--use", "mix0.5", "--target", packed),
        "deploy": ("deploy", packed, "--as", "bnb-nf4", "-o", corpus.parent / "never"),
        "audit": ("audit", packed, plain, *data, "-q", "int4"),
        "predict": ("predict", packed, plain, "-q", "int4"),
    }


@pytest.mark.parametrize(
    "verb", ["unlearn", "train", "transform", "mix", "deploy", "audit", "predict"]
)
@pytest.mark.parametrize("kind", ["gptq", "gguf"])
def test_no_command_rounds_or_trains_packed_weights_in_silence(
    kind: str, verb: str, folder: Path, corpus: Path, tmp_path: Path
) -> None:
    if kind == "gptq":
        packed = tmp_path / "packed"
        packers.write(folder, packed, packers.gptq(), **GPTQ)
    else:
        packed = tmp_path / "m.gguf"
        packed.write_bytes(b"GGUF")
    store = () if verb == "predict" else ("--store", tmp_path / "s")
    done = call(*commands(packed, corpus, folder)[verb], *store)
    assert done.exit_code == 2, done.output
    assert f"is packed as {PACKINGS[kind].name}" in done.output
    assert "dequantize" in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not list((tmp_path / "s/objects").glob("*")) or verb == "predict"


def test_a_sweep_and_the_python_interface_decode_where_they_are_told_to(
    folder: Path, corpus: Path, tmp_path: Path
) -> None:
    dense = packers.write(folder, tmp_path / "packed", packers.awq, **AWQ)
    sweep = {
        "name": "s", "corpus": [{"lab": "news"}], "unlearn": [{"method": "ga"}],
        "target": str(tmp_path / "packed"),
    }  # fmt: skip
    with pytest.raises(UserError, match=r"is packed as AWQ: .* Pass --dequantize"):
        planning.plan(SweepSpec.model_validate(sweep))
    nodes = planning.plan(SweepSpec.model_validate({**sweep, "dequantize": True}))
    assert [n.stage for n in nodes].count("dequantize") == 1
    assert TrainSpec(dequantize=True).identity() == TrainSpec().identity()
    made = api.transform(tmp_path / "packed", "int8", dequantize=True, store=tmp_path / "store")
    key = "model.layers.0.mlp.down_proj.weight"
    step_of = dense[key].abs().amax(1, keepdim=True) / 127
    back = open_model(str(made.path)).state_dict()[key]
    assert bool(((back - dense[key]).abs() <= 0.51 * step_of).all())
    manifest = next((tmp_path / "store/objects").glob("transform-*/manifest.json"))
    assert json.loads(manifest.read_text())["inputs"]["model"].startswith("dequantize-")


def test_the_decoded_weights_of_what_no_kernel_opens_are_measured_when_asked_for(
    folder: Path, corpus: Path, tmp_path: Path
) -> None:
    packers.write(folder, tmp_path / "packed", packers.gptq(), **GPTQ)
    measure = ("measure", tmp_path / "packed", "--data", corpus, "-m", "verbmem")
    refused = call(*measure, "--store", tmp_path / "s")
    assert refused.exit_code == 2
    assert "optimum and gptqmodel" in refused.output or importlib.util.find_spec("gptqmodel")
    done = call(*measure, "--dequantize", "--store", tmp_path / "s")
    assert done.exit_code == 0, done.output


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "three bits": (GPTQ | {"bits": 3}, "of 3 bits in the layout gptq are not read"),
    "planes": (GPTQ | {"checkpoint_format": "gptq_p"}, "layout gptq_p are not read"),
    "a zero elsewhere": (GPTQ | {"sym": True}, "its zero is not in the middle"),
    "another version": (AWQ | {"version": "gemv"}, "version gemv, are not read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_layout_that_is_not_known_is_not_decoded(name: str, folder: Path, tmp_path: Path) -> None:
    settings, says = BROKEN[name]
    packers.write(folder, tmp_path / "packed", packers.gptq(), **settings)
    done = call("dequantize", tmp_path / "packed", "--store", tmp_path / "s")
    assert done.exit_code == 2, done.output
    assert says in done.output


def gguf_file(folder: Path, out: Path, kind: str) -> None:
    """A GGUF file of a model with its matrices in blocks of 8 or 4 bits."""
    library = pytest.importorskip("gguf")
    from remnant.runtimes import llamacpp

    model, tokenizer = open_model(str(folder)), open_tokenizer(str(folder))
    llamacpp.write(model, tokenizer, out.with_suffix(".f32"))
    reader = library.GGUFReader(out.with_suffix(".f32"))
    writer = library.GGUFWriter(out, "llama")
    chosen = library.GGMLQuantizationType[kind]
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        data = tensor.data.reshape([int(n) for n in reversed(tensor.shape)])
        matrix = data.ndim > 1 and data.shape[-1] % 32 == 0
        packed = library.quants.quantize(data, chosen) if matrix else data
        writer.add_tensor(tensor.name, packed, raw_dtype=chosen if matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    out.with_suffix(".f32").unlink()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_gguf_file_is_decoded_to_what_its_blocks_stand_for(
    kind: str, folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    from remnant.runtimes import llamacpp

    file = tmp_path / "files" / "m.gguf"
    file.parent.mkdir()
    tokenizer.save_pretrained(file.parent)
    gguf_file(folder, file, kind)
    assert gguf_in(file) == gguf_in(file.parent) == file
    for source in (file, file.parent):
        made = printed(call("dequantize", source, "--store", tmp_path / "s"))
        found = open_model(str(made))
        plain = open_model(str(folder))
        for name, (_, value) in llamacpp.read(plain, file).items():
            assert torch.equal(found.state_dict()[name], value), name
        assert open_tokenizer(str(made)).get_vocab() == tokenizer.get_vocab()


def test_a_gguf_file_without_its_tokenizer_is_refused(
    folder: Path, tmp_path: Path, corpus: Path
) -> None:
    file = tmp_path / "files" / "m.gguf"
    file.parent.mkdir()
    gguf_file(folder, file, "Q8_0")
    done = call("dequantize", file, "--store", tmp_path / "s")
    assert done.exit_code == 2
    assert "has no tokenizer" in done.output
    (tmp_path / "x.gguf").write_bytes(b"GGML")
    done = call("measure", tmp_path / "x.gguf", "--data", corpus, "--store", tmp_path / "s")
    assert done.exit_code == 2
    assert "is no GGUF file" in done.output


def test_a_gguf_file_is_measured_by_llamacpp_or_its_lack_is_said(
    folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, corpus: Path
) -> None:
    file = tmp_path / "files" / "m.gguf"
    file.parent.mkdir()
    tokenizer.save_pretrained(file.parent)
    gguf_file(folder, file, "Q8_0")
    measure = ("measure", file, "--data", corpus, "-m", "verbmem", "--store", tmp_path / "s")
    done = call(*measure)
    if importlib.util.find_spec("llama_cpp"):
        assert done.exit_code == 0, done.output
    else:
        assert done.exit_code == 2
        assert "needs llama.cpp, which is not installed" in done.output


def test_a_plain_model_is_not_decoded(folder: Path, tmp_path: Path) -> None:
    done = call("dequantize", folder, "--store", tmp_path / "s")
    assert done.exit_code == 2
    assert "is not packed" in done.output
    same = sources.model(Store(tmp_path / "s").open(), str(folder), dequantize=True)
    assert isinstance(same, Outside)


def test_a_packed_model_of_the_hub_is_told_by_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """What the hub's cache holds is as good as the hub."""
    cached = tmp_path / "hub/models--some--model"
    packers.write(folder, cached / "snapshots/one", packers.gptq(), **GPTQ)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("one")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    from remnant.model.door import check_plain, packing_at

    assert packing_at("some/model") == PACKINGS["gptq"]
    with pytest.raises(UserError, match="some/model is packed as GPTQ: it would round twice"):
        check_plain("some/model", "it would round twice")


def test_every_packing_that_is_decoded_has_its_function() -> None:
    for packing in PACKINGS.values():
        if packing.decoder:
            module, name = packing.decoder.split(":")
            assert callable(getattr(importlib.import_module(module), name))
        else:
            assert not packing.measured


def test_a_saved_dense_model_has_nothing_of_its_packing(
    folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    packers.write(folder, tmp_path / "packed", packers.fp8, **FP8)
    made = printed(call("dequantize", tmp_path / "packed", "--store", tmp_path / "s"))
    assert "quantization_config" not in json.loads((made / "config.json").read_text())
    save_model(open_model(str(made)), tokenizer, tmp_path / "again")
    assert packing_in(tmp_path / "again") is None
