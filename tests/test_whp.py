"""Who's Harry Potter: generic labels, the reinforced model that they are made with, and a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.flow.plan import unlearn_node
from remnant.functional.distributions import whp
from remnant.functional.view import View
from remnant.model.load import open_model
from remnant.model.terms import Beside, make_loss, make_streams, terms_of
from remnant.readings import Reading, reading_of
from remnant.records import UnlearnSpec
from remnant.stages import unlearn
from remnant.testing import tiny_model
from remnant.training.loop import Loop
from remnant.training.relearning import relearn
from remnant.tuning import search
from remnant.tuning.search import Question, settings_of
from tests.conftest import silent
from tests.test_dpo import PLACE
from tests.test_loss_references import pools

Save = Callable[[PreTrainedModel, str], Path]


def one(logits: list[float]) -> View:
    return View(torch.tensor([[logits, [0.0] * len(logits)]]), torch.tensor([[0, 1]]))


def test_a_label_is_what_the_text_itself_did_not_raise() -> None:
    before = one([0.0, 2.0, 1.5])
    raised = one([0.0, 4.0, 1.5])
    policy = one([0.3, 0.2, 0.1])
    logp = policy.log_probs()[0, 0]
    # Token 1 was raised, so that token 2 is the greatest left; without a raise it is token 1.
    assert whp(policy, before, raised).item() == pytest.approx(-logp[2].item())
    assert whp(policy, before, before).item() == pytest.approx(-logp[1].item())
    assert whp(policy, before, raised, strength=0.0).item() == pytest.approx(-logp[1].item())


def test_the_labels_have_no_gradient_and_stay_while_the_model_moves() -> None:
    spec = UnlearnSpec(method="whp", batch_size=4)
    model, terms = tiny_model(), terms_of(spec)
    groups = make_streams(model, terms, pools(), 0, 0, Beside(tiny_model(seed=5)))
    kept = groups["forget"].streams["forget"].kept
    assert set(kept) == {"reference", "reinforced"}
    assert not torch.equal(kept["reference"].finals[0], kept["reinforced"].finals[0])
    loss_at = make_loss(model, terms, groups, 4, 0)
    first, _ = loss_at(0)
    first.backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.05 * parameter.grad)
    assert grads
    assert loss_at(0)[0] < first


def test_a_run_reads_the_reinforced_model_and_another_one_gives_another_result(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, folder_of: Save
) -> None:
    model = tiny_model(vocab=len(tokenizer), max_position_embeddings=1024)
    target = folder_of(model, "target")
    relearn(model, tokenizer, corpus, Loop(tmp_path, silent, 0), steps=6, percent=100, lr=1e-2)
    inputs = {"target": target, "corpus": corpus}
    results = {}
    for name, other in (("reinforced", folder_of(model, "plus")), ("target", target)):
        out = tmp_path / f"out-{name}"
        out.mkdir()
        spec = UnlearnSpec(
            method="whp_gdr", lr=1e-3, steps=2, batch_size=2, max_tokens=64, select="last",
            reinforced=str(other),
        )  # fmt: skip
        unlearn.run(spec, inputs | {"reinforced": other}, out, silent)
        results[name] = dict(open_model(str(out)).named_parameters())
    pairs = [(results["reinforced"][n], results["target"][n]) for n in results["target"]]
    assert not all(torch.equal(a, b) for a, b in pairs)
    small = folder_of(tiny_model(vocab=64), "small")
    (tmp_path / "refused").mkdir()
    with pytest.raises(UserError, match="has 64 tokens, the target"):
        unlearn.run(spec, inputs | {"reinforced": small}, tmp_path / "refused", silent)


def test_a_reinforced_model_is_asked_for_where_it_is_read_and_nowhere_else(
    folder_of: Save,
) -> None:
    assert reading_of("reinforced.forget.view") == Reading("forget", "reinforced", "view")
    with pytest.raises(UserError, match="Unknown reading"):
        reading_of("reinforced.retain.view")
    with pytest.raises(UserError, match="trained once more on the forget text"):
        unlearn_node(UnlearnSpec(method="whp"), PLACE, PLACE)
    folder = str(folder_of(tiny_model(), "plus"))
    with pytest.raises(UserError, match="'npo' reads no reinforced model"):
        unlearn_node(UnlearnSpec(method="npo", reinforced=folder), PLACE, PLACE)
    node = unlearn_node(UnlearnSpec(method="whp", reinforced=folder), PLACE, PLACE)
    assert "reinforced" in node.inputs


def test_tuning_takes_it_only_where_it_is_given() -> None:
    given: dict[str, Any] = {"reinforced": "plus"}
    assert "whp" in search._all(Question(settings=given))
    without = search._all(Question())
    assert not any(name.startswith("whp") for name in without)
    assert "npo_gdr" in without
    assert settings_of("whp", Question(settings=given))["reinforced"] == "plus"
    assert "reinforced" not in settings_of("npo", Question(settings=given))
