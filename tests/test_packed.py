"""Formats measured by their own runtime: a sweep has both cells, and a library's kernels give the
dense copy's numbers or nearly so."""

import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.evaluate import llamacpp
from remnant.evaluate.local import Local
from remnant.evaluate.requests import AskGradNorm, Reading, Refused, Request, Writing
from remnant.flow import plan as planning
from remnant.flow.place import Outside
from remnant.flow.run import make
from remnant.flow.store import Store
from remnant.functional.tokens import COLUMNS, Tokens
from remnant.methods import step
from remnant.model.load import save_model
from remnant.records import CorpusSpec, MeasureSpec, RunSpec, SweepSpec


def sweep(**more: Any) -> SweepSpec:
    return SweepSpec(
        name="s",
        corpus=(CorpusSpec(lab="news"),),
        unlearn=(RunSpec(method="ga"),),
        quantizers=("bnb-nf4",),
        **more,
    )


def test_a_sweep_has_both_cells_and_explains_the_dense_one() -> None:
    nodes = planning.plan(sweep(packed=("bnb-nf4",)))
    measured = {(n.label.model, n.label.form) for n in nodes if n.stage == "measure"}
    assert measured == {
        (m, q) for m in ("target", "retrain", "ga") for q in ("full", "bnb-nf4", "bnb-nf4 packed")
    }
    assert [n.label.form for n in nodes if n.stage == "explain"] == ["bnb-nf4"]
    assert sum(n.stage == "deploy" for n in nodes) == 3
    assert len(planning.plan(sweep())) < len(nodes)


def test_what_no_runtime_opens_cannot_be_packed() -> None:
    with pytest.raises(UserError, match="grid to study"):
        planning.plan(sweep(packed=("int4",)))


@pytest.mark.parametrize(
    "name",
    [
        "bnb-nf4",
        "ct-w4a16",
        "gguf-q8_0",
        pytest.param("bnb-int8", marks=pytest.mark.slow),
        pytest.param("ao-int8-dynamic", marks=pytest.mark.slow),
    ],
)
def test_kernels_give_the_numbers_of_the_dense_copy(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Path,
    tmp_path: Path,
) -> None:
    pytest.importorskip(
        {"bnb": "bitsandbytes", "ct-": "llmcompressor", "ao-": "torchao", "ggu": "llama_cpp"}[
            name[:3]
        ]
    )
    from remnant.testing import tiny_model

    shape: dict[str, Any] = {
        "hidden_size": 128,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "initializer_range": 0.2,
    }
    wide = tiny_model(vocab=len(tokenizer), **shape)
    save_model(wide, tokenizer, tmp_path / "m")
    store = Store(tmp_path / "store").open()
    node = planning.deploy_node(step(name), Outside(str(tmp_path / "m")), None)
    spec = MeasureSpec(metrics=("verbmem", "privleak"))
    found = []
    for source in (node, node.inputs["dense"]):
        measured = planning.measure_node(spec, source, Outside(str(corpus)))
        for piece in planning.ordered([measured]):
            make(store, piece, lambda *a: None)
        rows = [
            json.loads(line)
            for line in (store.path(measured.name) / "rows.jsonl").read_text().splitlines()
        ]
        found.append(np.array([r["value"] for r in rows if r["metric"] == "privleak"]))
    assert len(found[0]) > 5
    # On CPUs that can, bitsandbytes multiplies in bfloat16; llama.cpp rounds activations to 8 bits.
    assert np.allclose(found[0], found[1], rtol=5e-3)


class Runtime:
    """Stands for llama.cpp: the logits of a model of transformers."""

    def __init__(self, model: PreTrainedModel) -> None:
        import torch

        self.torch, self.model, self.context = torch, model, 1024

    def logits(self, ids: list[int]) -> Any:
        with self.torch.no_grad():
            return self.model(input_ids=self.torch.tensor([ids])).logits[0].numpy()

    def follow(self, ids: list[int]) -> Any:
        return self.logits(ids)[-1]

    def is_end(self, token: int) -> bool:
        return False


def test_llamacpp_is_asked_as_transformers_is(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(llamacpp, "Runtime", lambda file, context: Runtime(model))
    backend, local = llamacpp.LlamaCpp(tmp_path / "m.gguf", tokenizer), Local(model, tokenizer)
    asked: list[Request] = [
        Reading("Nobody knows 17 lanterns.", "No baker counts. ", COLUMNS),
        Reading("Nobody knows 17 lanterns.", "", COLUMNS),
        Reading("lantern " * 2000, "", COLUMNS),
        Reading("", "", COLUMNS),
        Writing("Who runs", 6),
        Writing("Who runs", 6, context="No baker counts. ", stops=("e",)),
        Writing("lantern " * 2000, 4),
    ]
    for request, ours, theirs in zip(
        asked, backend.answer(asked), [local.answer([a])[0] for a in asked], strict=True
    ):
        if isinstance(theirs, Tokens):
            assert isinstance(ours, Tokens)
            assert ours.cut == theirs.cut
            for column in COLUMNS:
                assert np.allclose(getattr(ours, column), getattr(theirs, column), atol=1e-4), (
                    column
                )
        elif isinstance(request, Writing) and request.stops and isinstance(ours, str):
            assert str(theirs).startswith(ours)  # transformers looks for stops every few tokens
        else:
            assert ours == theirs
    sampled = [
        backend.answer([Writing("Who runs", 6, temperature=2.0, seed=s)])[0] for s in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
    assert isinstance(backend.answer([AskGradNorm("a")])[0], Refused)
    assert sorted(i for batch in backend.plan(asked) for i in batch) == list(range(len(asked)))


def test_following_goes_on_behind_what_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from remnant.runtimes import llamacpp as door

    class Llama:
        """Keeps what it was given; the logit of a token is how often it was read."""

        def __init__(self, *args: Any, **settings: Any) -> None:
            self.input_ids, self.scores = np.zeros(32, np.intc), np.zeros((32, 8), np.float32)
            self.n_tokens = 0
            self.read: list[int] = []

        def n_ctx(self) -> int:
            return 32

        def eval(self, ids: list[int]) -> None:
            for token in ids:
                self.read.append(token)
                self.input_ids[self.n_tokens] = token
                self.n_tokens += 1
                self.scores[self.n_tokens - 1] = np.bincount(
                    self.input_ids[: self.n_tokens], minlength=8
                )

    monkeypatch.setattr(door, "_llama", lambda: types.SimpleNamespace(Llama=Llama))
    runtime = door.Runtime(tmp_path / "m.gguf")
    for ids in ([1, 2, 3], [1, 2, 3, 4], [1, 2, 5], [1, 2, 5], [1]):
        assert np.array_equal(runtime.follow(ids), np.bincount(ids, minlength=8))
    assert runtime._model.read == [1, 2, 3, 4, 5, 5, 1]
