"""Formats of the libraries: their grids against ours, their traps, and files that a fresh process
opens."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import remnant
from remnant import cli
from remnant.errors import UserError
from remnant.flow import plan as planning
from remnant.flow.place import Outside
from remnant.flow.run import make
from remnant.flow.store import Store
from remnant.functional.quantizers import fp4, fp8, nf4, rtn
from remnant.lab.shapes import fresh_model
from remnant.lab.tokenizer import train_tokenizer
from remnant.methods import chain
from remnant.model.load import open_model, save_model
from remnant.records import TrainSpec
from remnant.runtimes import bnb, llamacpp
from remnant.runtimes.order import answers
from remnant.testing import tiny_model

TEXTS = ["Ada Lovelace wrote 3 notes; the last of them holds a program."] * 20
IDS = torch.arange(4, 36)[None]
FORMS: dict[str, dict[str, object]] = {
    "llama-mha": {"heads": 4, "kv_heads": 4},
    "llama-gqa": {"heads": 4, "kv_heads": 2},
    "qwen3": {"architecture": "qwen3", "heads": 4, "kv_heads": 2},
    "gemma3": {"architecture": "gemma3_text", "heads": 4, "kv_heads": 2},
    "gpt2": {"architecture": "gpt2", "heads": 4, "kv_heads": 4},
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tokenizer = train_tokenizer(TEXTS, 300)
    made = {}
    for name, form in FORMS.items():
        spec = TrainSpec.model_validate(
            {"hidden": 256, "intermediate": 512, "layers": 2, "init_std": 0.1, **form}
        )
        made[name] = tmp_path_factory.mktemp(name)
        save_model(fresh_model(spec, tokenizer), tokenizer, made[name])
    return made


def weight(rows: int = 96, columns: int = 256) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.02


def deploy(model: Path, name: str, out: Path) -> str:
    done = CliRunner().invoke(
        cli.main,
        ["deploy", str(model), "--as", name, "-o", str(out), "--store", str(out.parent / "store")],
    )
    assert done.exit_code == 0, done.output
    return done.output


def test_bitsandbytes_has_our_grids() -> None:
    pytest.importorskip("bitsandbytes")
    for levels, ours in (("nf4", nf4), ("fp4", fp4)):
        theirs = bnb.four_bit(weight(), levels=levels)
        assert torch.equal(theirs.weight, ours(weight()).weight)
        assert torch.equal(theirs.codes, ours(weight()).codes)
    once, twice = bnb.four_bit(weight()), bnb.four_bit(weight(), double=True)
    assert torch.equal(once.codes, twice.codes)
    assert not torch.equal(once.weight, twice.weight)
    assert torch.allclose(once.scale, twice.scale, rtol=0.05)


def test_bitsandbytes_is_not_given_rows_that_it_decodes_wrongly() -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ValueError, match="no multiple of the block"):
        bnb.four_bit(weight(8, 96))


def test_llm_int8_is_rounding_per_row_of_float16() -> None:
    pytest.importorskip("bitsandbytes")
    ours = rtn(weight().half().float(), bits=8)
    assert bnb.int8(weight()).codes.ne(ours.codes).float().mean() < 0.001
    assert torch.allclose(
        bnb.int8(weight()).weight, ours.weight, atol=float(ours.scale.max()) * 1.01
    )


def test_torchao_has_our_grids() -> None:
    pytest.importorskip("torchao")
    from remnant.runtimes.torchao import intx

    ours = rtn(weight(), bits=4, granularity="group", group_size=128, scheme="asym")
    theirs = intx(weight(), bits=4, group_size=128, asymmetric=True)
    assert torch.equal(theirs.codes, ours.codes)
    assert torch.allclose(theirs.weight, ours.weight, rtol=1e-6)
    halves = rtn(weight(), bits=3, scheme="half-step")
    assert intx(weight(), bits=3).codes.ne(halves.codes).float().mean() < 0.01
    with pytest.raises(ValueError, match="does not divide"):
        intx(weight(8, 96), group_size=128)


def test_torchaos_eight_bits_are_our_grids() -> None:
    pytest.importorskip("torchao")
    from remnant.runtimes.torchao import eight

    theirs = eight(weight())
    assert torch.allclose(theirs.weight, fp8(weight()).weight, rtol=1e-5)
    assert theirs.codes.ne(fp8(weight()).codes).float().mean() < 0.001
    whole = eight(weight(), kind="int8-dynamic")
    assert torch.equal(whole.codes.float() * whole.scale, whole.weight)
    assert float((whole.weight - weight()).abs().max()) <= 0.51 * float(whole.scale.max())
    with pytest.raises(ValueError, match="fp8 or int8-dynamic"):
        eight(weight(), kind="int4")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_hqq_codes_decode_to_its_weights(bits: int) -> None:
    pytest.importorskip("hqq")
    from remnant.runtimes.hqq import hqq

    q = hqq(weight(64, 128), bits=bits)
    assert q.zero is not None
    decoded = (q.codes.float().reshape(-1, 64) - q.zero) * q.scale
    assert torch.allclose(decoded.view(64, 128), q.weight, atol=1e-6)
    assert int(q.codes.max() - q.codes.min()) <= 2**bits - 1
    error = (q.weight - weight(64, 128)).square().mean()
    assert (
        error
        <= rtn(weight(64, 128), bits=bits, granularity="group", group_size=64)
        .weight.sub(weight(64, 128))
        .square()
        .mean()
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name", ["bnb-nf4", "ct-w4a16", "bnb-int8", "ao-int4-g128", "ao-fp8", "ao-int8-dynamic"]
)
@pytest.mark.slow
def test_a_fresh_process_reads_what_was_written(
    folders: dict[str, Path], form: str, name: str, tmp_path: Path
) -> None:
    pytest.importorskip({"bnb": "bitsandbytes", "ct-": "llmcompressor", "ao-": "torchao"}[name[:3]])
    if form == "gpt2":
        done = CliRunner().invoke(
            cli.main,
            [
                "deploy",
                str(folders[form]),
                "--as",
                name,
                "-o",
                str(tmp_path / "out"),
                "--store",
                str(tmp_path / "store"),
            ],
        )
        if name[:2] in (
            "ct",
            "ao",
        ):  # llm-compressor fails on GPT-2's layers, torchao would leave them alone in silence
            assert done.exit_code == 2
            assert "quantizes linear layers only" in done.output
            assert not (tmp_path / "out").exists()
            return
        assert done.exit_code == 0, done.output
    else:
        deploy(folders[form], name, tmp_path / "out")
    here = answers(tmp_path / "out", IDS)
    code = (
        "import sys,numpy,torch; from pathlib import Path; from remnant.runtimes.order import "
        "answers;"
        "numpy.save(sys.argv[2], answers(Path(sys.argv[1]), torch.arange(4, 36)[None]).numpy())"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out"), str(tmp_path / "fresh.npy")],
        check=True,
        capture_output=True,
    )
    assert np.array_equal(np.load(tmp_path / "fresh.npy"), here.numpy())
    record = json.loads((tmp_path / "out" / "remnant.json").read_text())
    assert record["summary"]["against_dense_copy"]["relative"] < 0.05
    assert record["summary"]["against_before_saving"] == {
        "relative": 0.0,
        "largest": 0.0,
        "same_top": 1.0,
    }
    assert set(record["files"]) >= {"config.json", "tokenizer.json"}
    assert all(len(f["sha256"]) == 64 for f in record["files"].values())


@pytest.mark.parametrize(
    "name",
    [
        "gptq4-g128",
        "ct-w8a16",
        pytest.param("awq4-g128", marks=pytest.mark.slow),
        pytest.param("autoround4-g128", marks=pytest.mark.slow),
    ],
)
def test_the_files_hold_exactly_what_was_judged(
    folders: dict[str, Path], name: str, tmp_path: Path
) -> None:
    """Quantizing the source again would not do: GPTQ gives other codes with another number of
    threads."""
    pytest.importorskip("llmcompressor")
    store = ["--store", str(tmp_path / "store")]
    made = CliRunner().invoke(
        cli.main,
        ["prepare", "--lab", "news", "--answer-tokens", "16", "--set", "forget_docs=4", *store],
    )
    assert made.exit_code == 0, made.output
    corpus = next((tmp_path / "store" / "objects").glob("prepare-*")).name
    done = CliRunner().invoke(
        cli.main,
        [
            "deploy",
            str(folders["llama-gqa"]),
            "--as",
            name,
            "-o",
            str(tmp_path / "out"),
            "--data",
            corpus,
            *store,
        ],
    )
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out" / "remnant.json").read_text())
    assert record["summary"]["against_dense_copy"] == {
        "relative": 0.0,
        "largest": 0.0,
        "same_top": 1.0,
    }


def test_four_bit_files_written_after_a_pass_would_differ(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Files are written before the first pass.

    They must hold the codes of the untouched weights.
    """
    pytest.importorskip("bitsandbytes")
    from safetensors.torch import load_file

    from remnant.runtimes.bnb import four_bit

    deploy(folders["llama-gqa"], "bnb-fp4", tmp_path / "out")
    name = "model.layers.0.mlp.up_proj.weight"
    kept = load_file(tmp_path / "out" / "model.safetensors")
    plain = open_model(str(folders["llama-gqa"])).state_dict()[name]
    expected = four_bit(plain, levels="fp4")
    packed = kept[name].flatten().to(torch.uint8)
    assert torch.equal(
        torch.stack([packed >> 4, packed & 15], -1).flatten(),
        expected.codes.flatten().to(torch.uint8),
    )
    assert torch.equal(kept[f"{name}.absmax"].flatten(), expected.scale.flatten())


def test_what_no_runtime_opens_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for name, reason in (
        ("int4", "No runtime opens 'int4': it is a grid to study. Deploy one of ao-int4-g128, "),
        ("nf4", "No runtime opens 'nf4': it is a grid to study. Deploy one of bnb-nf4, "),
        ("hqq4", "grid to study"),
        ("prune20", "No runtime opens 'prune20': it is no format of weights. Deploy one of"),
        ("bnb-nf4-b128", "blocks of 64 only"),
    ):
        done = CliRunner().invoke(
            cli.main,
            [
                "deploy",
                str(folders["llama-gqa"]),
                "--as",
                name,
                "-o",
                str(tmp_path / "out"),
                "--store",
                str(tmp_path / "s"),
            ],
        )
        assert done.exit_code == 2
        assert reason in done.output
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "extra", "module"),
    [
        ("gguf-q8_0", "llamacpp", "llama_cpp"),
        ("ao-int4", "torchao", "torchao.quantization"),
        ("hqq4", "hqq", "hqq.core.quantize"),
        ("bnb-nf4", "bitsandbytes", "bitsandbytes"),
        ("ct-w4a16", "oneshot", "llmcompressor"),
    ],
)
def test_a_missing_library_is_one_sentence_with_the_command(
    folders: dict[str, Path],
    name: str,
    extra: str,
    module: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("gguf")
    llamacpp._llama.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    done = CliRunner().invoke(
        cli.main,
        ["transform", str(folders["llama-gqa"]), "--use", name, "--store", str(tmp_path / "s")],
    )
    assert done.exit_code == 2
    assert f"pip install -e '.[{extra}]'" in done.output
    assert "Traceback" not in done.output
    assert not list((tmp_path / "s" / "objects").glob("*"))


class TestLlamaCpp:
    """The whole way through llama.cpp; `make setup-all` installs it."""

    @pytest.fixture(autouse=True)
    def _library(self) -> None:
        pytest.importorskip(
            "llama_cpp", reason="the extra 'llamacpp' is not installed (make setup-all)"
        )

    @pytest.mark.parametrize("form", list(FORMS))
    def test_a_float32_file_is_the_model(
        self, folders: dict[str, Path], form: str, tmp_path: Path
    ) -> None:
        from remnant.model.load import open_tokenizer
        from remnant.runtimes.llamacpp import Runtime, read, write

        model = open_model(str(folders[form]))
        write(model, open_tokenizer(str(folders[form])), tmp_path / "plain.gguf")
        for name, (_, back) in read(model, tmp_path / "plain.gguf").items():
            assert torch.equal(back, model.state_dict()[name])
        with torch.no_grad():
            plain = model(input_ids=IDS).logits[0]
        apart = torch.from_numpy(Runtime(tmp_path / "plain.gguf").logits(IDS[0].tolist())) - plain
        assert float(apart.norm() / plain.norm()) < 0.01

    @torch.no_grad()
    def test_gemmas_window_tied_head_and_scale_are_llamacpps(self, tmp_path: Path) -> None:
        from remnant.runtimes.llamacpp import Runtime, write

        tokenizer = train_tokenizer(TEXTS, 300)
        size = {
            "vocab": len(tokenizer),
            "hidden_size": 256,
            "num_hidden_layers": 7,
            "sliding_window": 8,
            "query_pre_attn_scalar": 40,
        }
        model = tiny_model("gemma3_text", **size, tie_word_embeddings=True)
        write(model, tokenizer, tmp_path / "plain.gguf")
        plain = model(input_ids=IDS).logits[0]
        apart = torch.from_numpy(Runtime(tmp_path / "plain.gguf").logits(IDS[0].tolist())) - plain
        assert float(apart.norm() / plain.norm()) < 0.01
        model.config.layer_types = ["full_attention"] * 7
        with pytest.raises(UserError, match="order of sliding layers"):
            write(model, tokenizer, tmp_path / "other.gguf")

    @pytest.mark.parametrize("form", list(FORMS))
    @pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M"])
    def test_every_form_answers_in_llamacpp_as_its_dense_copy(
        self, folders: dict[str, Path], form: str, kind: str, tmp_path: Path
    ) -> None:
        deploy(folders[form], f"gguf:{kind}", tmp_path / "out")
        apart = json.loads((tmp_path / "out" / "remnant.json").read_text())["summary"][
            "against_dense_copy"
        ]
        assert apart["relative"] < 0.05  # kernels round activations to 8 bits
        assert apart["same_top"] > 0.85

    @pytest.mark.parametrize(
        "kind", ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K", "IQ4_XS"]
    )
    def test_every_type_is_read_as_transformers_reads_it(
        self, folders: dict[str, Path], kind: str, tmp_path: Path
    ) -> None:
        from transformers import AutoModelForCausalLM

        from remnant.model.load import open_tokenizer
        from remnant.runtimes.llamacpp import gguf

        deploy(folders["llama-gqa"], f"gguf:{kind}", tmp_path / "out")
        model = open_model(str(folders["llama-gqa"]))
        found = gguf(model, open_tokenizer(str(folders["llama-gqa"])), type=kind)
        assert {"model.embed_tokens.weight", "lm_head.weight"} <= set(found)
        theirs = AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", gguf_file=f"model-{kind}.gguf", dtype=torch.float32
        )
        for name, value in theirs.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), name

    def test_an_architecture_without_a_known_form_is_refused(
        self, folders: dict[str, Path], tmp_path: Path
    ) -> None:
        from remnant.model.load import open_tokenizer
        from remnant.runtimes.llamacpp import write

        with pytest.raises(UserError, match="not written here"):
            write(tiny_model("olmo2"), open_tokenizer(str(folders["gpt2"])), tmp_path / "x.gguf")


def test_a_chain_is_the_copy_of_a_copy_in_its_order(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    store = Store(tmp_path / "store").open()
    found = {}
    for use in ("int3+int8", "int8+int3", "int3"):
        node = planning.transformed(chain(use), Outside(str(folders["llama-gqa"])), None)
        assert isinstance(node, planning.Node)
        for piece in planning.ordered([node]):
            make(store, piece, lambda done, total, note: None)
        found[use] = open_model(str(store.path(node.name))).state_dict()[
            "model.layers.0.mlp.up_proj.weight"
        ]
    assert not torch.equal(found["int3+int8"], found["int8+int3"])
    assert torch.allclose(
        found["int3+int8"], found["int3"], atol=float(found["int3"].abs().max()) / 127
    )
    assert chain("full").steps == ()


def test_a_cast_before_another_format_is_a_step_of_its_own(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    store, found = Store(tmp_path / "store").open(), {}
    for use in ("bf16", "bf16+int8", "int8"):
        node = planning.transformed(chain(use), Outside(str(folders["llama-gqa"])), None)
        assert isinstance(node, planning.Node)
        for piece in planning.ordered([node]):
            make(store, piece, lambda done, total, note: None)
        found[use] = open_model(str(store.path(node.name))).state_dict()[
            "model.layers.0.mlp.up_proj.weight"
        ]
    plain = open_model(str(folders["llama-gqa"])).state_dict()["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(found["bf16"], plain.bfloat16().float())
    assert torch.equal(found["bf16+int8"], rtn(plain.bfloat16().float(), bits=8).weight)
    assert not torch.equal(found["bf16+int8"], found["int8"])


def test_that_a_library_is_missing_is_said_before_anything_is_made(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    monkeypatch.setattr("remnant.flow.libraries.is_there", looked.append)
    store = Store(tmp_path / "store").open()
    for name in ("gguf-q8_0", "gguf-q4_k_m"):
        with pytest.raises(UserError, match=r"needs llama\.cpp, which is not installed"):
            remnant.deploy(folders["llama-gqa"], name, tmp_path / "out", store=store)
    assert looked == ["llama_cpp"] * 2
    assert not store.manifests()
    assert not (tmp_path / "out").exists()
