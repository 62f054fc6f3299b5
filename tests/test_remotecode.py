"""Code that comes with a model: never run unasked, and told wherever it was run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers.dynamic_module_utils as dynamic
from click.testing import CliRunner, Result
from transformers import PreTrainedModel

import remnant
from remnant import cli
from remnant.errors import UserError
from remnant.flow.store import Store
from remnant.model.load import open_model
from remnant.remotecode import FLAG, needs_code

Save = Callable[[PreTrainedModel, str], Path]
CODE = """
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

Path({mark!r}).touch()


class OwnConfig(LlamaConfig):
    model_type = "own-llama"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""
MAP = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that is there once the model's code was run."""
    return tmp_path / "mark"


@pytest.fixture
def folder(
    folder_of: Save,
    model: PreTrainedModel,
    mark: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A model with code of its own, which is a Llama by another name."""
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    out = folder_of(model, "own")
    (out / "own.py").write_text(CODE.format(mark=str(mark)))
    configure(out, model_type="own-llama", auto_map=MAP, architectures=["OwnModel"])
    return out


def configure(folder: Path, **settings: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(a) for a in arguments])


def test_a_models_code_is_not_run_unasked_and_the_flag_is_named(
    folder: Path, mark: Path, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"brings code of its own.*{FLAG}"):
        open_model(str(folder))
    store = ("--store", tmp_path / "s")
    for arguments in (
        ("measure", folder, "--data", corpus),
        ("unlearn", folder, "--data", corpus, "--method", "ga"),
        ("transform", folder, "--use", "int4"),
        ("audit", folder, folder, "--data", corpus),
    ):
        done = call(*arguments, *store)
        assert done.exit_code == 2, done.output
        assert FLAG in done.output
        assert len(done.output.strip().splitlines()) == 1
    assert not mark.exists()
    assert not list((tmp_path / "s/objects").iterdir())


def test_with_the_flag_it_answers_as_the_model_that_it_is_and_that_is_recorded(
    folder: Path, model: PreTrainedModel, mark: Path, tmp_path: Path
) -> None:
    with remnant.trusting_remote_code():
        opened = open_model(str(folder))
    assert type(opened).__name__ == "OwnModel"
    assert mark.exists()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(opened(input_ids=ids).logits, model(input_ids=ids).logits)
    with pytest.raises(UserError, match=FLAG):
        open_model(str(folder))  # the block is over
    made = call("transform", folder, "--use", "int8", FLAG, "--store", tmp_path / "s")
    assert made.exit_code == 0, made.output
    copy = Path(made.stdout.strip().splitlines()[-1])
    manifest = Store(tmp_path / "s").open().checked(copy.name)
    assert manifest.remote_code == ("model",)
    assert {"own.py", "config.json"} <= set(manifest.files)


def test_a_copy_of_such_a_model_asks_again_and_the_report_says_that_its_code_ran(
    folder: Path, corpus: Path, tmp_path: Path
) -> None:
    audit = (
        "audit", folder, folder, "--data", corpus, "-q", "int8", "--out", tmp_path / "report",
        "--store", tmp_path / "s",
    )  # fmt: skip
    done = call(*audit, FLAG)  # both models are one, by their content
    assert done.exit_code in (0, 3, 4), done.output
    page = (tmp_path / "report/report.html").read_text()
    said = f"Code that came with a model was run ({FLAG}): target."
    assert said in page
    assert said in " ".join(done.stdout.split())
    copy = next((tmp_path / "s/objects").glob("transform-*"))
    again = call("measure", copy, "--data", corpus, "--store", tmp_path / "other")
    assert again.exit_code == 2
    assert FLAG in again.output


def test_a_model_that_transformers_knows_is_opened_without_its_code(
    folder: Path, mark: Path
) -> None:
    configure(folder, model_type="llama")
    with remnant.trusting_remote_code():
        assert type(open_model(str(folder))).__name__ == "LlamaForCausalLM"
    assert type(open_model(str(folder))).__name__ == "LlamaForCausalLM"
    assert not mark.exists()
    assert not needs_code({"model_type": "own-llama"})


def test_a_variable_alone_is_no_flag(
    folder: Path, mark: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMNANT_TRUST_REMOTE_CODE", "yes")
    done = call("measure", folder, "--data", corpus, "--store", tmp_path / "s")
    assert done.exit_code == 2
    assert FLAG in done.output
    assert not mark.exists()
