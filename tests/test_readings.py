"""Readings: every name and path says one thing, only what is asked for is computed, and what is
kept of the reference is what a live model says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from remnant.errors import UserError
from remnant.evaluate.reads import needs
from remnant.functional.hidden import Hidden
from remnant.functional.view import IGNORED, View
from remnant.methods import loss_reads
from remnant.model.blocks import forward
from remnant.model.examples import Example, Pool, batch_of
from remnant.model.reference import build
from remnant.model.terms import Group, make_loss, make_streams, terms_of
from remnant.readings import (
    LOSS_READINGS,
    METRIC_READINGS,
    SIDES,
    Reading,
    by_reference,
    leader,
    of_measured,
    reading_of,
)
from remnant.records import TermSpec, UnlearnSpec
from remnant.testing import tiny_model, what_is_read

FORMS = ["llama", "qwen3", "gemma3_text", "gemma2", "mistral", "gpt2", "gpt_neox", "mixtral"]
LENGTHS = (9, 4, 12, 7, 3)


def some(seed: int, starts: int = 0) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Example(f"{i}", torch.randint(4, 64, (n,), generator=generator).tolist(), starts)
        for i, n in enumerate(LENGTHS)
    ]


def pools() -> dict[str, Pool]:
    alternative = Pool(some(2), [[4, 3, 2, 1, 0], [0, 1, 2, 3, 4]])
    return {"forget": Pool(some(0)), "retain": Pool(some(1)), "alternative": alternative}


def test_every_reading_has_a_path_and_a_name_of_its_own() -> None:
    assert len({r.path for r in LOSS_READINGS.values()}) == len(LOSS_READINGS)
    for reading in LOSS_READINGS.values():
        assert reading_of(reading.path) == reading
    assert LOSS_READINGS["ref_alternative_logp"] == Reading("alternative", "reference", "logp")
    assert {leader(side) for side in SIDES} == {"forget", "retain"}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("forget", "is no reading"),
        ("policy.forget.hidden[x]", "is no reading"),
        ("policy.forgt.view", "Did you mean policy.forget.view"),
        ("policy.forget.logp", "Unknown reading"),
        ("policy.forget.view[3]", "a view has none"),
    ],
)
def test_a_path_that_names_nothing_is_refused(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        reading_of(path)


def test_a_layer_comes_from_a_path_or_a_keyword_and_must_come_from_one(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def with_keyword(forget_hidden, ref_forget_hidden, *, layer: int = 2):\n    return 0\n\n"
        "def without(forget_hidden):\n    return 0\n\n"
        "def two(low, high):\n    return 0\n"
    )

    def reads(name: str, **more: Any) -> list[str]:
        term = TermSpec.model_validate({"use": f"{mine}:{name}", **more})
        return [reading.path for reading in loss_reads(term)]

    paths = ["policy.forget.hidden[2]", "reference.forget.hidden[2]"]
    assert reads("with_keyword") == paths
    assert reads("with_keyword", layer=5)[0] == "policy.forget.hidden[5]"
    override = {"forget_hidden": "policy.retain.hidden[1]"}
    assert reads("with_keyword", reads=override) == ["policy.retain.hidden[1]", paths[1]]
    named = {"low": "policy.forget.hidden[0]", "high": "policy.forget.hidden[3]"}
    assert reads("two", reads=named) == list(named.values())
    for given in ({"use": "without"}, {"use": "with_keyword", "layer": -1}):
        with pytest.raises(UserError, match="of no layer"):
            reads(str(given["use"]), **{k: v for k, v in given.items() if k != "use"})
    with pytest.raises(UserError, match=r"Unknown parameter .*'lo'. Did you mean low"):
        reads("two", reads={**named, "lo": "policy.forget.view"})
    with pytest.raises(UserError, match="reads 'low', which is not on offer"):
        reads("two")


@pytest.mark.parametrize("form", FORMS)
def test_a_block_gives_what_transformers_calls_the_next_hidden_state(form: str) -> None:
    model = tiny_model(form, num_hidden_layers=3)
    batch = batch_of(some(0), 0, torch.device("cpu"))
    with torch.no_grad():
        known = model(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True)
        logits, states = forward(model, batch, {0, 1})
        none, shallow = forward(model, batch, {0}, logits=False)
    assert isinstance(logits, Tensor)
    assert none is None
    assert torch.equal(logits, known.logits)
    for layer, found in states.items():
        assert torch.equal(found, known.hidden_states[layer + 1])
    assert torch.equal(shallow[0], states[0])
    with pytest.raises(UserError, match="has 3 blocks, so there is no layer 3"):
        forward(model, batch, {3})


def test_no_block_behind_the_deepest_one_runs_and_no_hook_stays() -> None:
    model = tiny_model(num_hidden_layers=4)
    ran: list[str] = []
    for i in range(4):
        model.get_submodule(f"model.layers.{i}").register_forward_hook(
            lambda *_, name=f"block {i}": ran.append(name)
        )
    model.get_submodule("lm_head").register_forward_hook(lambda *_: ran.append("head"))
    batch = batch_of(some(0), 0, torch.device("cpu"))
    _, states = forward(model, batch, {1}, logits=False)
    assert ran == ["block 0", "block 1"]
    states[1].sum().backward()
    assert model.get_submodule("model.layers.1.mlp.down_proj").weight.grad is not None
    assert model.get_submodule("model.layers.2.mlp.down_proj").weight.grad is None
    forward(model, batch)
    assert ran[2:] == ["block 0", "block 1", "block 2", "block 3", "head"]


def live(model: PreTrainedModel, reading: Reading, batch: Any) -> View | Hidden | Tensor:
    """What a second model beside the policy would say."""
    out = model(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True)
    view = View(out.logits, batch.labels)
    if reading.what in ("view", "logp"):
        return view if reading.what == "view" else view.seq_logp()
    return Hidden(out.hidden_states[(reading.layer or 0) + 1], batch.labels != IGNORED)


@pytest.mark.parametrize("starts", [0, 2])
def test_the_reference_says_what_a_live_model_says(starts: int) -> None:
    model, given = tiny_model(num_hidden_layers=3), some(0, starts)
    wanted = [
        Reading("forget", "reference", "view"), Reading("forget", "reference", "logp"),
        Reading("forget", "reference", "hidden", 1), Reading("forget", "reference", "norm", 1),
    ]  # fmt: skip
    kept = build(model, given, 0, wanted, batch_size=2)
    for places in ([0, 1, 2], [4, 3]):
        batch = batch_of([given[i] for i in places], 0, torch.device("cpu"))
        for reading in wanted[:3]:
            with torch.no_grad():
                own, known = kept.read(reading, places, batch), live(model, reading, batch)
            if isinstance(own, View) and isinstance(known, View):
                assert torch.allclose(own.log_probs(), known.log_probs(), atol=1e-5)
            elif isinstance(own, Hidden) and isinstance(known, Hidden):
                assert torch.equal(own.mask, known.mask)
                assert torch.allclose(own.counted(), known.counted(), atol=1e-5)
            else:
                assert isinstance(own, Tensor)
                assert isinstance(known, Tensor)
                assert torch.allclose(own, known, atol=1e-4)
    with torch.no_grad():
        norms = [
            model(input_ids=torch.tensor([e.ids]), output_hidden_states=True)
            .hidden_states[2][0, starts:]
            .norm(dim=-1)
            for e in given
        ]
    expected = torch.cat(norms).mean().item()
    norm = kept.read(wanted[3], [0], batch)
    assert isinstance(norm, Tensor)
    assert norm.item() == pytest.approx(expected, rel=1e-5)


def test_one_layer_is_kept_and_not_all() -> None:
    model, given = tiny_model(num_hidden_layers=8), some(0)
    one = build(model, given, 0, [Reading("forget", "reference", "hidden", 3)])
    assert one.nbytes() == 4 * len(given) + 4 * 64 * sum(LENGTHS)
    assert one.finals == []


def streams(text: str, name: str, tmp_path: Path, **more: Any) -> tuple[Any, dict[str, Group]]:
    """The loss at a micro-step of a user's term, and its streams."""
    (tmp_path / "mine.py").write_text(text)
    term = {"use": f"{tmp_path / 'mine.py'}:{name}", **more}
    spec = UnlearnSpec.model_validate({"terms": [term], "seed": 5})
    model, terms = tiny_model(), terms_of(spec)
    groups = make_streams(model, terms, pools(), 0, spec.seed)
    return make_loss(model, terms, groups, 2, 0), groups


def test_paired_sides_stand_beside_each_other_in_every_batch(tmp_path: Path) -> None:
    text = (
        "import json\nfrom pathlib import Path\n\ndef both(forget, alternative):\n"
        "    pairs = list(zip(forget.labels.tolist(), alternative.labels.tolist()))\n"
        "    with Path(__file__).with_suffix('.jsonl').open('a') as file:\n"
        "        file.writelines(json.dumps(pair) + '\\n' for pair in pairs)\n"
        "    return forget.seq_logp() + alternative.seq_logp()\n"
    )
    loss_at, groups = streams(text, "both", tmp_path)
    assert list(groups) == ["forget"]
    for micro in range(5):  # ten examples: two passes
        loss_at(micro)
    shown = [json.loads(line) for line in (tmp_path / "mine.jsonl").read_text().splitlines()]
    assert len(shown) == 10
    given = pools()
    for place, pair in enumerate(shown):
        own, other = (list(filter(IGNORED.__ne__, row)) for row in pair)
        (i,) = [i for i, e in enumerate(given["forget"].examples) if e.ids == own]
        beside = given["alternative"].beside[place // 5][i]
        assert other == given["alternative"].examples[beside].ids


def test_a_loss_on_one_side_alone_still_follows_its_leader(tmp_path: Path) -> None:
    text = "def alone(alternative):\n    return alternative.seq_logp()\n"
    loss_at, groups = streams(text, "alone", tmp_path)
    assert list(groups["forget"].streams) == ["alternative"]
    assert loss_at(0)[1].keys() == {"alone"}


def test_retain_batches_are_those_of_the_written_formula() -> None:
    spec = UnlearnSpec(method="npo_klr", seed=7)
    groups = make_streams(tiny_model(), terms_of(spec), pools(), 0, spec.seed)
    assert {name: group.seed for name, group in groups.items()} == {"forget": 14, "retain": 15}


def test_what_metrics_read_is_one_table() -> None:
    known = what_is_read("truth", "written", memory=0.5, count=2)
    assert {*known, "view"} == set(METRIC_READINGS)
    for reading in METRIC_READINGS.values():
        assert reading.of is None or METRIC_READINGS[reading.of].model == "policy"


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("prompt", "truth"), set()),
        (("truth", "generated"), {"writing"}),
        (("samples",), {"writing"}),
        (("reference_on_generated",), {"writing"}),
        (("tokens", "text"), {"logp", "rank"}),
        (("tokens", "reference"), {"logp", "rank"}),
        (("reference",), set()),
        (("grad_norm",), {"grad_norm"}),
        (("view",), {"grad_norm"}),
        (("wrong", "paraphrased", "generated"), {"logp", "rank", "writing"}),
    ],
)
def test_what_a_backend_must_offer(names: tuple[str, ...], wanted: set[str]) -> None:
    assert needs(names, ("logp", "rank")) == wanted


def test_the_reference_is_asked_for_its_own_readings_only() -> None:
    assert by_reference(("tokens", "reference_on_generated", "reference")) == (
        "reference_on_generated",
        "reference",
    )
    assert of_measured(("tokens", "reference_on_generated", "reference")) == ("generated", "tokens")
