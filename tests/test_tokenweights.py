"""Weights per token: every loss against its slow reference on the text in which a token that weighs
three stands three times, the files that say them, and where tokens get them from."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from remnant.catalog import LOSSES
from remnant.corpus.prepared import raw_texts
from remnant.errors import UserError
from remnant.flow.plan import unlearn_node
from remnant.flow.tokenweights import OfText, Span, read_token_weights
from remnant.functional.hidden import Hidden
from remnant.functional.view import IGNORED, View
from remnant.model.data import encode, frame, prompt_ids
from remnant.model.examples import Pool
from remnant.model.terms import make_loss, make_streams, terms_of
from remnant.readings import SIDES
from remnant.records import UnlearnSpec
from remnant.stages.examples import questions_about, read_examples
from remnant.stages.tokenweights import by_spans, weighed
from remnant.testing import B, readings, tiny_model
from tests.test_dpo import PLACE
from tests.test_loss_references import SLOW, Side, Text, pools, text_of, value

Read = dict[str, Any]


def weighted(values: Read, weights: dict[str, Tensor]) -> Read:
    """Readings whose tokens have the weights of their sides, and what follows from them."""
    found = {**values}
    for side in SIDES:
        for read in (side, f"ref_{side}", f"{side}_hidden", f"ref_{side}_hidden"):
            found[read] = replace(values[read], weights=weights[side])
        found[f"ref_{side}_logp"] = found[f"ref_{side}"].seq_logp()
    return found


def whole_weights(values: Read, seed: int = 0) -> dict[str, Tensor]:
    """0 to 3 for every token; 1 for the first two, of which one loss skips the first that counts,
    and one at least is above 0."""
    noise = torch.Generator().manual_seed(seed)
    found = {}
    for side in SIDES:
        own = torch.randint(0, 4, values[side].labels.shape, generator=noise).float()
        own[:, :2] = 1.0
        found[side] = own
    return found


def repeated(text: Text, values: Read, weights: dict[str, Tensor], row: int) -> Text:
    """A text in which every token stands as often as it weighs."""
    found = {}
    for side, own in text.items():
        often = weights[side][row]
        predicted = often[1:][values[side].mask[row]].int().numpy()
        there = often[values[f"{side}_hidden"].mask[row]].int().numpy()
        found[side] = Side(
            own.z.repeat(predicted, 0),
            own.r.repeat(predicted, 0),
            np.repeat(own.y, predicted).tolist(),
            own.h.repeat(there, 0),
            own.g.repeat(there, 0),
            own.norm,
            own.x.repeat(predicted, 0),
        )
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", LOSSES)
def test_a_token_that_weighs_three_counts_as_three(name: str, seed: int) -> None:
    values = readings(seed)
    weights = whole_weights(values, seed)
    texts = [repeated(text_of(values, row), values, weights, row) for row in range(B)]
    known = [SLOW[name](text, text) for text in texts]
    found = value(name, weighted(values, weights))
    assert found.tolist() == pytest.approx(known, rel=2e-5, abs=2e-6)
    plain = value(name, values)
    assert not torch.allclose(found, plain, rtol=1e-3)


def longer(values: Read, weights: dict[str, Tensor], row: int) -> Read:
    """The readings of one text with its tokens repeated, made of the same tensors."""
    found: Read = {}
    for side in SIDES:
        often = weights[side][row].int()
        view = values[side]
        places = view.mask[row].nonzero().flatten().repeat_interleave(often[1:][view.mask[row]])
        told = torch.cat([torch.zeros(1).long(), view.targets()[row][places]])[None]
        for read in {side, f"ref_{side}", f"reinforced_{side}"} & {*values}:
            logits = values[read].logits[row]
            found[read] = View(torch.cat([logits[places], logits[:1]])[None], told)
        hidden = values[f"{side}_hidden"]
        there = hidden.mask[row].nonzero().flatten().repeat_interleave(often[hidden.mask[row]])
        for read in (f"{side}_hidden", f"ref_{side}_hidden"):
            states = values[read].states[row][there][None]
            found[read] = Hidden(states, torch.ones(1, len(there), dtype=torch.bool))
        found[f"ref_{side}_logp"] = found[f"ref_{side}"].seq_logp()
        found[f"ref_{side}_norm"] = values[f"ref_{side}_norm"]
    return found


def gradients(name: str, take: Callable[[Read], Tensor], values: Read) -> list[Tensor]:
    leaves = [values[side].given for side in SIDES]
    leaves += [values[f"{side}_hidden"].states for side in SIDES]
    found = torch.autograd.grad(take(values), leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_of_a_weighted_loss_is_that_of_the_longer_text(name: str) -> None:
    values = readings()
    weights = whole_weights(values)
    own = gradients(name, lambda v: value(name, weighted(v, weights)).sum(), values)
    rows = range(B)
    slow = gradients(name, lambda v: sum_of(name, [longer(v, weights, r) for r in rows]), values)
    for one, other in zip(own, slow, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)
    assert any(bool(g.any()) for g in own)


def sum_of(name: str, texts: list[Read]) -> Tensor:
    return torch.cat([value(name, text) for text in texts]).sum()


@pytest.mark.parametrize("name", LOSSES)
def test_equal_weights_are_none_and_a_token_of_no_weight_is_masked(name: str) -> None:
    values = readings()
    ones = {side: torch.ones(values[side].labels.shape) for side in SIDES}
    assert torch.equal(value(name, weighted(values, ones)), value(name, values))
    none, masked = {}, dict(values)
    for side in SIDES:
        own = values[side]
        none[side] = ones[side].clone()
        none[side][:, 3] = 0.0
        labels = own.labels.clone()
        labels[:, 3] = IGNORED
        for read in (side, f"ref_{side}"):
            masked[read] = View(values[read].logits, labels)
        for read in (f"{side}_hidden", f"ref_{side}_hidden"):
            masked[read] = Hidden(values[read].states, labels != IGNORED)
        masked[f"ref_{side}_logp"] = masked[f"ref_{side}"].seq_logp()
    assert torch.allclose(value(name, weighted(values, none)), value(name, masked), atol=1e-6)


def test_where_no_token_has_weight_means_are_nothing() -> None:
    view = readings()["forget"]
    none = replace(view, weights=torch.zeros(view.labels.shape))
    assert none.mean_logp().tolist() == [0.0] * B
    assert torch.equal(none.nll(), -view.mean_logp())


@pytest.mark.parametrize("method_name", ["npo_gdr", "simnpo_klr", "rmu"])
def test_two_small_batches_of_weighted_texts_are_one_large_one(method_name: str) -> None:
    noise = torch.Generator().manual_seed(4)
    sides = pools()
    heavy = [
        e._replace(weights=tuple((4 * torch.rand(len(e.ids), generator=noise)).tolist()))
        for e in sides["forget"].examples
    ]
    settings: dict[str, dict[str, Any]] = {"rmu": {"layer": 1}, "simnpo_klr": {"beta": 0.1}}
    params = settings.get(method_name, {})
    losses: dict[tuple[str, int], float] = {}
    read: dict[tuple[str, int], float] = {}
    for name, forget in (("plain", sides["forget"]), ("heavy", Pool(heavy))):
        for size in (4, 2):
            spec = UnlearnSpec(method=method_name, batch_size=size, params=params)
            model, terms = tiny_model(), terms_of(spec)
            groups = make_streams(model, terms, {**sides, "forget": forget}, 0, 1)
            with torch.no_grad():
                next(model.parameters()).mul_(1.1)
            loss_at = make_loss(model, terms, groups, size, 0)
            seen = [loss_at(micro) for micro in range(4 // size)]
            losses[name, size] = sum(loss.item() for loss, _ in seen) / len(seen)
            nll = [parts.get("forget_nll", 0.0) for _, parts in seen]
            read[name, size] = sum(nll) / len(nll)
    assert losses["heavy", 4] == pytest.approx(losses["heavy", 2], rel=1e-5)
    assert losses["heavy", 4] != pytest.approx(losses["plain", 4], rel=1e-4)
    # What the log says of forget text is of the text itself.
    assert read["heavy", 4] == read["plain", 4]


def written(folder: Path, data: Any) -> Path:
    path = folder / "weights.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def places(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, int]]:
    """Where each token of a text stands, by decoding its beginnings."""
    ids = prompt_ids(tokenizer, text)
    head = len(frame(tokenizer).start)
    ends = [
        len(tokenizer.decode(ids[head : head + n], clean_up_tokenization_spaces=False))
        for n in range(len(ids) - head + 1)
    ]
    return list(pairwise(ends))


def test_words_weigh_wherever_they_stand_and_texts_are_cut_with_their_weights(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    texts = raw_texts(corpus, "forget")
    word = max(texts[0].split(), key=len).strip(".,")
    path = written(tmp_path, {"": 0.5, word: 3.0})
    spec = UnlearnSpec(method="ga", max_tokens=50, token_weights=str(path))
    found = read_examples(spec, tokenizer, corpus, token_weights=path)
    plain = read_examples(spec, tokenizer, corpus)
    assert [e.ids for e in found["forget"].examples] == encode(tokenizer, texts, 50)
    assert [e.ids for e in found["forget"].examples] == [e.ids for e in plain["forget"].examples]
    assert found["retain"] == plain["retain"]
    head = len(frame(tokenizer).start)
    told = [w for e in found["forget"].examples for w in e.weights[head:]]
    slow = []
    for text in texts:
        starts = [i for i in range(len(text)) if text.startswith(word, i)]
        alone = [i for i in starts if not (text[i - 1 : i] + text[i + len(word) :][:1]).isalnum()]
        inside = {i + k for i in alone for k in range(len(word))}
        slow += [3.0 if inside & set(range(*p)) else 0.5 for p in places(tokenizer, text)]
    assert told == slow
    assert {3.0, 0.5} == set(told)


def test_a_list_has_a_number_a_token_or_spans(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "The council met in Orvik."
    count = len(places(tokenizer, text))
    numbers = tuple(float(n + 1) for n in range(count))
    head = len(frame(tokenizer).start)
    assert weighed(tokenizer, text, OfText(numbers), "it") == (*[1.0] * head, *numbers)
    spans = (Span(0, len(text), 0.0), Span(4, 11, 2.0))
    found = weighed(tokenizer, text, OfText(spans=spans), "it")[head:]
    known = [2.0 if {*range(*p)} & {*range(4, 11)} else 0.0 for p in places(tokenizer, text)]
    assert list(found) == known
    with pytest.raises(UserError, match=f"There are 3 weights for the {count} tokens of it"):
        weighed(tokenizer, text, OfText((1.0, 2.0, 3.0)), "it")
    with pytest.raises(UserError, match="a weight up to character 99"):
        weighed(tokenizer, text, OfText(spans=(Span(0, 99, 1.0),)), "it")
    framed = by_spans(tokenizer, ("Where? ", text, "\n"), spans)
    assert len(framed) == len(prompt_ids(tokenizer, f"Where? {text}\n"))
    assert set(framed) == {0.0, 1.0, 2.0}


def test_of_a_question_the_answer_has_weights(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    items = questions_about("forget", tokenizer, corpus)
    answers = [item.truth.strip() for item in items]
    path = written(tmp_path, [[[0, len(a), 0.0], [0, 3, 2.0]] for a in answers])
    settings: dict[str, Any] = {"method": "ga", "examples": "questions", "loss_on": "answer"}
    spec = UnlearnSpec(**settings, token_weights=str(path))
    found = read_examples(spec, tokenizer, corpus, token_weights=path)["forget"].examples
    for example in found:
        assert len(example.weights) == len(example.ids)
        counted = example.weights[example.counted_from :]
        assert counted[0] == 2.0
        assert set(counted[1:]) <= {0.0, 1.0, 2.0}
        assert 0.0 in counted
    short = written(tmp_path, [[[0, 1, 2.0]]])
    with pytest.raises(UserError, match=rf"of 1 texts for {len(items)} forget questions"):
        read_examples(spec, tokenizer, corpus, token_weights=short)
    tokens = written(tmp_path, [[1.0]] * len(items))
    with pytest.raises(UserError, match="hang on its question"):
        read_examples(spec, tokenizer, corpus, token_weights=tokens)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("{", "no JSON"),
        ([], "holds no weights"),
        (3, "holds no weights"),
        ({"a": -1}, "'a' holds -1"),
        ({"a": "b"}, "no weight: 0, or"),
        ({"a": True}, "no weight: 0, or"),
        ({"a": 10**400}, "no weight: 0, or"),
        ({"a": 1e38}, "no weight: 0, or"),
        ([[1e-320]], "no weight: 0, or"),
        ("[[NaN]]", "no weight: 0, or"),
        ({"": 0, "a": 0}, "no token counts"),
        ([[0.0, 0.0]], "no token of entry 1 counts"),
        ([1.0], "entry 1 is no list"),
        ([[[3, 2, 1.0]]], "no \\[start, end, weight\\]"),
        ([[[0, 2]]], "no \\[start, end, weight\\]"),
    ],
)
def test_a_file_of_another_form_is_one_sentence(data: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        read_token_weights(str(written(tmp_path, data)))
    with pytest.raises(UserError, match="does not exist"):
        read_token_weights(str(tmp_path / "none.json"))


def test_weights_decide_a_runs_key_by_their_content(tmp_path: Path) -> None:
    names = []
    for folder, weight in (("a", 2.0), ("b", 2.0), ("c", 3.0)):
        (tmp_path / folder).mkdir()
        path = written(tmp_path / folder, {"lamp": weight})
        spec = UnlearnSpec(method="ga", token_weights=str(path))
        names.append(unlearn_node(spec, PLACE, PLACE).name)
    assert names[0] == names[1] != names[2]
    plain = unlearn_node(UnlearnSpec(method="ga"), PLACE, PLACE).name
    assert plain not in names
    with pytest.raises(ValueError, match="leave pack_tokens out"):
        UnlearnSpec(method="ga", token_weights="a.json", pack_tokens=64)
