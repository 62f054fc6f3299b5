"""The pretrained model that comes as a package: what is said without it, and its tokenizer from
tables like those of its file."""

from pathlib import Path

import gguf
import pytest
from click.testing import CliRunner

from remnant.cli import main
from remnant.flow.plan import plan
from remnant.flow.sweepfile import read_sweep
from remnant.lab import pretrained
from remnant.verbs import sweep_path
from tests.test_tofu import download

BYTES = [chr(c) for c in (*range(33, 127), *range(256, 290))]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A GGUF file with a small table of tokens, as SmolLM2's are kept."""
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *BYTES, "Ġt", "he", "Ġthe"]
    kinds = [3, 3, 3, *[1] * (len(tokens) - 3)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["Ġ t", "h e", "Ġt he"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_tokenizer_cuts_digits_alone_and_ends_with_its_own_token(file: Path) -> None:
    tokenizer = pretrained.tokenizer_of(file)
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("the the  42<|im_end|>").input_ids)
    assert pieces == ["t", "he", "Ġthe", "Ġ", "Ġ", "4", "2", "<|im_end|>"]
    assert tokenizer.decode(tokenizer("the the  42").input_ids) == "the the  42"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    told = tokenizer.apply_chat_template([{"role": "user", "content": "the"}], tokenize=False)
    assert told == "<|im_start|>the<|im_end|>"


def test_the_file_is_laid_out_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "weights", lambda: file)
    folder = file.parent / "out"
    for _ in range(2):
        laid = pretrained.laid_out(folder)
        assert laid.read_bytes() == file.read_bytes()
    assert (folder / "tokenizer.json").is_file()


@pytest.mark.parametrize("name", ["real", "real-full"])
def test_the_sweep_on_it_plans_its_questions_and_refusals(
    name: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "weights", lambda: file)
    tofu = download(tmp_path / "tofu")
    settings = pretrained.settings(sweep_path(name), tmp_path / "base", str(tofu))
    nodes = plan(read_sweep(sweep_path(name), settings))
    stages = [n.stage for n in nodes]
    assert stages.count("dequantize") == 1
    assert stages.count("train") == 2
    assert ("alternatives" in {role for n in nodes for role in n.inputs}) == (name == "real-full")


def test_what_is_missing_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ("--store", str(tmp_path / "s"))
    run = CliRunner().invoke(main, ["demo", "--real", *store])
    assert run.exit_code == 2
    assert "--tofu" in run.output
    monkeypatch.setattr(pretrained, "PACKAGE", "no_such_package")
    run = CliRunner().invoke(main, ["demo", "--real", "--tofu", str(tmp_path), *store])
    assert run.exit_code == 2
    assert "pip install" in run.output
