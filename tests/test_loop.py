"""The loop: regimes of weights, interruption and resumption, cached references, losses that stop
being finite."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.corpus.prepared import raw_texts
from remnant.errors import Interrupted, UserError
from remnant.functional.losses import klr
from remnant.functional.view import View
from remnant.functional.weights import stochastic_round
from remnant.model.data import batch_order, encode, pack
from remnant.model.examples import Pool, batch_of, pool_of
from remnant.model.load import in_dtype
from remnant.model.reference import build
from remnant.model.terms import Values, make_loss, make_streams, terms_of
from remnant.readings import LOSS_READINGS
from remnant.records import OptimSpec, UnlearnSpec
from remnant.testing import tiny_model
from remnant.trainable.layers import everything
from remnant.training.loop import fit
from remnant.training.stepper import Stepper, in_regime, storage_dtype
from tests.conftest import hearing, silent

Loss = Callable[[int], tuple[Tensor, dict[str, float]]]
FORMS = ["llama", "qwen3", "gemma3_text", "gemma2", "mistral", "gpt2", "gpt_neox", "mixtral"]


def examples(corpus: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, Pool]:
    return {
        "forget": pool_of(encode(tokenizer, raw_texts(corpus, "forget"), 64)),
        "retain": pool_of(encode(tokenizer, raw_texts(corpus, "retain1"), 64)),
    }


def loss_for(
    model: PreTrainedModel, spec: UnlearnSpec, corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> Loss:
    terms, pad = terms_of(spec), tokenizer.pad_token_id
    streams = make_streams(model, terms, examples(corpus, tokenizer), pad, spec.seed)
    return make_loss(model, terms, streams, spec.batch_size, pad)


def weights_of(model: PreTrainedModel) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize(
    ("regime", "moments"),
    [
        ("fp32", None),
        ("bf16", None),
        ("bf16-stochastic-rounding", None),
        ("bf16-stochastic-rounding", "bf16"),
        ("fp32", "8bit"),
    ],
)
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(
    regime: Any, moments: Any, corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    if moments == "8bit":
        pytest.importorskip("bitsandbytes")
    spec = UnlearnSpec(
        method="npo_klr",
        lr=1e-3,
        steps=6,
        batch_size=3,
        weights=regime,
        moments=moments,
        accumulate=2,
        clip=1.0,
        weight_decay=0.01,
    )

    def run(folder: Path, cut: int | None) -> list[Tensor]:
        folder.mkdir(exist_ok=True)
        model = in_dtype(tiny_model(vocab=len(tokenizer)), storage_dtype(regime))
        loss_at = loss_for(model, spec, corpus, tokenizer)

        def cut_off(done: int, total: int, note: str) -> None:
            if done == cut:
                raise KeyboardInterrupt

        fit(everything(model), spec, loss_at, folder, hearing(cut_off))
        return weights_of(model)

    whole = run(tmp_path / "whole", None)
    with pytest.raises(Interrupted, match="step 3 of 6"):
        run(tmp_path / "cut", 3)
    resumed = run(tmp_path / "cut", None)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    logs = [(tmp_path / name / "steps.jsonl").read_text() for name in ("whole", "cut")]
    assert logs[0] == logs[1]
    assert [json.loads(line)["step"] for line in logs[0].splitlines()] == [1, 2, 3, 4, 5, 6]
    seen: list[int] = []
    again = in_dtype(tiny_model(vocab=len(tokenizer)), storage_dtype(regime))
    fit(
        everything(again),
        spec,
        loss_for(again, spec, corpus, tokenizer),
        tmp_path / "cut",
        hearing(lambda done, total, note: seen.append(done)),
    )
    assert seen == []  # what was not sealed yet is there without a step
    assert all(torch.equal(a, b) for a, b in zip(whole, weights_of(again), strict=True))


@pytest.mark.parametrize("where", ["in a step", "in what follows a step", "in the last one"])
def test_ctrl_c_in_the_middle_of_a_step_cuts_nothing_in_two(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pressed: list[int] = []
    own = Stepper._step

    def press(now: bool) -> None:
        if now and not pressed:
            pressed.append(1)
            os.kill(os.getpid(), signal.SIGINT)

    def run(folder: Path, at: str) -> tuple[list[Tensor], list[str], dict[str, Any]]:
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        model = tiny_model()
        steps: list[int] = []

        def loss_at(micro: int) -> tuple[Tensor, dict[str, float]]:
            steps.append(micro)
            loss = torch.stack([p.float().square().mean() for p in model.parameters()]).sum()
            return loss, {"loss": loss.item()}

        def stepped(self: Stepper, *given: Any) -> Tensor:
            found = own(self, *given)
            # Behind the first weight of the third step.
            press(at == "in a step" and steps[-1] == 2)
            return found

        def after(step: int, parts: dict[str, float], memory: dict[str, Any]) -> bool:
            memory["begun"] = step
            press(step == {"in what follows a step": 2, "in the last one": 4}.get(at))
            memory["seen"] = [*memory.get("seen", []), parts["loss"]]
            return False

        monkeypatch.setattr(Stepper, "_step", stepped)
        _, memory = fit(everything(model), OptimSpec(steps=4), loss_at, folder, silent, after)
        return weights_of(model), (folder / "steps.jsonl").read_text().splitlines(), memory

    whole, log, memory = run(tmp_path / "whole", "")
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", where)
    found, other, again = run(tmp_path / "cut", where)
    assert all(torch.equal(a, b) for a, b in zip(whole, found, strict=True))
    assert (log, memory) == (other, again)
    assert len(memory["seen"]) == 4


@pytest.mark.parametrize(
    "what",
    ["other weights", "other settings", "a flipped bit", "cut", "empty", "another log", "older"],
)
def test_steps_that_are_not_this_runs_or_damaged_are_not_believed(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(
        steps: int = 3, seed: int = 0, cut: int | None = None
    ) -> tuple[list[Tensor], list[int]]:
        torch.manual_seed(seed)
        model, seen = tiny_model(), []
        if seed:
            next(model.parameters()).data.add_(1.0)

        def loss_at(micro: int) -> tuple[Tensor, dict[str, float]]:
            loss = torch.stack([p.float().square().mean() for p in model.parameters()]).sum()
            return loss, {"loss": loss.item()}

        def report(done: int, total: int, note: str) -> None:
            seen.append(done)
            if done == cut:
                raise KeyboardInterrupt

        fit(everything(model), OptimSpec(steps=steps, lr=1e-3), loss_at, tmp_path, hearing(report))
        return weights_of(model), seen

    expected, _ = run()
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    with pytest.raises(Interrupted):
        run(cut=2)
    resume, log = tmp_path / "resume.pt", tmp_path / "steps.jsonl"
    data = bytearray(resume.read_bytes())
    if what == "a flipped bit":
        data[len(data) // 2] ^= 1
    resume.write_bytes(
        {"cut": bytes(data[:-9]), "empty": b"", "older": bytes(data[:-64])}.get(what, bytes(data))
    )
    if what == "another log":
        log.write_text(log.read_text().replace("2", "3"))
    found, seen = run(steps=4 if what == "other settings" else 3, seed=int(what == "other weights"))
    assert seen[0] == 1
    if what not in ("other settings", "other weights"):
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        assert "damaged" in capsys.readouterr().err


def test_accumulated_batches_equal_one_large_batch(tmp_path: Path) -> None:
    data = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))

    def run(accumulate: int) -> Tensor:
        model = tiny_model()
        weight = next(model.parameters())
        size = 8 // accumulate

        def loss_at(micro: int) -> tuple[Tensor, dict[str, float]]:
            rows = data[(micro * size) % 8 :][:size]
            loss = (weight[:size, :4] * 0 + weight[0, :4] * rows).sum(-1).mean()
            return loss, {"loss": loss.item()}

        folder = tmp_path / str(accumulate)
        folder.mkdir()
        fit(
            everything(model),
            OptimSpec(steps=2, lr=1e-2, accumulate=accumulate),
            loss_at,
            folder,
            silent,
        )
        return weight.detach()

    assert torch.allclose(run(1), run(4), atol=1e-6)


def test_small_updates_survive_in_float32_and_are_lost_in_bfloat16(tmp_path: Path) -> None:
    def moved(regime: Any) -> float:
        model = in_dtype(tiny_model(), storage_dtype(regime))
        before = weights_of(model)

        def loss_at(micro: int) -> tuple[Tensor, dict[str, float]]:
            loss = torch.stack([p.float().sum() for p in model.parameters()]).sum()
            return loss, {"loss": loss.item()}

        folder = tmp_path / regime
        folder.mkdir()
        fit(everything(model), OptimSpec(steps=1, lr=1e-5, weights=regime), loss_at, folder, silent)
        changed = sum(int((a != b).sum()) for a, b in zip(before, model.parameters(), strict=True))
        return float(changed / sum(p.numel() for p in model.parameters()))

    assert moved("fp32") > 0.99
    assert moved("bf16") < 0.5
    assert 0.0 < moved("bf16-stochastic-rounding") < 0.9


def test_stochastic_rounding_is_unbiased_and_keeps_what_is_exact() -> None:
    value = torch.full((200_000,), 1.0 + 2**-9)  # a quarter of the way from 1 to the next bfloat16
    rounded = stochastic_round(value, torch.Generator().manual_seed(0)).float()
    assert set(rounded.unique().tolist()) == {1.0, 1.0 + 2**-7}
    assert rounded.mean().item() == pytest.approx(1.0 + 2**-9, abs=5e-5)
    exact = torch.tensor([1.5, -3.0, 0.0, float("inf"), float("-inf")])
    assert stochastic_round(exact).float().tolist() == exact.tolist()
    assert stochastic_round(torch.tensor([float("nan")])).isnan().all()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_weights(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    weight = next(model.parameters())

    def loss_at(micro: int) -> tuple[Tensor, dict[str, float]]:
        loss = weight.sum() * (float("nan") if micro == 2 else 1.0)
        return loss, {"loss": loss.item()}

    with pytest.raises(UserError, match=r"not finite at step 3.*after step 2 are kept"):
        fit(everything(model), OptimSpec(steps=5, lr=1e-3), loss_at, tmp_path, silent)
    kept = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert kept["step"] == 2
    assert all(bool(v.isfinite().all()) for v in kept["weights"].values())


@pytest.mark.parametrize("form", FORMS)
def test_the_cached_reference_gives_the_loss_of_a_live_one(
    form: str, corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = tiny_model(form, vocab=len(tokenizer))
    spec = UnlearnSpec(method="npo_klr", batch_size=4)
    loss_at = loss_for(model, spec, corpus, tokenizer)
    live = tiny_model(form, vocab=len(tokenizer))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    for micro in range(3):
        parts, views = loss_at(micro)[1], {}
        for offset, side in enumerate(("forget", "retain")):
            given = examples(corpus, tokenizer)[side].examples
            batch = batch_of(
                [given[i] for i in batch_order(len(given), 4, micro, offset)],
                tokenizer.pad_token_id,
                torch.device("cpu"),
            )
            for who, net in (("", model), ("ref_", live)):
                with torch.no_grad():
                    views[who + side] = View(
                        net(input_ids=batch.ids, attention_mask=batch.mask).logits, batch.labels
                    )
        for term in terms_of(spec):
            values: Values = {LOSS_READINGS[name]: view for name, view in views.items()}
            values[LOSS_READINGS["ref_forget_logp"]] = views["ref_forget"].seq_logp()
            expected = term.load()(values).mean().item()
            assert parts[term.label] == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_a_head_that_is_not_linear_is_cached_as_logits(
    corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = tiny_model("cohere", vocab=len(tokenizer))  # scales its logits
    given = examples(corpus, tokenizer)["retain"].examples[:3]
    view = LOSS_READINGS["ref_retain"]
    reference = build(model, given, tokenizer.pad_token_id, [view])
    assert reference.head is None
    batch = batch_of(given, tokenizer.pad_token_id, torch.device("cpu"))
    own = View(model(input_ids=batch.ids, attention_mask=batch.mask).logits, batch.labels)
    rebuilt = reference.read(view, [0, 1, 2], batch)
    assert isinstance(rebuilt, View)
    assert torch.allclose(klr(own, rebuilt), torch.zeros(3), atol=1e-5)


def test_a_users_loss_on_hidden_states_trains(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def misdirect(forget_hidden, ref_forget_hidden, *, layer: int = 1, scale: float = 2.0):\n"
        "    gap = forget_hidden.counted() - scale * ref_forget_hidden.counted()\n"
        "    return forget_hidden.mean(gap.square().mean(-1))\n"
    )
    spec = UnlearnSpec.model_validate(
        {
            "terms": [{"use": f"{mine}:misdirect", "scale": 3.0}, {"use": "klr", "weight": 0.5}],
            "steps": 4,
        }
    )
    model = tiny_model(vocab=len(tokenizer))
    loss_at = loss_for(model, spec, corpus, tokenizer)
    before = loss_at(0)[1]["misdirect"]
    fit(everything(model), spec.model_copy(update={"lr": 1e-3}), loss_at, tmp_path, silent)
    assert loss_at(0)[1]["misdirect"] < before


def test_every_epoch_shows_every_example_once_in_a_new_order() -> None:
    shown = [i for step in range(6) for i in batch_order(9, 3, step, seed=4)]
    assert sorted(shown[:9]) == sorted(shown[9:]) == list(range(9))
    assert shown[:9] != shown[9:]
    assert batch_order(9, 3, 4, seed=4) == shown[12:15]


def test_blocks_hold_every_token_once_and_start_with_a_document(
    corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = raw_texts(corpus, "retain1")
    blocks = pack(tokenizer, texts, 96, seed=0)
    assert max(len(b) for b in blocks) <= 96
    assert all(b[0] == tokenizer.bos_token_id for b in blocks)
    joined = "\n\n".join(str(tokenizer.decode(b, skip_special_tokens=True)) for b in blocks)
    assert sum(joined.count(t) for t in texts if len(tokenizer(t)["input_ids"]) < 90) >= sum(
        len(tokenizer(t)["input_ids"]) < 90 for t in texts
    )


def test_bfloat16_weights_may_compute_in_float32(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    spec = UnlearnSpec(
        method="ga_gdr",
        lr=3e-4,
        steps=5,
        batch_size=2,
        weights="bf16",
        compute="fp32",
        count_lost=True,
    )
    model = in_regime(tiny_model(vocab=len(tokenizer)), spec)
    before = weights_of(model)
    fit(everything(model), spec, loss_for(model, spec, corpus, tokenizer), tmp_path, silent)
    after = weights_of(model)
    assert all(w.dtype == torch.float32 and torch.equal(w, w.bfloat16().float()) for w in after)
    moved = [a != b for a, b in zip(after, before, strict=True)]
    # An update of lr is lost where half a unit in the last place is larger: |w| above lr * 2^9.
    large = [b.abs() > spec.lr * 2**10 for b in before]
    small = [(b.abs() < spec.lr * 2**7) & (b != 0) for b in before]
    assert sum(int((m & far).sum()) for m, far in zip(moved, large, strict=True)) == 0
    assert sum(int((m & near).sum()) for m, near in zip(moved, small, strict=True)) > 0.5 * sum(
        int(n.sum()) for n in small
    )
    lost = [
        json.loads(line)["lost"] for line in (tmp_path / "steps.jsonl").read_text().splitlines()
    ]
    assert len(lost) == 5
    assert all(0 < share < 1 for share in lost)


def test_no_update_is_lost_in_float32(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    spec = UnlearnSpec(method="ga_gdr", lr=1e-3, steps=2, batch_size=2, count_lost=True)
    model = tiny_model(vocab=len(tokenizer))
    fit(everything(model), spec, loss_for(model, spec, corpus, tokenizer), tmp_path, silent)
    assert all(
        json.loads(line)["lost"] < 0.01
        for line in (tmp_path / "steps.jsonl").read_text().splitlines()
    )
