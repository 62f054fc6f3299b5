"""Every architecture answers as a slow reference does: one text at a time, no cache, the whole text
again for each token."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.evaluate import local
from remnant.evaluate.collect import collect
from remnant.evaluate.local import Local
from remnant.evaluate.requests import Reading, Request, Writing
from remnant.evaluate.steps import Cached
from remnant.evaluate.ways import Ways, ways_of
from remnant.functional.tokens import Tokens
from remnant.model.load import context_length, in_dtype, open_model, save_model
from remnant.model.sizes import bytes_per_token, declared_context, longest_text, reach
from remnant.testing import tiny_model
from tests.zoo import ARCHITECTURES, shape_of, zoo_model

NEW = 8
CONTEXTS = ("", "Question: Where?\nAnswer: In town\n\nQuestion: When?\nAnswer: At 1234\n\n" * 2)
# From one token to more than a window; two of one length, and one that ends inside a convolution.
PROMPTS = (
    "S",
    "Seven",
    "Eight",
    "No harbour",
    "Question: Who runs it?\nAnswer: ",
    "The brass lantern was sold by tailors to the town. " * 3,
)
TEXTS = (
    "He ran it. Nobody saw the lantern.",
    "Twelve tailors, one harbour, and no ship.",
    "The brass lantern was sold by tailors. " * 4,
)
# Encoders, decoders whose code in transformers looks ahead, and one that hashes by chance.
REFUSED = {"camembert", "ernie", "big_bird", "xlm", "doge", "cpmant", "prophetnet", "reformer"}
SOME = ("gpt_neo", "mpt", "bert", "lfm2", "mamba", "recurrent_gemma", "bamba")


class Found(NamedTuple):
    """What was found of one architecture: "equal", "refused" or "different"; how it is asked.

    How many texts differ, and by how much.
    """

    name: str
    outcome: str
    way: str
    texts: int = 0
    numbers: float = 0.0


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: Sequence[int]) -> Any:
    return model(input_ids=torch.tensor([ids])).logits[0]


def written_slowly(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    ids = list(tokenizer(prompt)["input_ids"])
    new: list[int] = []
    told = (tokenizer, model.config, model.config.get_text_config(), model.generation_config)
    ends = {getattr(where, "eos_token_id", None) for where in told}
    while len(new) < NEW and not ends.intersection(new):
        new.append(int(logits_of(model, ids + new)[-1].argmax()))
    return str(tokenizer.decode(new, skip_special_tokens=True))


def lowest(logp: Sequence[float]) -> float:
    """Min-40%: the mean of the least probable two fifths."""
    return float(np.mean(sorted(logp)[: max(1, int(0.4 * len(logp)))]))


def read_slowly(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, context: str
) -> float:
    ids = list(tokenizer(context + text)["input_ids"])
    first = max(1, len(tokenizer(context)["input_ids"])) if context else 1
    logp = logits_of(model, ids).double().log_softmax(-1)
    return lowest([float(logp[t - 1, ids[t]]) for t in range(first, len(ids))])


def compared(name: str, tokenizer: PreTrainedTokenizerBase, spool: Path) -> Found:
    """An architecture asked by Remnant, and by the reference.

    A refusal must be by name and with a remedy.
    """
    model = zoo_model(name, len(tokenizer))
    try:
        backend = Local(model, tokenizer)
    except UserError as error:
        named = type(model).__name__ in str(error) and bool(error.remedy)
        return Found(name, "refused" if named else "different", str(error).partition(": ")[2][:60])
    model.config.use_cache = False
    asked: list[Request] = [
        *(Writing(p, NEW, c) for c in CONTEXTS for p in PROMPTS),
        *(Reading(t, c) for c in CONTEXTS for t in TEXTS),
    ]
    answers = collect(asked, backend, spool, lambda done, total: None)
    texts, numbers = 0, 0.0
    for one in asked:
        answer = answers[one]
        if isinstance(one, Writing):
            texts += answer != written_slowly(model, tokenizer, one.context + one.prompt)
        elif isinstance(one, Reading):
            assert isinstance(answer, Tokens)
            expected = read_slowly(model, tokenizer, one.text, one.context)
            numbers = max(numbers, abs(lowest(answer.logp.tolist()) - expected))
    same = texts == 0 and numbers <= 1e-5
    return Found(name, "equal" if same else "different", said(backend._ways), texts, numbers)


def said(ways: Ways) -> str:
    """A way in words, for the table."""
    shared = (
        " and ".join(w for w, has in (("read", ways.behind), ("continued", ways.begun)) if has)
        or "nothing"
    )
    return (
        f"{'side by side' if ways.padded else 'one at a time'}, {ways.writing}, {shared} behind a "
        "shared beginning"
    )


@pytest.mark.parametrize("name", SOME)
def test_an_architecture_answers_as_one_text_at_a_time_without_a_cache(
    name: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "WORTH_A_GROUP", 8)
    found = compared(name, tokenizer, tmp_path / "spool")
    assert found.outcome == "equal", found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_architecture_answers_as_one_text_at_a_time_or_is_refused_by_name(
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(local, "WORTH_A_GROUP", 8)
    rows = [compared(name, tokenizer, tmp_path / name) for name in ARCHITECTURES]
    outcomes = [r.outcome for r in rows]
    equal, refused, different = (outcomes.count(o) for o in ("equal", "refused", "different"))
    with capsys.disabled():
        print(f"\n{'architecture':20} {'outcome':10} {'texts off':>9} {'Min-40% off':>12}  asked")
        for r in rows:
            print(f"{r.name:20} {r.outcome:10} {r.texts:>9} {r.numbers:>12.1e}  {r.way}")
        print(f"{equal} equal, {refused} refused by name, {different} different")
    assert different == 0
    assert equal >= 50
    assert {r.name for r in rows if r.outcome == "refused"} <= REFUSED


def test_only_layers_with_keys_and_values_of_all_tokens_share_a_beginning() -> None:
    shared = {name: ways_of(zoo_model(name, 100)) for name in ("llama", "mpt", "mamba", "lfm2")}
    assert [w.begun for w in shared.values()] == [True, False, False, False]
    assert [w.behind for w in shared.values()] == [True, True, False, False]
    assert [w.writing for w in shared.values()] == ["left", "left", "even", "even"]
    assert shared["llama"].once


def test_an_encoder_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"\(BertLMHeadModel\) does not read from left to right"):
        ways_of(tiny_model("bert"))


def test_a_model_that_hashes_by_chance_is_refused() -> None:
    with pytest.raises(UserError, match=r"\(ReformerModelWithLMHead\) hashes by chance"):
        ways_of(zoo_model("reformer", 100))


def test_half_of_an_encoder_decoder_is_not_opened(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    save_model(
        tiny_model("bart", vocab=len(tokenizer), encoder_layers=1, decoder_layers=1, d_model=64),
        tokenizer,
        tmp_path / "m",
    )
    config = (tmp_path / "m/config.json").read_text()
    (tmp_path / "m/config.json").write_text(
        config.replace('"is_encoder_decoder": false', '"is_encoder_decoder": true')
    )
    with pytest.raises(UserError, match=r"\(bart\) is an encoder with a decoder"):
        open_model(str(tmp_path / "m"))


@torch.no_grad()
def test_a_cache_that_is_broken_for_short_texts_only_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama")
    plain = Cached.step

    def shifted(self: Cached) -> torch.Tensor:
        logits = plain(self)
        padded = (self._mask == 0).any(-1)
        return logits + 0.01 * padded[:, None] * torch.arange(logits.shape[-1])

    assert ways_of(model).writing == "left"
    monkeypatch.setattr(Cached, "step", shifted)
    found = ways_of(model)
    assert (found.writing, found.begun) == ("even", False)


def test_a_model_whose_logits_are_not_finite_is_asked_in_the_slowest_way_and_is_no_encoder() -> (
    None
):
    model = tiny_model("llama")
    with torch.no_grad():
        next(model.parameters())[5:].fill_(float("nan"))
    found = ways_of(model)
    assert (found.padded, found.writing, found.begun) == (False, "whole", False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_short_numbers_does_not_part_texts_that_may_share(dtype: torch.dtype) -> None:
    found = ways_of(in_dtype(zoo_model("mixtral", 100), dtype))
    assert (found.padded, found.behind, found.writing, found.begun) == (True, True, "left", True)


@pytest.mark.parametrize(
    ("name", "shape", "context"),
    [
        ("llama", {"max_position_embeddings": 96}, 96),
        ("mpt", {"max_seq_len": 77}, 77),
        ("gpt2", {"n_positions": 96}, 96),
        ("opt", {"max_position_embeddings": 96}, 96),
        ("roberta", {"max_position_embeddings": 98, "pad_token_id": 1, "is_decoder": True}, 96),
        ("ctrl", {"n_positions": 96}, 96),
        ("mamba", {"max_position_embeddings": None}, 1 << 30),
    ],
)
def test_a_context_is_found_under_every_name_and_no_text_of_it_is_too_long(
    name: str, shape: dict[str, Any], context: int
) -> None:
    plain = {
        k: v
        for k, v in shape_of(name, 100).items()
        if k not in ("max_position_embeddings", "max_seq_len")
    }
    config = AutoConfig.for_model(
        name, **(plain | {k: v for k, v in shape.items() if v is not None})
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    assert context_length(model) == context
    assert logits_of(model, [3] * min(context, 120)).shape[0] == min(context, 120)


def test_a_context_is_read_from_the_part_of_a_configuration_about_text() -> None:
    config = AutoConfig.for_model(
        "gemma3", text_config={"max_position_embeddings": 321, "num_hidden_layers": 1}
    )
    assert declared_context(config) == 321


def test_a_table_of_places_is_the_limit_whatever_the_configuration_says() -> None:
    model = tiny_model("gpt2", max_position_embeddings=48)
    model.config.max_position_embeddings = 4096
    assert longest_text(model) == 48


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@pytest.mark.slow
def test_every_architecture_has_a_size_for_its_tokens(name: str) -> None:
    model = zoo_model(name, 100)
    assert 1000 < bytes_per_token(model) < 200_000
    assert 0 <= reach(model) < 5000


def test_a_token_of_a_llama_costs_its_keys_values_and_activations() -> None:
    keys_and_values, activations = 2 * 2 * 2 * 16, 8 * 64 + 3 * 128
    assert bytes_per_token(tiny_model("llama")) == 4 * (keys_and_values + activations)
    assert bytes_per_token(zoo_model("mamba", 100)) > bytes_per_token(zoo_model("llama", 100))
