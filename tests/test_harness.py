"""General ability through lm-evaluation-harness: its result on a task of the corpus equals
likelihoods taken by hand."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.evaluate import harness
from remnant.model.load import save_model
from remnant.records import MeasureSpec
from remnant.stages import measure
from remnant.testing import tiny_model
from tests.conftest import silent


def test_choice_equals_likelihoods_by_hand(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason="the extra 'harness' is not installed")
    model = tiny_model(vocab=len(tokenizer), max_position_embeddings=512, initializer_range=0.3)
    save_model(model, tokenizer, tmp_path / "m")
    (tmp_path / "out").mkdir()
    spec = MeasureSpec(metrics=("verbmem",), ability=("choice",))
    measure.run(spec, {"model": tmp_path / "m", "corpus": corpus}, tmp_path / "out", silent)
    rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    found = [r["value"] for r in rows if r["metric"] == "ability_choice"]
    task = harness._choice_task(corpus, tmp_path)
    lines = [
        json.loads(line)
        for line in Path(task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()
    ]
    expected = []
    for line in lines:
        prompt = f"Question: {line['question']}\nAnswer:"
        chances = []
        for choice in line["choices"]:
            before = tokenizer(prompt)["input_ids"]
            ids = before + tokenizer(f"{prompt} {choice}")["input_ids"][len(before) :]
            with torch.no_grad():
                logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            chances.append(sum(float(logp[t - 1, ids[t]]) for t in range(len(before), len(ids))))
        expected.append(float(chances.index(max(chances)) == line["right"]))
    assert len(found) == len(expected) > 20
    assert found == expected
    assert 0 < sum(found) < len(found)


@pytest.mark.slow
def test_an_unknown_task_and_a_missing_harness_are_one_sentence(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="the extra 'harness' is not installed")
    model = tiny_model(vocab=len(tokenizer))
    with pytest.raises(UserError, match="cannot run no_such_task"):
        harness.ability(model, tokenizer, ["no_such_task"], corpus, None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[harness\]'"):
        harness.ability(model, tokenizer, ["choice"], corpus, None)
