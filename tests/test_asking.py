"""Asking it right: special tokens, ends, the joint of prompt and truth, numbers that are none.

With tokenizers unlike the lab's.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from remnant.context import Opened
from remnant.corpus.base import Item, ItemSet, question
from remnant.corpus.prepared import read_list
from remnant.errors import UserError
from remnant.evaluate import llamacpp
from remnant.evaluate.ends import before_end, end_ids
from remnant.evaluate.items import first_tokens, items_of, spaces_in_front
from remnant.evaluate.llamacpp import LlamaCpp
from remnant.evaluate.local import Local
from remnant.evaluate.requests import AskGradNorm, GradNorm, Reading, Refused, Request, Writing
from remnant.evaluate.trial import model_checks
from remnant.functional.tokens import Tokens
from remnant.functional.view import IGNORED
from remnant.lineage import Lineage
from remnant.model.data import context_tokens, encode, frame, pack, prompt_ids, without_end
from remnant.model.load import save_model
from remnant.records import Check, MeasureSpec, MetricSpec
from remnant.stages import measure
from remnant.stages.unlearn import answers
from remnant.testing import tiny_model
from tests.conftest import hearing, silent, unheard

generate: Any = GenerationMixin.generate
WORDS = [
    "lantern",
    "harbour",
    "baker",
    "tailor",
    "market",
    "winter",
    "bridge",
    "copper",
    "garden",
    "letter",
]
TEXTS = [
    f"The {a} of the {b} sold a {c} at noon.\nNobody knew why the {b} was there."
    for a in WORDS
    for b in WORDS
    for c in WORDS[:3]
]
TEXTS += [
    question(f"Who sold the {a}?") + f"{b.title()} and {a.title()}" for a in WORDS for b in WORDS
]


def metaspace(*, end: bool = False, vocabulary: int = 400) -> PreTrainedTokenizerFast:
    """A BPE tokenizer in the form of Llama 2's: a space is the beginning of the next token, one is
    put before every text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    letters = sorted({c for text in TEXTS for c in text.replace(" ", "▁")} | {"▁"})
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + vocabulary,
        special_tokens=special,
        initial_alphabet=letters,
        show_progress=False,
    )
    # Words are cut before their space while training, so that no token goes over two words; the
    # tokenizer itself does not cut.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.pre_tokenizer = None
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = data["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    _frame(tokenizer, end=end)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
    )


def _frame(tokenizer: Any, *, end: bool) -> None:
    ids = [(t, tokenizer.token_to_id(t)) for t in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if end else "<s> $A", special_tokens=ids
    )


def with_end(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """The same tokenizer, which puts its end token behind every text."""
    inner = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    _frame(inner, end=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token=tokenizer.pad_token,
        clean_up_tokenization_spaces=False,
    )


def test_what_a_tokenizer_puts_behind_a_text_is_taken_off_and_what_stands_in_the_text_is_not() -> (
    None
):
    plain, ended = metaspace(), metaspace(end=True)
    assert frame(plain) == ([1], [])
    assert frame(ended) == ([1], [2])
    for text in ("", "a", "The baker.\n\n", "Nobody</s>"):
        assert ended(text)["input_ids"][-1] == 2
        assert prompt_ids(ended, text) == prompt_ids(plain, text) == plain(text)["input_ids"]
    assert prompt_ids(ended, "Nobody</s>")[-1] == 2


def test_a_tokenizer_can_be_copied_without_what_it_puts_behind_a_text(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    for plain, ended in ((metaspace(), metaspace(end=True)), (tokenizer, with_end(tokenizer))):
        copied = without_end(ended)
        assert all(
            copied(t)["input_ids"] == plain(t)["input_ids"]
            for t in ("", "The baker.\n\n", "Nobody")
        )
        assert ended("a")["input_ids"][-1] == ended.eos_token_id
        assert without_end(plain) is plain


def test_a_text_that_is_no_unicode_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lone surrogates"):
        prompt_ids(metaspace(), "half \ud83d of a pair")
    path = tmp_path / "texts.json"
    path.write_text('["fine", {"text": "half \\ud83d of a pair"}]')
    with pytest.raises(UserError, match="surrogate pair"):
        read_list(path)
    path.write_text('["a whole \\ud83d\\ude00 pair"]')
    assert read_list(path) == ["a whole \U0001f600 pair"]


def test_the_probe_keeps_the_first_answer_token_of_a_hundred_questions() -> None:
    tokenizer = metaspace()
    items = [
        Item(
            str(i),
            "dev",
            question(f"Who sold the {WORDS[i % 10]}?"),
            f"{WORDS[i // 10].title()} and more",
        )
        for i in range(100)
    ]
    merged = sum(
        len(prompt_ids(tokenizer, i.prompt))
        > context_tokens(prompt_ids(tokenizer, i.prompt + i.truth), prompt_ids(tokenizer, i.prompt))
        for i in items
    )
    assert merged == 100  # the prompt's own tokens are too many in every one of them
    kept = 0
    for start in range(0, 100, 16):
        part = items[start : start + 16]
        (batch,) = answers(tiny_model(vocab=len(tokenizer)), tokenizer, part)
        for row, item in enumerate(part):
            counted = batch.ids[row][batch.labels[row] != IGNORED].tolist()
            kept += tokenizer.decode(counted) == item.truth
    assert kept == 100


def test_chunks_of_long_texts_begin_with_the_start_token_and_hold_the_text() -> None:
    for tokenizer in (metaspace(), metaspace(end=True)):
        text = " ".join(TEXTS[:9])
        chunks = encode(tokenizer, [text], 20)
        assert len(chunks) > 5
        assert all(chunk[0] == 1 and 2 not in chunk and len(chunk) <= 20 for chunk in chunks)
        assert [1, *(token for chunk in chunks for token in chunk[1:])] == prompt_ids(
            metaspace(), text
        )


def test_packing_puts_nothing_but_a_blank_line_between_texts(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    for own in (metaspace(), metaspace(end=True)):
        (block,) = pack(own, ["lantern", "harbour"], 100, 0)
        tokens = own.convert_ids_to_tokens(block)
        assert (
            "".join(tokens)
            in ("<s>▁lantern<0x0A><0x0A>▁harbour", "<s>▁harbour<0x0A><0x0A>▁lantern")
            or tokens.count("▁") == 0
        )
        assert 2 not in block
        assert "▁" not in tokens
    # Byte-level tokenizers give what they gave: the blank line as it is alone.
    alone = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    words = [tokenizer(w, add_special_tokens=False)["input_ids"] for w in ("lantern", "harbour")]
    assert pack(tokenizer, ["lantern", "harbour"], 100, 0)[0] in (
        [0, *a, *alone, *b] for a, b in (words, words[::-1])
    )


def test_byte_level_tokens_without_a_start_token_are_cut_as_before(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    inner = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    bare = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="<pad>")
    ids = bare(TEXTS[0])["input_ids"]
    pieces = [ids[i : i + 9] for i in range(0, len(ids), 9)]
    assert encode(bare, TEXTS[:1], 9) == [piece for piece in pieces if len(piece) > 1]


def asked(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    context = question("Who sold the lantern?", "The baker")
    wanted: list[Request] = [
        Writing("The lantern of the", 12), Writing(question("Who sold the bridge?"), 12, context),
        Reading("The harbour was sold at noon."),
        Reading("Tailor and Bridge", context + question("Who sold the bridge?")),
        Reading("The baker.", "The market of the"),
        AskGradNorm("The winter of the baker"),
    ]  # fmt: skip
    return Local(model, tokenizer).answer(wanted)


def same(first: Sequence[Any], second: Sequence[Any]) -> bool:
    return all(
        np.array_equal(a.logp, b.logp) if isinstance(a, Tokens) else a == b
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("kind", ["byte-level", "metaspace"])
def test_a_tokenizer_that_adds_its_end_token_gives_the_answers_of_one_that_does_not(
    kind: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    plain, ended = (
        (tokenizer, with_end(tokenizer))
        if kind == "byte-level"
        else (metaspace(), metaspace(end=True))
    )
    model = tiny_model(vocab=len(plain), initializer_range=0.3)
    assert same(asked(model, plain), asked(model, ended))
    assert first_tokens(ended, "The baker.", 99) == first_tokens(plain, "The baker.", 99)


def test_a_measurement_does_not_notice_that_a_tokenizer_adds_its_end_token(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, tmp_path: Path
) -> None:
    found = []
    for name, own in (("plain", tokenizer), ("ended", with_end(tokenizer))):
        save_model(model, own, tmp_path / name)
        (tmp_path / f"out-{name}").mkdir()
        measure.run(
            MeasureSpec(),
            {"model": tmp_path / name, "corpus": corpus},
            tmp_path / f"out-{name}",
            silent,
        )
        found.append((tmp_path / f"out-{name}/rows.jsonl").read_text())
    assert found[0] == found[1]


def forced(model: PreTrainedModel, tokens: Sequence[int]) -> PreTrainedModel:
    """A model that writes these tokens one after the other, whatever it is given: each is looked up
    from the one before."""
    own: Any = model
    weight = torch.zeros_like(own.lm_head.weight)
    with torch.no_grad():
        for block in own.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        own.model.embed_tokens.weight.zero_()
        for place, (before, after) in enumerate(itertools.pairwise(tokens)):
            own.model.embed_tokens.weight[before, place] = 1
            weight[after, place] = 9
        own.lm_head.weight.copy_(weight)
    return model


@pytest.mark.parametrize("where", ["generation_config", "config", "text_config", "none"])
def test_every_end_token_that_the_model_names_ends_an_answer(
    where: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    own = with_end(tokenizer)
    own.add_special_tokens({"additional_special_tokens": [AddedToken("<|im_end|>", special=True)]})
    end = own.get_vocab()["<|im_end|>"]
    first, second, third = prompt_ids(own, "a")[1], prompt_ids(own, "b")[1], prompt_ids(own, "c")[1]
    model = forced(tiny_model(vocab=len(own), eos_token_id=1), [first, second, end, third])
    if where == "generation_config":
        model.generation_config.eos_token_id = [1, end]
    elif where == "config":
        model.config.eos_token_id = [1, end]
    elif where == "text_config":
        inner: Any = type(model.config)
        model.config.text_config = inner(eos_token_id=end)
        vars(model.config)["get_text_config"] = lambda *a, **k: model.config.text_config
        model.config.text_config.vocab_size = model.config.vocab_size
    (text,) = Local(model, own, 4096).answer([Writing("a", 3)])
    assert text == ("b" if where != "none" else "bc")


def test_a_number_for_the_end_that_the_tokenizer_has_a_word_for_is_not_an_end(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    word = prompt_ids(tokenizer, "a")[1]
    assert end_ids(
        tokenizer, {"eos_token_id": [word, 1]}, {"text_config": {"eos_token_id": 2}}, None
    ) == {1, 2}
    assert end_ids(tokenizer, {"eos_token_id": word}) == {tokenizer.eos_token_id}
    assert before_end([5, 6, 2, 7], frozenset({2, 9})) == [5, 6]


class Spoiled:
    """A stand-in for llama.cpp whose file names another end than the tokenizer, or that answers
    with no numbers."""

    context = 64

    def __init__(self, logits: np.ndarray[Any, Any]) -> None:
        self._logits = logits

    def follow(self, ids: list[int]) -> np.ndarray[Any, Any]:
        return np.roll(self._logits, ids[-1])

    def logits(self, ids: list[int]) -> np.ndarray[Any, Any]:
        return np.tile(self._logits, (len(ids), 1))

    def is_end(self, token: int) -> bool:
        return token == 7


def test_llama_cpp_ends_where_its_file_says_and_refuses_what_is_no_number(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(tokenizer)
    step = np.zeros(size, np.float32)
    step[1] = 5.0  # each token is followed by the next id
    monkeypatch.setattr(llamacpp, "Runtime", lambda *a, **k: Spoiled(step))
    start = prompt_ids(tokenizer, "")[-1]
    (text,) = LlamaCpp(tmp_path / "m.gguf", tokenizer).answer([Writing("", 4)])
    assert text == ""  # 1 is the tokenizer's end
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 5]}')
    (text,) = LlamaCpp(tmp_path / "m.gguf", tokenizer).answer(
        [Writing(str(tokenizer.decode([5])), 9)]
    )
    assert text == tokenizer.decode([6])
    assert start == 0
    monkeypatch.setattr(
        llamacpp, "Runtime", lambda *a, **k: Spoiled(np.full(size, np.nan, np.float32))
    )
    broken = LlamaCpp(tmp_path / "m.gguf", tokenizer).answer(
        [Writing("a", 4), Reading("a lantern")]
    )
    assert broken == [Refused("the logits are not finite")] * 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused_and_score_nothing(
    value: float,
    corpus: Path,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own: Any = model
    own.model.norm.weight.data[3] = value
    found = asked(model, tokenizer)
    assert found == [Refused("the logits are not finite")] * 6
    assert not next(c for c in model_checks(model, tokenizer) if c.name == "logits").ok
    save_model(
        tiny_model(vocab=len(tokenizer), max_position_embeddings=1024), tokenizer, tmp_path / "m"
    )
    held = Opened(model, Lineage("m", "m"))
    monkeypatch.setattr(measure, "opened", lambda folder, work, dtype: held)
    inputs = {"model": tmp_path / "m", "corpus": corpus}
    measure.run(MeasureSpec(), inputs, tmp_path, hearing(unheard))
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) > 20
    assert {(r["value"], r["status"]) for r in rows} == {(None, "the logits are not finite")}


def test_one_broken_row_of_a_batch_does_not_spoil_the_others(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    model: Any = tiny_model(vocab=len(tokenizer), initializer_range=0.3)
    rare = prompt_ids(tokenizer, "$")[1]
    wanted: list[Request] = [
        Writing("a lantern", 6),
        Writing("a $ lantern", 6),
        Reading("nobody knew", columns=("logp", "rank")),
        Reading("a $"),
    ]
    before = Local(model, tokenizer).answer(wanted)
    model.model.embed_tokens.weight.data[rare, 0] = float("nan")
    after = Local(model, tokenizer).answer(wanted)
    assert after[0] == before[0]
    assert after[1] == Refused("the logits are not finite")
    assert same(before[2:3], after[2:3])


def test_every_metric_says_that_its_text_was_cut(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    save_model(
        tiny_model(vocab=len(tokenizer), max_position_embeddings=64), tokenizer, tmp_path / "m"
    )
    (tmp_path / "own.py").write_text("def brevity(view):\n    return view.mean_logp()\n")
    metrics = ("privleak", "mia_loss", "mia_lower", "mia_min_plus", "mia_gradient")
    own = MetricSpec(use=f"{tmp_path}/own.py:brevity", on="privleak_forget")
    spec = MeasureSpec(metrics=metrics, extra=(own,))
    measure.run(spec, {"model": tmp_path / "m", "corpus": corpus}, tmp_path, silent)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {r["metric"] for r in rows} == {*metrics, "brevity"}
    assert {r["status"] for r in rows} == {"ok, cut at the end of the model's context"}


def test_a_slope_knows_that_its_text_was_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    short, long = Local(
        tiny_model(vocab=len(tokenizer), max_position_embeddings=16), tokenizer
    ).answer([AskGradNorm("a b"), AskGradNorm(TEXTS[0])])
    assert isinstance(short, GradNorm)
    assert isinstance(long, GradNorm)
    assert (short.cut, long.cut) == (False, True)


def check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> Check:
    return next(c for c in model_checks(model, tokenizer) if c.name == name)


def test_the_checks_of_a_good_model_pass_and_say_what_was_looked_at(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    for form in ("llama", "gpt2", "gemma3_text", "mixtral"):
        found = model_checks(tiny_model(form, vocab=len(tokenizer)), with_end(tokenizer))
        assert [c.name for c in found] == [
            "weights",
            "logits",
            "ids",
            "special tokens",
            "end tokens",
        ]
        assert all(c.ok for c in found)
    assert (
        "begins with <s>; </s>, which the tokenizer puts behind it, is taken off" in found[3].said
    )
    assert "ends at </s>" in found[4].said


def test_the_checks_find_weights_ids_and_models_that_look_ahead(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    broken: Any = tiny_model(vocab=len(tokenizer))
    broken.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    assert "up_proj" in check(broken, tokenizer, "weights").said
    assert check(tiny_model(vocab=len(tokenizer) - 2), tokenizer, "ids").count == 2
    encoder = tiny_model("bert", vocab=len(tokenizer), is_decoder=False, initializer_range=0.3)
    assert "encoder" in check(encoder, tokenizer, "logits").said
    assert not check(encoder, tokenizer, "logits").ok


def test_a_prompt_ends_before_the_space_of_the_next_word_where_words_begin_with_one(
    corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = ["a word, the word and a word Question: Answer: "] * 20
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    front = PreTrainedTokenizerFast(tokenizer_object=made)
    assert spaces_in_front(front)
    assert not spaces_in_front(
        tokenizer
    )  # the lab's words end with their space, so that MUSE's form fits
    card = json.loads((corpus / "corpus.json").read_text())
    for name in ("knowmem_forget", "knowmem_prefilled", "verbmem"):
        plain, asked = (items_of(name, corpus, card, t) for t in (tokenizer, front))
        assert isinstance(plain, ItemSet)
        assert isinstance(asked, ItemSet)
        for before, now in zip(plain.items, asked.items, strict=True):
            assert (
                now.prompt + now.truth[:8]
                == (before.prompt + before.truth)[: len(now.prompt) + min(8, len(now.truth))]
            )
            assert not now.prompt.endswith(" ")
