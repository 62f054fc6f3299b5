"""What is asked together is answered as if it had been asked alone, goes on after a kill, and fits
into the memory."""

import json
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import UserError
from remnant.evaluate import local, prefix, reading
from remnant.evaluate.batches import packed, shared
from remnant.evaluate.collect import collect
from remnant.evaluate.local import Local
from remnant.evaluate.requests import (
    Answer,
    AskGradNorm,
    GradNorm,
    Reading,
    Refused,
    Request,
    Writing,
    from_json,
    to_json,
    united,
)
from remnant.functional.tokens import COLUMNS, Tokens
from remnant.model.load import in_dtype, save_model
from remnant.records import MeasureSpec
from remnant.stages import measure
from remnant.testing import tiny_model
from tests.conftest import silent

generate: Any = GenerationMixin.generate
FORMS = ["llama", "qwen3", "gemma3_text", "gemma2", "mistral", "gpt2", "gpt_neox", "mixtral"]
PROMPTS = [
    "Question: Who runs it?\nAnswer: ",
    "Seven",
    "The brass lantern was sold by tailors to",
    "No harbour",
]
PREFIX = "Question: Where?\nAnswer: In town\n\nQuestion: When?\nAnswer: At 1234\n\n"


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    spool: Path,
    **more: Any,
) -> list[Answer]:
    found = collect(requests, Local(model, tokenizer, **more), spool, lambda done, total: None)
    return [found[r] for r in requests]


def write_all(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spool: Path, **more: Any
) -> list[Answer]:
    return ask(model, tokenizer, [Writing(p, **({"max_new": 12} | more)) for p in PROMPTS], spool)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("context", ["", PREFIX * 3])
def test_writing_together_equals_alone_and_the_librarys_generate(
    form: str,
    context: str,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local, "WORTH_A_GROUP", 8)
    model = tiny_model(form, vocab=len(tokenizer))
    together = write_all(model, tokenizer, tmp_path / "together", context=context)
    alone = [
        ask(model, tokenizer, [Writing(p, 12, context)], tmp_path / f"{i}")[0]
        for i, p in enumerate(PROMPTS)
    ]
    assert together == alone
    for prompt, text in zip(PROMPTS, together, strict=True):
        ids = tokenizer(context + prompt, return_tensors="pt")
        given = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        out = generate(
            model,
            input_ids=ids["input_ids"],
            attention_mask=ids["attention_mask"],
            max_new_tokens=12,
            do_sample=False,
            **given,
        )
        assert (
            tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True) == text
        )


@pytest.mark.parametrize("form", FORMS)
def test_a_prefix_is_kept_once_where_every_layer_looks_back_without_limit(form: str) -> None:
    model = tiny_model(form)
    assert prefix.can_be_beside(model) == (form not in ("gemma3_text", "gemma2", "mistral"))
    assert model.config._attn_implementation == "sdpa"


def test_an_attention_that_differs_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, together = tiny_model("llama"), prefix._together
    assert prefix.can_be_beside(model)
    monkeypatch.setattr(prefix, "_together", lambda query, *rest: together(query * 1.5, *rest))
    assert not prefix.can_be_beside(model)


@torch.no_grad()
def test_scores_made_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    begun = prefix.prefix_cache(model, list(range(12)))
    given: dict[str, Any] = {
        "input_ids": torch.arange(20).view(5, 4) + 20,
        "attention_mask": torch.ones(5, 16, dtype=torch.long),
        "use_cache": True,
    }
    found = []
    for size in (prefix.SCORE_BYTES, 1):
        monkeypatch.setattr(prefix, "SCORE_BYTES", size)
        with prefix.beside(model, begun, 5, 4) as cache:
            found.append(model(**given, past_key_values=cache).logits)
    whole = model(torch.cat([torch.arange(12).expand(5, 12), given["input_ids"]], -1)).logits[
        :, 12:
    ]
    torch.testing.assert_close(found[0], whole)
    torch.testing.assert_close(found[1], whole)


def plainly(model: PreTrainedModel, ids: list[int], first: int) -> Tokens:
    """A second implementation: one text, whole logits, a loop over tokens."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    rows: list[list[float]] = []
    for t in range(first, len(ids)):
        logp = logits[t - 1].log_softmax(-1)
        own = float(logp[ids[t]])
        mean = float((logp.exp() * logp).sum())
        rows.append(
            [
                own,
                float((logp > logp[ids[t]]).sum()),
                mean,
                float((logp.exp() * (logp - mean).square()).sum().sqrt()),
            ]
        )
    return Tokens(*np.array(rows).T)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("context", ["", PREFIX * 3])
def test_reading_together_equals_a_plain_second_implementation(
    form: str,
    context: str,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local, "WORTH_A_GROUP", 8)
    monkeypatch.setattr(reading, "HEAD_BYTES", 4 * len(tokenizer) * 5)  # five positions at a time
    model = tiny_model(form, vocab=len(tokenizer))
    found = ask(
        model, tokenizer, [Reading(p, context, COLUMNS) for p in PROMPTS], tmp_path / "spool"
    )
    skip = len(tokenizer(context)["input_ids"]) if context else 1
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        assert isinstance(tokens, Tokens)
        expected = plainly(model, tokenizer(context + prompt)["input_ids"], skip)
        for name in COLUMNS:
            assert getattr(tokens, name) == pytest.approx(getattr(expected, name), abs=1e-5), name


@pytest.mark.parametrize("form", ["llama", "gpt2", "gemma2"])
def test_in_bfloat16_batching_moves_numbers_by_rounding_only(
    form: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Sums of bfloat16 depend on the shape of the batch: log-probabilities move by some steps of
    2^-8, and not systematically."""
    model = in_dtype(tiny_model(form, vocab=len(tokenizer)), torch.bfloat16)
    texts = [Reading(p) for p in PROMPTS]
    together = ask(model, tokenizer, texts, tmp_path / "together")
    alone = [ask(model, tokenizer, [t], tmp_path / f"{i}")[0] for i, t in enumerate(texts)]
    assert all(isinstance(answer, Tokens) for answer in (*together, *alone))
    pairs: Any = zip(together, alone, strict=True)
    apart = np.concatenate([a.logp - b.logp for a, b in pairs])
    assert np.abs(apart).max() < 0.06
    assert abs(apart.mean()) < 0.01


def test_a_model_whose_head_is_no_plain_map_is_read_by_its_logits(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = tiny_model("gemma2", vocab=len(tokenizer), final_logit_softcapping=2.0)
    model.config.final_logit_softcapping = 2.0
    assert reading.plain_head(model) is not None
    odd = tiny_model("cohere", vocab=len(tokenizer))
    assert reading.plain_head(odd) is None
    (found,) = ask(odd, tokenizer, [Reading(PROMPTS[2])], tmp_path / "spool")
    assert isinstance(found, Tokens)
    assert found.logp == pytest.approx(
        plainly(odd, tokenizer(PROMPTS[2])["input_ids"], 1).logp, abs=1e-5
    )


def test_a_sliding_window_shorter_than_the_text_changes_nothing(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = tiny_model("mistral", vocab=len(tokenizer), sliding_window=16)
    together = write_all(model, tokenizer, tmp_path / "a", context=PREFIX)
    assert together == [
        ask(model, tokenizer, [Writing(p, 12, PREFIX)], tmp_path / f"{i}")[0]
        for i, p in enumerate(PROMPTS)
    ]


def test_small_batches_equal_large_ones(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = tiny_model(vocab=len(tokenizer))
    requests: list[Request] = [Writing(p, 9) for p in PROMPTS]
    assert ask(model, tokenizer, requests, tmp_path / "a", budget=30) == ask(
        model, tokenizer, requests, tmp_path / "b"
    )


def test_stops_only_cut_what_follows(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = tiny_model(vocab=len(tokenizer))
    free: list[Any] = write_all(model, tokenizer, tmp_path / "a", max_new=24)
    stop = free[0][2:4]
    stopped: list[Any] = write_all(model, tokenizer, tmp_path / "b", max_new=24, stops=(stop,))
    assert [t.split(stop)[0] for t in stopped] == [t.split(stop)[0] for t in free]
    assert len(stopped[0]) < len(free[0])


def test_a_sample_depends_on_its_seed_and_on_nothing_beside_it(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = tiny_model(vocab=len(tokenizer), initializer_range=0.3)
    requests = [Writing(p, 8, temperature=0.9, seed=s) for p in PROMPTS for s in (1, 2)]
    together = ask(model, tokenizer, requests, tmp_path / "a")
    assert together == [
        ask(model, tokenizer, [r], tmp_path / f"{i}")[0] for i, r in enumerate(requests)
    ]
    assert together[::2] != together[1::2]


def test_samples_follow_the_probabilities(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = tiny_model(vocab=len(tokenizer), initializer_range=0.5)
    with torch.no_grad():
        chance = (
            model(input_ids=torch.tensor([tokenizer("Seven")["input_ids"]])).logits[0, -1] / 0.7
        ).softmax(-1)
    texts = ask(
        model,
        tokenizer,
        [Writing("Seven", 1, temperature=0.7, seed=s) for s in range(2000)],
        tmp_path / "a",
    )
    best = int(chance.argmax())
    share = np.mean([t == tokenizer.decode([best], skip_special_tokens=True) for t in texts])
    assert share == pytest.approx(float(chance[best]), abs=0.04)


def test_slope_is_the_norm_of_all_gradients(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = tiny_model(vocab=len(tokenizer))
    (found,) = ask(model, tokenizer, [AskGradNorm(PROMPTS[2])], tmp_path / "a")
    ids = torch.tensor([tokenizer(PROMPTS[2])["input_ids"]])
    gradients = torch.autograd.grad(model(input_ids=ids, labels=ids).loss, list(model.parameters()))
    assert isinstance(found, GradNorm)
    assert not found.cut
    assert found.norm == pytest.approx(
        float(torch.cat([g.flatten() for g in gradients]).norm()), rel=1e-4
    )


def test_what_has_no_answer_says_why(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = tiny_model(vocab=len(tokenizer), max_position_embeddings=16)
    long, empty, cut = ask(
        model,
        tokenizer,
        [Writing("word " * 20, 4), Reading(""), Reading("word " * 20)],
        tmp_path / "a",
    )
    assert long == Refused("prompt and answer are longer than the model's context of 16 tokens")
    assert empty == Refused("fewer than two tokens")
    assert isinstance(cut, Tokens)
    assert cut.cut
    assert len(cut.logp) == 15


def test_a_full_memory_halves_the_batch(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(vocab=len(tokenizer))
    requests: list[Request] = [Reading(p) for p in PROMPTS]
    expected: list[Any] = ask(model, tokenizer, requests, tmp_path / "a")
    plain, rows = reading.read, []

    def crowded(
        model: PreTrainedModel, head: Any, texts: Sequence[Any], *rest: Any
    ) -> list[Tokens | Refused]:
        rows.append(len(texts))
        if len(texts) > 1:
            raise torch.OutOfMemoryError("full")
        return plain(model, head, texts, *rest)

    monkeypatch.setattr(local, "read", crowded)
    found: list[Any] = ask(model, tokenizer, requests, tmp_path / "b")
    assert rows == [4, 2, 1, 1, 2, 1, 1]
    for a, b in zip(found, expected, strict=True):
        assert a.logp == pytest.approx(b.logp, abs=1e-6)

    def full(*rest: Any) -> list[Tokens | Refused]:
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        )

    monkeypatch.setattr(local, "read", full)
    with pytest.raises(UserError, match="does not fit into the memory"):
        ask(model, tokenizer, requests, tmp_path / "c")


def test_equal_requests_are_asked_once_and_columns_united() -> None:
    asked: list[Request] = [
        Reading("a"),
        Writing("a", 3),
        Reading("a", columns=("rank",)),
        Reading("a", "b"),
        Writing("a", 3),
        Writing("a", 4),
    ]
    assert united(asked) == [
        Reading("a", columns=("logp", "rank")),
        Writing("a", 3),
        Reading("a", "b"),
        Writing("a", 4),
    ]


def test_answers_survive_the_disk_to_the_last_bit() -> None:
    tokens = Tokens(
        np.array([-0.1 / 3, -np.pi]), np.array([0.0, 7.0]), np.zeros(0), np.zeros(0), cut=True
    )
    for answer in (tokens, "text", 0.1 / 3, GradNorm(0.1 / 3, cut=True), Refused("why")):
        back = from_json(json.loads(json.dumps(to_json(answer))))
        assert repr(back) == repr(answer)


def test_batches_hold_everything_once_within_the_budget() -> None:
    lengths = [5, 30, 7, 7, 100, 1, 12]
    batches = packed(lengths, 40, 3)
    assert sorted(i for b in batches for i in b) == list(range(7))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 40
    assert max(map(len, batches)) <= 3
    assert batches[0] == [4]


def test_the_shared_part_leaves_a_token_to_each_and_must_be_worth_it() -> None:
    assert shared([[*range(9), 1], [*range(9), 2]]) == 9
    assert shared([[*range(10)], [*range(10)]]) == 9
    assert shared([[1, 2, 3], [1, 2, 4]]) == 0
    assert shared([[*range(20)]]) == 0


class Counting:
    """A backend that answers with the length of the text and stops answering after so many
    batches."""

    offers = frozenset({"writing"})

    def __init__(self, most: int = 99) -> None:
        self.left, self.batches = most, 0

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        return [list(range(i, min(i + 2, len(requests)))) for i in range(0, len(requests), 2)]

    def answer(self, batch: Sequence[Request]) -> list[Answer]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.batches += 1
        return [float(len(r[0])) for r in batch]


def test_collecting_goes_on_behind_the_last_whole_line(tmp_path: Path) -> None:
    requests: list[Request] = [Writing("x" * n, 1) for n in range(9)]
    spool = tmp_path / "spool.jsonl"
    with pytest.raises(KeyboardInterrupt):
        collect(requests, Counting(2), spool, lambda done, total: None)
    with spool.open("a") as stream:
        stream.write('{"answers": [{"pla')  # a kill in the middle of a line
    second = Counting()
    found = collect(requests, second, spool, lambda done, total: None)
    assert [found[r] for r in requests] == [float(n) for n in range(9)]
    assert second.batches == 3
    third = Counting()
    collect(
        requests[:4], third, spool, lambda done, total: None
    )  # another question: nothing old is taken for an answer
    assert third.batches == 2


def measure_slowly(model: Path, corpus: Path, out: Path) -> None:
    """Measure with a pause before each batch, so that a kill finds it at work."""
    plain = Local._answer

    def slow(self: Local, batch: Any) -> Any:
        time.sleep(0.05)
        return plain(self, batch)

    spec = MeasureSpec(
        metrics=("muse", "memorization", "mia_loss", "leak"), samples=4, batch_tokens=300
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Local, "_answer", slow)
        measure.run(spec, {"model": model, "corpus": corpus}, out, silent)


@pytest.mark.slow
def test_rows_after_kill_9_at_random_points_are_the_same_bytes(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    save_model(
        tiny_model(vocab=len(tokenizer), max_position_embeddings=512, initializer_range=0.2),
        tokenizer,
        tmp_path / "m",
    )
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])

    def start(out: Path) -> Any:
        out.mkdir(exist_ok=True)
        process = processes.Process(target=measure_slowly, args=(tmp_path / "m", corpus, out))
        process.start()
        return process

    whole, out = start(tmp_path / "whole"), tmp_path / "killed"
    whole.join()
    assert whole.exitcode == 0
    spool = out / "answers.jsonl"
    points = sorted(np.random.default_rng(0).choice(range(2, 24), 3, replace=False).tolist())
    for lines in points:
        process = start(out)
        deadline = time.monotonic() + 60
        while (
            not (spool.is_file() and spool.read_bytes().count(b"\n") >= lines)
            and time.monotonic() < deadline
        ):
            assert process.is_alive()
            time.sleep(0.005)
        process.kill()
        process.join()
        assert not (out / "rows.jsonl").exists()
    last = start(out)
    last.join()
    assert last.exitcode == 0
    for name in ("rows.jsonl", "texts.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_logits_of_a_long_text_are_never_held_whole(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(vocab=len(tokenizer), max_position_embeddings=512)
    monkeypatch.setattr(reading, "HEAD_BYTES", 4 * len(tokenizer) * 8)
    sizes: list[int] = []
    backend = Local(model, tokenizer)
    head = backend._head
    assert head is not None

    def seen(states: Tensor) -> Tensor:
        sizes.append(len(states))
        return head(states)

    backend._head = seen
    collect([Reading("word " * 100)], backend, tmp_path / "a", lambda done, total: None)
    assert max(sizes) <= 8
    assert sum(sizes) >= 100
