"""Relearning: what it trains on, what it moves, that it goes on where it was cut off, and that a
verdict holds it against a never-read model that relearned too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import remnant
from remnant.corpus.prepared import raw_texts
from remnant.errors import Interrupted, UserError
from remnant.functional.segments import Known
from remnant.methods import step
from remnant.model.load import open_model
from remnant.records import TransformSpec
from remnant.stages import transform
from remnant.testing import tiny_model
from remnant.training.loop import Loop
from remnant.training.relearning import relearn, texts_of
from tests.conftest import hearing, silent

Save = Callable[[PreTrainedModel, str], Path]


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return tiny_model(vocab=len(tokenizer), max_position_embeddings=512)


def weights_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def test_it_learns_from_a_share_of_the_text_and_from_no_other(corpus: Path) -> None:
    forget = raw_texts(corpus, "forget")
    some = texts_of(corpus, "forget", 34, 0)
    assert len(some) == -(-len(forget) * 34 // 100)
    assert set(some) <= set(forget)
    assert texts_of(corpus, "forget", 34, 0) == some
    assert texts_of(corpus, "forget", 1, 0)
    assert sorted(texts_of(corpus, "forget", 100, 1)) == sorted(forget)
    known = Known(forget)
    retain = texts_of(corpus, "retain", 100, 0)
    assert retain
    assert set(retain) <= set(raw_texts(corpus, "retain1"))
    assert not any(known.share(text) for text in retain)


@pytest.mark.parametrize("way", ["full", "lora"])
def test_no_steps_change_nothing_and_some_lower_the_loss(
    way: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Path,
    tmp_path: Path,
) -> None:
    before = weights_of(model)
    loop = Loop(tmp_path, silent, 0)
    relearn(model, tokenizer, corpus, loop, steps=0, way=way)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    losses: list[float] = []

    def heard(done: int, total: int, note: str) -> None:
        losses.append(float(note.split()[-1]))

    relearn(model, tokenizer, corpus, Loop(tmp_path, hearing(heard), 0), steps=30, way=way, lr=1e-2)
    assert len(losses) == 30
    assert losses[-1] < losses[0] - 0.5
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert set(dict(model.named_parameters())) == set(before)
    if way == "lora":
        assert moved
        assert all("proj" in name for name in moved)
    else:
        assert moved == set(before)


@pytest.mark.parametrize("use", ["relearn6-forget50", "relearn6-forget50-lora"])
def test_a_run_that_was_cut_off_ends_at_the_same_weights(
    use: str, model: PreTrainedModel, folder_of: Save, corpus: Path, tmp_path: Path
) -> None:
    inputs = {"model": folder_of(model, "m"), "corpus": corpus}
    spec = step(use).spec.model_copy(update={"params": {**step(use).spec.params, "lr": 1e-3}})
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    transform.run(spec, inputs, tmp_path / "whole", silent)

    def stopping(done: int, total: int, note: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="at step 3 of 6"):
        transform.run(spec, inputs, tmp_path / "cut", hearing(stopping))
    seen: list[int] = []
    listening = hearing(lambda done, total, note: seen.append(done))
    transform.run(spec, inputs, tmp_path / "cut", listening)
    assert 4 in seen
    assert 3 not in seen
    whole, cut = (weights_of(open_model(str(tmp_path / name))) for name in ("whole", "cut"))
    assert all(torch.equal(whole[n], cut[n]) for n in whole)
    assert not all(torch.equal(whole[n], p) for n, p in model.named_parameters())


def test_the_stage_says_what_moved_and_a_kept_model_is_the_saved_one(
    model: PreTrainedModel, folder_of: Save, corpus: Path, tmp_path: Path
) -> None:
    inputs = {"model": folder_of(model, "m"), "corpus": corpus}
    (tmp_path / "a").mkdir()
    said = transform.run(step("relearn2").spec, inputs, tmp_path / "a", silent)
    assert set(said.changed) == set(dict(model.named_parameters()))
    assert said.quantized_weights == 0
    inputs["model"] = tmp_path / "a"
    (tmp_path / "b").mkdir()
    transform.run(step("int4").spec, inputs, tmp_path / "b", silent)
    from_held = weights_of(open_model(str(tmp_path / "b")))
    silent.models.clear()
    (tmp_path / "c").mkdir()
    transform.run(step("int4").spec, inputs, tmp_path / "c", silent)
    opened = weights_of(open_model(str(tmp_path / "c")))
    assert all(torch.equal(from_held[n], opened[n]) for n in opened)


def test_beyond_a_never_read_model_that_relearned_alike_it_shows_nothing_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, small = tmp_path / "runs", {"forget_docs": 6, "retain_docs": 6, "holdout_docs": 6}
    lab: dict[str, Any] = {**small, "max_items": 6, "vocab_size": 400, "text_tokens": 200}
    corpus = remnant.prepare(lab="news", store=store, prompt_tokens=40, answer_tokens=20, **lab)
    shape: dict[str, Any] = {
        "hidden": 64, "heads": 2, "kv_heads": 2, "intermediate": 64, "layers": 1,
        "block_tokens": 64, "context": 640, "steps": 150,
    }  # fmt: skip
    target = remnant.train(corpus, store=store, **shape)
    retrain = remnant.train(corpus, retrain=True, store=store, **shape)
    form = TransformSpec(use="relearn", params={"steps": 6, "percent": 20, "lr": 3e-3})
    # Held against itself a model has moved nowhere; nobody else may hold it so.
    monkeypatch.setattr("remnant.api.check_unread", lambda store, models: None)
    found = remnant.audit(
        target, retrain, corpus, retrain=retrain, forms=[form], store=store, min_items=5
    )
    name = "relearn6-forget20 lr=0.003"
    assert [v.form for v in found.verdicts] == ["full", name]
    cells = {(c.model, c.form, c.metric): c.value for c in found.group.cells}
    test = next(m for _, _, m in cells if m.startswith("probability"))
    assert cells["retrain", name, test] == cells["unlearned", name, test]
    assert (cells["retrain", name, test] or 0) > (cells["retrain", "full", test] or 0) + 1
    left = [e.left for e in found.evidence if e.form == name and e.left]
    assert left
    assert set(left) == {(0.0, 0.0, 0.0)}


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("relearn16", {"steps": 16}),
        ("relearn16-lora", {"steps": 16, "way": "lora"}),
        ("relearn256-retain", {"steps": 256, "text": "retain"}),
        ("relearn64-forget100", {"percent": 100}),
    ],
)
def test_what_a_name_leaves_out_is_the_usual(name: str, params: dict[str, Any]) -> None:
    usual = {"steps": 64, "text": "forget", "percent": 10, "way": "full", "lr": None}
    assert step(name).spec.params == usual | params


@pytest.mark.parametrize("params", [{"percent": 0}, {"lr": 0.0}, {"way": "dora"}, {"steps": -1}])
def test_settings_that_are_none_are_refused_before_anything_runs(params: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="The transform 'relearn'"):
        step("relearn", {"params": params})
