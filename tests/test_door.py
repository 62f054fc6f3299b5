"""The model's door: what is not one whole, finite model is refused in one sentence, and what is
harmless is not."""

import importlib.util
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.model.load import open_model, open_tokenizer
from remnant.model.whole import check_ids, first_not_finite, remedy
from remnant.records import PrepareSpec, TransformSpec, UnlearnSpec
from remnant.stages import prepare, transform, unlearn
from remnant.testing import tiny_model
from tests.conftest import silent

Save = Callable[[PreTrainedModel, str], Path]
State = dict[str, Tensor]
WEIGHTS = "model.safetensors"
NO_LLAMA = importlib.util.find_spec("llama_cpp") is None


@pytest.fixture
def folder(folder_of: Save, model: PreTrainedModel) -> Path:
    return folder_of(model, "m")


def rewrite(folder: Path, change: Callable[[State], State], **config: Any) -> Path:
    """Change the weights of a folder and entries of its configuration."""
    save_file(
        {n: t.contiguous() for n, t in change(load_file(folder / WEIGHTS)).items()},
        folder / WEIGHTS,
        {"format": "pt"},
    )
    configure(folder, **config)
    return folder


def configure(folder: Path, **config: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def refused(folder: Path, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        open_model(str(folder))
    said = str(caught.value)
    assert "\n" not in said
    for word in words:
        assert word in said, said
    return said


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + n: t for n, t in state.items()}


@pytest.mark.parametrize(
    ("prefix", "writer"),
    [
        ("module.", "DataParallel"),
        ("_orig_mod.", "torch.compile"),
        ("_fsdp_wrapped_module.", "FSDP"),
        ("base_model.model.", "peft"),
        ("pretrained_model.", "trl"),
        ("module._orig_mod.", "_orig_mod."),
        ("student.", "'student.'"),
    ],
)
def test_weights_under_a_wrappers_names_are_not_loaded_and_the_prefix_is_named(
    folder: Path, prefix: str, writer: str
) -> None:
    refused(
        rewrite(folder, prefixed(prefix)),
        "not loaded whole",
        "21 weights are missing",
        "21 are in the files and not",
        writer,
    )


def test_a_wrapper_inside_the_names_is_found_too() -> None:
    inside = "model.layers.0._fsdp_wrapped_module.mlp.up_proj.weight"
    assert "FSDP" in remedy(["model.layers.0.mlp.up_proj.weight"], [inside])
    assert "lack 'model.'" in remedy(["model.norm.weight"], ["norm.weight"])
    assert "merge_and_unload" in remedy([], ["model.layers.0.q_proj.lora_A.weight"])


def without(word: str) -> Callable[[State], State]:
    return lambda state: {n: t for n, t in state.items() if word not in n}


CHANGES: Mapping[str, tuple[Callable[[State], State], dict[str, Any], tuple[str, ...]]] = {
    "no head": (without("lm_head"), {}, ("lm_head.weight", "head is not in the files")),
    "no embeddings": (without("embed_tokens"), {}, ("1 weights are missing", "embed_tokens")),
    "one norm short": (without("layers.1.input_layernorm"), {}, ("1 weights are missing",)),
    "fewer layers": (lambda s: s, {"num_hidden_layers": 1},
    ("9 are in the files and not in the model",)),
    "more layers": (lambda s: s, {"num_hidden_layers": 3}, ("9 weights are missing",)),
    "other shapes": (lambda s: s, {"intermediate_size": 96}, ("6 have another shape", "(64, 96)")),
    "other architecture": (lambda s: s, {"model_type": "qwen3"}, ("4 weights are missing",
    "k_norm")),
    "a head for values": (lambda s: s | {"v_head.weight": torch.ones(1, 64)}, {},
    ("v_head.weight",)),
    "an adapter inside": (lambda s: s | {"model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(2,
    64)}, {}, ("adapter",)),
    "integers": (
        lambda s: s | {"model.layers.0.mlp.up_proj.weight": torch.ones(128, 64, dtype=torch.int8)},
        {}, ("stored as integers", "up_proj"),
    ),
    "ten million layers": (lambda s: s, {"num_hidden_layers": 10_000_000},
    ("num_hidden_layers 10000000", "21 weights")),
    "absurd width": (lambda s: s, {"hidden_size": 1 << 20, "head_dim": 1 << 18},
    ("numbers, but the files hold",)),
    "absurd vocabulary": (lambda s: s, {"vocab_size": 1 << 40}, ("numbers, but the files hold",)),
    "no heads": (lambda s: s, {"num_attention_heads": 0, "head_dim": None}, ("cannot be opened",)),
    "a word for a number": (lambda s: s, {"hidden_size": "wide"}, ("cannot be opened",)),
    "an unknown architecture": (lambda s: s, {"model_type": "unheard-of"}, ("cannot be opened",)),
    "code of its own": (lambda s: s, {"model_type": "own", "auto_map": {"AutoConfig": "a.B"}},
    ("brings code of its own", "--trust-remote-code")),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_model_that_is_not_whole_is_refused_by_name(folder: Path, name: str) -> None:
    change, config, words = CHANGES[name]
    started = time.monotonic()
    refused(rewrite(folder, change, **config), *words)
    assert time.monotonic() - started < 20


def test_what_is_harmless_is_opened(
    folder: Path, folder_of: Save, tokenizer: PreTrainedTokenizerBase
) -> None:
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "model.position_ids": torch.arange(9)[None],
        "model.layers.0.self_attn.masked_bias": torch.tensor(-1e4),
        "model.layers.1.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
    }  # fmt: skip
    open_model(str(rewrite(folder, lambda s: s | extra)))
    tied = folder_of(tiny_model(vocab=len(tokenizer), tie_word_embeddings=True), "tied")
    assert "lm_head.weight" not in load_file(tied / WEIGHTS)
    opened: Any = open_model(str(tied))
    assert opened.lm_head.weight is opened.model.embed_tokens.weight
    for form in ("gpt2", "gpt_neox", "mixtral", "qwen3_moe", "gemma3_text"):
        own = tiny_model(form, vocab=len(tokenizer))
        same = zip(
            own.state_dict().values(),
            open_model(str(folder_of(own, form))).state_dict().values(),
            strict=True,
        )
        assert all(torch.equal(a, b) for a, b in same)


def test_a_head_of_its_own_behind_a_tied_configuration_is_refused(folder: Path) -> None:
    """transformers would open the one, llama.cpp and vLLM the other: no audit speaks of both."""
    refused(rewrite(folder, lambda s: s, tie_word_embeddings=True), "ties the head", "another head")

    def tied(state: State) -> State:
        return {**state, "lm_head.weight": state["model.embed_tokens.weight"].clone()}

    assert open_model(str(rewrite(folder, tied))).config.tie_word_embeddings
    configure(folder, tie_word_embeddings=False)
    assert not open_model(str(folder)).config.tie_word_embeddings


def test_a_configuration_that_asks_for_tuples_is_opened(folder: Path) -> None:
    ids = torch.arange(5)[None]
    plain = open_model(str(folder))(input_ids=ids).logits
    configure(folder, return_dict=False)
    assert torch.equal(open_model(str(folder))(input_ids=ids).logits, plain)


def sharded(model: PreTrainedModel, folder: Path) -> Path:
    shutil.rmtree(folder)
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    return folder


def test_shards_are_all_there_named_inside_and_hold_a_name_once(
    folder: Path, model: PreTrainedModel
) -> None:
    index = sharded(model, folder) / "model.safetensors.index.json"
    open_model(str(folder))
    first, second = sorted(folder.glob("model-*.safetensors"))[:2]
    kept, data = index.read_text(), first.read_bytes()
    save_file(
        load_file(first) | dict([next(iter(load_file(second).items()))]), first, {"format": "pt"}
    )
    refused(folder, "stands in two files")
    first.write_bytes(data)
    index.write_text(kept.replace(second.name, f"../{second.name}"))
    refused(folder, "outside its folder")
    index.write_text('{"weight_map": []}')
    refused(folder, "names no shards")
    index.write_text(kept)
    shutil.copy(second, folder / "model-00009-of-00009.safetensors")
    refused(folder, "holds other weights")
    (folder / "model-00009-of-00009.safetensors").unlink()
    second.unlink()
    refused(folder, second.name, "missing")
    index.unlink()
    refused(folder, "shards", "without their index")


def as_bin(folder: Path, change: Callable[[State], State] = lambda s: s) -> Path:
    torch.save(change(load_file(folder / WEIGHTS)), folder / "pytorch_model.bin")
    return folder


def test_a_bin_checkpoint_is_looked_at_in_the_same_way(folder: Path) -> None:
    open_model(str(as_bin(folder)))  # the same weights twice
    as_bin(folder, lambda s: s | {"lm_head.weight": s["lm_head.weight"] + 1})
    refused(folder, "two different sets of weights")
    (folder / WEIGHTS).rename(folder / "away")
    open_model(str(folder))
    torch.save(prefixed("module.")(load_file(folder / "away")), folder / "pytorch_model.bin")
    refused(folder, "21 weights are missing", "DataParallel")
    torch.save({"model": load_file(folder / "away"), "step": 3}, folder / "pytorch_model.bin")
    refused(folder, "other things than named weights")
    data = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(data[: len(data) // 2])
    refused(folder, "damaged or cut short")


def test_folders_of_other_things_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"")
    refused(folder, "holds other weights", "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "is an adapter", "Merge it")
    (tmp_path / "g").mkdir()
    (tmp_path / "g/m.gguf").write_bytes(b"GGUF")
    for place in ("g", "g/m.gguf"):
        refused(tmp_path / place, "is packed as GGUF" if NO_LLAMA else "is a GGUF file")
    (tmp_path / "j").mkdir()
    (tmp_path / "j/config.json").write_text("[1")
    (tmp_path / "j" / WEIGHTS).write_bytes(b"\x00" * 9)
    refused(tmp_path / "j", "damaged or cut short")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_named(folder: Path, value: float) -> None:
    name = "model.layers.1.mlp.down_proj.weight"

    def spoil(state: State) -> State:
        state[name][3, 5] = value
        return state

    refused(rewrite(folder, spoil), name, "not finite")


def test_a_sum_that_overflows_is_no_fault() -> None:
    assert (
        first_not_finite(
            [("a", torch.full((4,), 3e38)), ("b", torch.full((4,), 6e4, dtype=torch.float16))]
        )
        is None
    )
    assert first_not_finite([("a", torch.tensor([1.0, float("inf"), -float("inf")]))]) == "a"
    assert (
        first_not_finite([("a", torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn))]) == "a"
    )


def test_packed_folders_are_no_source_of_anything_but_a_measurement(
    folder: Path, corpus: Path, tmp_path: Path
) -> None:
    configure(folder, quantization_config={"quant_method": "compressed-tensors"})
    with pytest.raises(
        UserError, match="packed as compressed-tensors: quantizing it again would round twice"
    ):
        transform.run(TransformSpec(use="rtn"), {"model": folder}, tmp_path, silent)
    with pytest.raises(
        UserError, match="packed as compressed-tensors: packed weights cannot be trained"
    ):
        unlearn.run(
            UnlearnSpec(method="npo", steps=1, lr=1e-3),
            {"target": folder, "corpus": corpus},
            tmp_path,
            silent,
        )


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_plain_weights_are_not_rounded_because_their_configuration_says_packed(
    bits: str, folder: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    configure(folder, quantization_config={"quant_method": "bitsandbytes", bits: True})
    with pytest.raises(UserError, match="they would be rounded while they are opened"):
        open_model(str(folder))


def test_ids_without_an_embedding_are_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    check_ids(tiny_model(vocab=len(tokenizer)), tokenizer)
    with pytest.raises(UserError, match=r"3 ids outside the model's 397 embeddings, from 397"):
        check_ids(tiny_model(vocab=len(tokenizer) - 3), tokenizer)


def test_a_tokenizer_finds_a_token_for_padding_or_says_that_it_has_none(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    own = json.loads(path.read_text())
    kept = {
        k: v
        for k, v in own.items()
        if k not in ("pad_token", "eos_token", "bos_token", "added_tokens_decoder")
    }
    path.write_text(json.dumps(kept | {"bos_token": "<s>"}))
    assert open_tokenizer(str(folder)).pad_token == "<s>"
    path.write_text(json.dumps(kept))
    with pytest.raises(UserError, match="no token for padding"):
        open_tokenizer(str(folder))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be opened"):
        open_tokenizer(str(folder))


def test_a_tokenizer_without_offsets_is_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Slow:
        is_fast = False

    monkeypatch.setattr(prepare, "open_tokenizer", lambda source: Slow())
    spec = PrepareSpec(
        lab="news", forget_docs=2, retain_docs=2, holdout_docs=2, tokenizer=str(folder)
    )
    with pytest.raises(UserError, match="fast tokenizer"):
        prepare.run(spec, {}, tmp_path, silent)
