"""A start from shrunk and perturbed weights: what moves and what stays, that the target is still
what is distilled, and what does not go with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.functional.noise import shrink_and_perturb
from remnant.parsing import parse
from remnant.records import UnlearnSpec
from remnant.stages import unlearn
from remnant.testing import tiny_model
from tests.conftest import silent

Save = Callable[[PreTrainedModel, str], Path]
DISTILLED: dict[str, Any] = {
    "terms": [{"use": "klr"}], "batch_size": 4, "max_tokens": 64, "train": "matrices",
    "select": "last", "seed": 3, "shrink_perturb": 0.6,
}  # fmt: skip


@pytest.fixture
def distil(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, folder_of: Save
) -> Callable[..., tuple[Path, Path, list[dict[str, float]]]]:
    """Runs a spec: the target, what came out, and the log of its steps."""
    target = folder_of(tiny_model(vocab=len(tokenizer), max_position_embeddings=1024), "target")

    def run(**settings: Any) -> tuple[Path, Path, list[dict[str, float]]]:
        out = tmp_path / f"out{len([*tmp_path.iterdir()])}"
        out.mkdir()
        spec = UnlearnSpec.model_validate(DISTILLED | settings)
        unlearn.run(spec, {"target": target, "corpus": corpus}, out, silent)
        log = (out / "steps.jsonl").read_text(encoding="utf-8")
        return target, out, [json.loads(line) for line in log.splitlines()]

    return run


def test_what_moves_is_shrunk_and_the_rest_stays(distil: Any) -> None:
    target, out, _ = distil(steps=1, lr=1e-12)
    before, after = (load_file(folder / "model.safetensors") for folder in (target, out))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "_proj" in name}
    for name in moved:
        rest = after[name] - 0.4 * before[name]
        reach = 0.6 * 0.1 * (6 / sum(rest.shape)) ** 0.5
        assert 0.9 * reach < float(rest.abs().max()) <= reach + 1e-6
    generator = torch.Generator().manual_seed(3)
    first = "model.layers.0.self_attn.q_proj.weight"
    assert torch.allclose(after[first], shrink_and_perturb(before[first], generator, share=0.6))


def test_the_target_is_what_is_distilled_and_no_rule_stops(distil: Any) -> None:
    _, _, log = distil(steps=40, lr=3e-3, probe_every=1)
    assert len(log) == 40
    assert log[0]["klr"] > 0.003
    assert sum(row["klr"] for row in log[-5:]) / 5 < 0.5 * log[0]["klr"]
    _, _, still = distil(steps=1, lr=1e-12, shrink_perturb=None)
    assert abs(still[0]["klr"]) < 1e-6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shrink_perturb": 0}, "greater than 0"),
        ({"shrink_perturb": 1.1}, "less than or equal to 1"),
        ({"stop_forget_loss": 1.0}, "begins above every forget loss"),
        ({"promise": ["int4"]}, "leave one out"),
        ({"train": {"lora": {}}}, "moves whole weights"),
        ({"train": {"sure": {}}}, "moves whole weights"),
    ],
)
def test_what_does_not_go_with_it_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(UnlearnSpec, DISTILLED | settings, "unlearn")


def test_plain_runs_keep_their_keys() -> None:
    assert "shrink_perturb" not in UnlearnSpec(method="ga").identity()
