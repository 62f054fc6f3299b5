"""Every architecture goes through unlearn, quantize, measure; every stage can be interrupted.

The audit's rule by hand.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase

from remnant.corpus import beside
from remnant.corpus.prepared import raw_texts
from remnant.errors import Interrupted, UserError
from remnant.flow.place import Outside
from remnant.flow.plan import (
    audit_node,
    measure_node,
    prepare_node,
    train_node,
    transform_node,
    unlearn_node,
)
from remnant.flow.run import make
from remnant.flow.store import Store
from remnant.forecast.checkpoint import Checkpoint
from remnant.forecast.grids import grid
from remnant.forecast.stream import scan
from remnant.functional.stats import auc
from remnant.functional.survival import survival
from remnant.methods import step
from remnant.metrics import Column
from remnant.model.load import matrices, open_model
from remnant.records import (
    ExplainSpec,
    MeasureSpec,
    PrepareSpec,
    Rule,
    TrainSpec,
    TransformSpec,
    UnlearnSpec,
    Variant,
)
from remnant.stages import cells, explain, measure, prepare, train, transform, unlearn
from remnant.stages.cells import Sheet
from remnant.stages.examples import read_examples
from remnant.testing import tiny_model
from tests.conftest import silent, unheard

generate: Any = GenerationMixin.generate
FORMS = ["llama", "gemma3_text", "gpt2", "gpt_neox", "mixtral"]
# Near relatives of these, among the slow tests.
SLOW = ("qwen3", "mistral", "qwen3_moe")
SLOW_FORMS = [pytest.param(form, marks=pytest.mark.slow) for form in SLOW]
Save = Callable[[PreTrainedModel, str], Path]


def out_of(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    return folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("form", [*FORMS, *SLOW_FORMS])
def test_every_architecture_goes_through_unlearn_quantize_measure(
    form: str, corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, folder_of: Save
) -> None:
    target = folder_of(
        tiny_model(form, vocab=len(tokenizer), max_position_embeddings=1024), "target"
    )
    unlearned, quantized, measured = (
        out_of(tmp_path, n) for n in ("unlearned", "quantized", "measured")
    )
    spec = UnlearnSpec(method="npo_klr", steps=2, lr=1e-3, batch_size=4, select="last")
    unlearn.run(spec, {"target": target, "corpus": corpus}, unlearned, silent)
    before, after = open_model(str(target)), open_model(str(unlearned))
    assert any(
        not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)
    )
    said = transform.run(step("int4").spec, {"model": unlearned}, quantized, silent)
    assert said.quantized_weights > 0
    dense, codes = open_model(str(quantized)), load_file(quantized / "codes.safetensors")
    for own, plain in zip(matrices(dense), matrices(after), strict=True):
        rebuilt = codes[f"{own.name}.codes"].float().flatten(0, -2) * codes[f"{own.name}.scale"]
        assert torch.equal(rebuilt.view(own.read().shape), own.read())
        assert not torch.equal(own.read(), plain.read())
    left = {n for n, _ in dense.named_parameters()} - {m.name for m in matrices(dense)}
    plain_state = after.state_dict()
    assert all(torch.equal(p, plain_state[n]) for n, p in dense.named_parameters() if n in left)
    measure.run(
        MeasureSpec(metrics=("muse",)), {"model": quantized, "corpus": corpus}, measured, silent
    )
    answers = ("knowmem_forget", "knowmem_retain")
    assert {r["metric"] for r in rows_of(measured)} == {
        "verbmem", "privleak", *answers, *beside(answers)
    }  # fmt: skip
    assert all(r["value"] is not None and np.isfinite(r["value"]) for r in rows_of(measured))


def test_experts_are_quantized_and_routers_are_listed_apart(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    kinds = {m.name: m.kind for m in matrices(tiny_model("mixtral", vocab=len(tokenizer)), skip=())}
    assert any(kind == "experts" for kind in kinds.values())
    assert any(kind == "router" for kind in kinds.values())
    assert {"lm_head", "embedding", "norm", "linear"} <= set(kinds.values())
    assert not any(
        m.kind in ("lm_head", "embedding", "norm")
        for m in matrices(tiny_model("mixtral", vocab=len(tokenizer)))
    )


def test_measured_rows_equal_the_definitions(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, folder_of: Save
) -> None:
    """A slow second implementation of all four metrics: one item at a time, transformers' own
    generate, loops over tokens."""
    from rouge_score import rouge_scorer

    model = tiny_model(vocab=len(tokenizer), max_position_embeddings=1024)
    folder, out = folder_of(model, "m"), out_of(tmp_path, "rows")
    measure.run(MeasureSpec(metrics=("muse",)), {"model": folder, "corpus": corpus}, out, silent)
    rows = {(r["metric"], r["id"]): r["value"] for r in rows_of(out)}
    rouge = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)

    def write(prompt: str, most: int) -> str:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        given = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        text = generate(
            model,
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=most,
            do_sample=False,
            **given,
        )
        return str(tokenizer.decode(text[0, ids.shape[1] :], skip_special_tokens=True))

    def load(name: str) -> Any:
        return json.loads((corpus / f"{name}.json").read_text())

    for i, item in enumerate(load("verbmem/forget")):
        truth = tokenizer.decode(tokenizer(item["gt"])["input_ids"][:24], skip_special_tokens=True)
        assert (
            rows["verbmem", f"forget-text-{i}"]
            == rouge.score(truth, write(item["prompt"], 24))["rougeL"].fmeasure
        )
    for side in ("forget", "retain"):
        shown = "".join(
            f"Question: {r['question']}\nAnswer: {r['answer']}\n\n"
            for r in load(f"knowmem/{side}_qa_icl")
        )
        for i, item in enumerate(load(f"knowmem/{side}_qa")[:6]):
            answer = write(f"{shown}Question: {item['question']}\nAnswer: ", 32)
            for stop in ("\n\n", "\nQuestion", "Question:"):
                answer = answer.split(stop)[0]
            assert (
                rows[f"knowmem_{side}", f"{side}-question-{i}"]
                == rouge.score(item["answer"], answer)["rougeL"].fmeasure
            )
    for split in ("forget", "holdout"):
        for i, text in enumerate(load(f"privleak/{split}")):
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                logp = model(input_ids=ids).logits[0].log_softmax(-1)
            tokens = sorted(float(logp[t - 1, ids[0, t]]) for t in range(1, ids.shape[1]))
            lowest = tokens[: int(len(tokens) * 0.4)]
            assert rows["privleak", f"{split}-{i}"] == pytest.approx(
                -sum(lowest) / len(lowest), abs=1e-4
            )


def test_halves_are_disjoint_and_complete(
    corpus: Path, folder_of: Save, model: PreTrainedModel, tmp_path: Path
) -> None:
    found = {}
    for half in ("dev", "test", "all"):
        out = out_of(tmp_path, half)
        measure.run(
            MeasureSpec.model_validate({"half": half, "metrics": ["verbmem"]}),
            {"model": folder_of(model, "m"), "corpus": corpus},
            out,
            silent,
        )
        found[half] = {r["id"]: r["half"] for r in rows_of(out)}
    assert set(found["dev"].values()) == {"dev"}
    assert set(found["test"].values()) == {"test"}
    assert found["dev"] | found["test"] == found["all"]


def test_a_users_metrics_are_measured(
    corpus: Path, folder_of: Save, model: PreTrainedModel, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def accuracy(view):\n    return ((view.greedy() == view.targets()) & "
        "view.mask).sum(-1) / view.mask.sum(-1)\n\n"
        "def brevity(generated, *, limit: int = 5):\n    return None if not generated else "
        "float(len(generated) < limit)\n"
    )
    extra = [
        {"use": f"{mine}:accuracy", "on": "privleak_forget"},
        {"use": f"{mine}:brevity", "on": "knowmem_forget", "params": {"limit": 9}},
    ]
    out = out_of(tmp_path, "o")
    measure.run(
        MeasureSpec.model_validate({"extra": extra}),
        {"model": folder_of(model, "m"), "corpus": corpus},
        out,
        silent,
    )
    rows = rows_of(out)
    assert len([r for r in rows if r["metric"] == "accuracy"]) == 6
    assert {r["status"] for r in rows if r["metric"] == "brevity"} <= {"ok", "unscorable"}


def test_the_dtype_before_quantizing_matters_and_is_an_option(
    folder_of: Save, model: PreTrainedModel, tmp_path: Path
) -> None:
    folder = folder_of(model, "m")
    found = []
    for dtype in ("float32", "bfloat16"):
        out = out_of(tmp_path, dtype)
        transform.run(step("nf4", {"source_dtype": dtype}).spec, {"model": folder}, out, silent)
        found.append(load_file(out / "codes.safetensors"))
    assert any(not torch.equal(found[0][k], found[1][k]) for k in found[0])


def test_skipping_nothing_quantizes_everything(
    folder_of: Save, model: PreTrainedModel, tmp_path: Path
) -> None:
    said = transform.run(
        step("int8", {"skip": []}).spec,
        {"model": folder_of(model, "m")},
        out_of(tmp_path, "q"),
        silent,
    )
    assert said.share_quantized == 1.0


def test_a_group_that_does_not_fit_is_a_sentence(
    folder_of: Save, model: PreTrainedModel, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="group size 48 does not divide"):
        transform.run(
            step("int4-g48").spec,
            {"model": folder_of(model, "m")},
            out_of(tmp_path, "q"),
            silent,
        )


def test_question_files_in_tofus_form(tmp_path: Path) -> None:
    for name, start in (("forget", 0), ("retain", 100)):
        lines = [
            {"question": f"Who painted gate {i}?", "answer": f"Painter number {i} of the town"}
            for i in range(start, start + 60)
        ]
        (tmp_path / f"{name}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = out_of(tmp_path, "c")
    spec = PrepareSpec(
        forget=(str(tmp_path / "forget.json"),),
        retain=(str(tmp_path / "retain.json"),),
        holdout_share=0.2,
        vocab_size=300,
    )
    card = prepare.run(spec, {}, out, silent)
    assert card.absent == {}
    assert card.counts == {
        "raw/forget": 60, "raw/retain1": 32, "raw/retain2": 16, "raw/holdout": 12,
        "verbmem/forget": 60, "knowmem/forget_qa_icl": 10,
        "knowmem/forget_qa": 50, "knowmem/retain_qa_icl": 10, "knowmem/retain_qa": 38,
        "privleak/forget": 60, "privleak/retain": 16,
        "privleak/holdout": 12,
    }  # fmt: skip
    held = json.loads((out / "raw/holdout.json").read_text())
    read = json.loads((out / "raw/retain1.json").read_text()) + json.loads(
        (out / "raw/retain2.json").read_text()
    )
    assert not set(held) & set(read)


def test_a_muse_folder_goes_through_the_same_door(corpus: Path, tmp_path: Path) -> None:
    out = out_of(tmp_path, "c")
    prepare.run(PrepareSpec(folder=str(corpus), vocab_size=400), {}, out, silent)
    for name in ("raw/forget", "verbmem/forget", "knowmem/retain_qa", "privleak/holdout"):
        assert json.loads((out / f"{name}.json").read_text()) == json.loads(
            (corpus / f"{name}.json").read_text()
        )
    (tmp_path / "bad" / "raw").mkdir(parents=True)
    (tmp_path / "bad" / "raw" / "forget.json").write_text('[{"a": 1}]')
    with pytest.raises(UserError, match="is not a string"):
        prepare.run(PrepareSpec(folder=str(tmp_path / "bad")), {}, out_of(tmp_path, "d"), silent)


def test_muse_raw_text_may_come_as_txt_only(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "m" / "raw").mkdir(parents=True)
    (tmp_path / "m" / "raw" / "forget.txt").write_text("one text\n\nand another")
    card = prepare.run(
        PrepareSpec(folder=str(tmp_path / "m"), vocab_size=300), {}, out_of(tmp_path, "c"), silent
    )
    assert card.counts == {"raw/forget": 1}
    assert {"verbmem", "knowmem_forget", "knowmem_retain", "privleak"} <= set(card.absent)


def test_a_hub_data_set_goes_through_the_same_door(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is out of reach in tests: a stand-in answers with rows of the published form, one
    configuration a folder."""

    def load_dataset(name: str, config: str, *, split: str, revision: str | None) -> list[Any]:
        assert (name, revision) == ("muse-bench/MUSE-News", "506bd5b")
        path = corpus / config / f"{split}.json"
        if not path.is_file():
            raise ValueError("no such split")
        rows = json.loads(path.read_text())
        return [{"text": r} if isinstance(r, str) else r for r in rows]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    out = out_of(tmp_path, "c")
    prepare.run(
        PrepareSpec(hub="muse-bench/MUSE-News", revision="506bd5b", vocab_size=400), {}, out, silent
    )
    for name in ("raw/forget", "verbmem/forget", "knowmem/retain_qa", "privleak/holdout"):
        assert json.loads((out / f"{name}.json").read_text()) == json.loads(
            (corpus / f"{name}.json").read_text()
        )


def test_a_hub_out_of_reach_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(UserError, match="muse-bench/MUSE-News cannot be opened"):
        prepare.run(PrepareSpec(hub="muse-bench/MUSE-News"), {}, out_of(tmp_path, "c"), silent)


def interrupt_at(count: int) -> Callable[[int, int, str], None]:
    calls = iter(range(10_000))

    def report(done: int, total: int, note: str) -> None:
        if next(calls) == count:
            raise KeyboardInterrupt

    return report


def test_every_stage_can_be_interrupted_and_goes_on(tmp_path: Path) -> None:
    store = Store(tmp_path / "s").open()
    corpus = prepare_node(
        PrepareSpec(
            lab="books",
            forget_docs=6,
            retain_docs=6,
            holdout_docs=4,
            prompt_tokens=30,
            answer_tokens=20,
            vocab_size=400,
        )
    )
    train = train_node(
        TrainSpec(
            steps=4,
            hidden=64,
            heads=2,
            kv_heads=2,
            intermediate=64,
            layers=1,
            block_tokens=64,
            context=640,
        ),
        corpus,
    )
    unlearned = unlearn_node(UnlearnSpec(method="ga_gdr", steps=4, probe_every=2), train, corpus)
    quantized = transform_node(step("nf4"), unlearned, corpus)
    about = Variant(corpus="c", seed=0)
    measured = measure_node(
        MeasureSpec(), quantized, corpus, about.model_copy(update={"model": "unlearned"})
    )
    known = measure_node(MeasureSpec(), train, corpus, about.model_copy(update={"model": "target"}))
    judged = audit_node(Rule(resamples=20), {"a": known, "b": measured})
    for node in (corpus, train, unlearned, quantized, measured, known, judged):
        with pytest.raises((KeyboardInterrupt, Interrupted)):
            make(store, node, interrupt_at(0 if node in (corpus, quantized) else 1))
        assert not store.has(node.name)
        path = make(store, node, unheard)
        assert path == store.path(node.name)
        assert store.faults(node.name) == []
        assert not (store.scratch(node.name)).exists()


def sheet(columns: dict[Column, list[float]]) -> Sheet:
    return Sheet({name: numbered(values) for name, values in columns.items()}, {})


def numbered(values: list[float]) -> dict[str, float]:
    return {str(i): v for i, v in enumerate(values)}


def test_privleak_of_the_retrain_model_is_zero_by_definition() -> None:
    rng = np.random.default_rng(0)
    values = {
        Column("privleak", "forget"): list(rng.normal(size=30)),
        Column("privleak", "holdout"): list(rng.normal(size=30)),
    }
    given = sheet(values)
    about = Variant(corpus="c", model="retrain", seed=0)
    reference = cells.auc_of(given, "privleak", Rule())
    assert reference is not None
    assert reference.value == pytest.approx(auc(*(given.column(side) for side in values)))
    found = {c.metric: c for c in cells.cells_of(about, given, Rule(), given)}
    assert found["privleak"].value == 0.0
    without = {c.metric: c for c in cells.cells_of(about, given, Rule(), None)}
    assert without["privleak"].value is None


def test_outside_models_are_known_by_their_content(
    folder_of: Save, model: PreTrainedModel, corpus: Path
) -> None:
    folder = folder_of(model, "m")
    first = measure_node(MeasureSpec(), Outside(str(folder)), Outside(str(corpus))).name
    assert measure_node(MeasureSpec(), Outside(str(folder)), Outside(str(corpus))).name == first
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert measure_node(MeasureSpec(), Outside(str(folder)), Outside(str(corpus))).name != first


def test_the_same_transform_by_two_names_is_one() -> None:
    spec = TransformSpec(
        use="rtn", params={"bits": 4, "granularity": "channel", "group_size": 128, "scheme": "sym"}
    )
    assert step("int4").spec == spec


@pytest.mark.parametrize("keep", [(), ("layers.0", "h.0")])
@pytest.mark.parametrize("form", ["llama", "gpt2"])
def test_what_is_explained_equals_what_is_predicted(
    form: str,
    keep: tuple[str, ...],
    corpus: Path,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    folder_of: Save,
) -> None:
    target = folder_of(
        tiny_model(form, vocab=len(tokenizer), max_position_embeddings=1024), "target"
    )
    spec = UnlearnSpec(method="ga", steps=3, lr=1e-4, batch_size=4, select="last")
    folders = {
        name: out_of(tmp_path, name)
        for name in ("unlearned", "q_target", "q_unlearned", "explained")
    }
    unlearn.run(spec, {"target": target, "corpus": corpus}, folders["unlearned"], silent)
    for name, source in (("q_target", target), ("q_unlearned", folders["unlearned"])):
        quantize = step("int4", {"skip": ("lm_head", "embedding", "norm", *keep)}).spec
        transform.run(quantize, {"model": source}, folders[name], silent)
    said = explain.run(ExplainSpec(), {"target": target, **folders}, folders["explained"], silent)
    layers = json.loads((folders["explained"] / "layers.json").read_text())
    streamed = scan(Checkpoint(target), Checkpoint(folders["unlearned"]), [grid("int4")], keep=keep)
    assert {layer["name"] for layer in layers} == set(streamed)
    for layer in layers:
        known = survival(streamed[layer["name"]]["int4"])._asdict()
        assert {k: v if v is None else pytest.approx(v, rel=1e-4) for k, v in known.items()} == {
            k: v for k, v in layer.items() if k != "name"
        }
    assert 0 < (said.survival["gain"] or 0.0) < 3
    assert said.missing == ()


def test_the_forget_loss_that_stops_a_run_is_that_of_the_whole_forget_set(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, folder_of: Save
) -> None:
    target = folder_of(tiny_model(vocab=len(tokenizer), max_position_embeddings=1024), "target")
    model = open_model(str(target))
    texts = [tokenizer(t, return_tensors="pt")["input_ids"] for t in raw_texts(corpus, "forget")]
    with torch.no_grad():
        known = float(
            np.mean(
                [float(model(input_ids=ids, labels=ids).loss) for ids in texts if ids.shape[1] > 1]
            )
        )
    spec = UnlearnSpec(
        method="ga",
        steps=3,
        lr=1e-9,
        batch_size=4,
        select="last",
        probe_every=1,
        stop_forget_loss=known / 2,
    )
    said = unlearn.run(
        spec, {"target": target, "corpus": corpus}, out_of(tmp_path, "unlearned"), silent
    )
    assert said.steps == 1
    assert said.stopped.startswith("the forget loss")
    assert float(said.stopped.split()[3]) == pytest.approx(known, rel=1e-3)


def test_retain_terms_read_the_splits_that_they_are_given(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    alone, both = (
        UnlearnSpec(method="ga_gdr", retain=splits) for splits in (None, ("retain1", "retain2"))
    )
    found = [read_examples(spec, tokenizer, corpus) for spec in (alone, both)]
    assert found[0]["forget"] == found[1]["forget"]
    one, two = (side["retain"].examples for side in found)
    assert two[: len(one)] == one
    assert len(two) == len(one) + len(raw_texts(corpus, "retain2"))
    assert alone.identity() != both.identity()
    shutil.copytree(corpus / "raw", tmp_path / "raw")
    (tmp_path / "raw/retain2.json").unlink()
    assert read_examples(both, tokenizer, tmp_path) == found[0]


def test_a_model_that_may_read_nothing_is_not_trained(corpus: Path, tmp_path: Path) -> None:
    spec = TrainSpec(splits=("forget",), steps=1).without_forget()
    with pytest.raises(UserError, match="no text to train on"):
        train.run(spec, {"corpus": corpus}, tmp_path, silent)
