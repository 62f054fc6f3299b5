"""What moves, and nothing else: named in one field, kept in checkpoints, refused in words."""

import copy
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remnant.errors import Interrupted, UserError
from remnant.flow.plan import plan
from remnant.flow.sweepfile import expanded, read_sweep
from remnant.functional.patterns import chosen, summed_up
from remnant.model.load import matrices
from remnant.parsing import parse
from remnant.records import LayersResult, OptimSpec, TrainSpec, UnlearnSpec
from remnant.stages import unlearn
from remnant.testing import tiny_model
from remnant.trainable.attach import attach
from remnant.training.loop import fit
from tests.conftest import hearing, silent


def loss_of(model: PreTrainedModel) -> Any:
    ids = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))

    def loss_at(micro: int) -> tuple[Tensor, dict[str, float]]:
        loss = model(input_ids=ids, labels=ids).loss
        return loss, {"loss": loss.item()}

    return loss_at


def trained(train: Any, folder: Path, steps: int = 3) -> tuple[set[str], PreTrainedModel]:
    """Names of the weights that differ after some steps with weight decay, and the model."""
    model = tiny_model(num_hidden_layers=4)
    before = copy.deepcopy(model.state_dict())
    spec = OptimSpec.model_validate(
        {"train": train, "steps": steps, "lr": 1e-2, "weight_decay": 0.1}
    )
    fit(attach(model, spec, lambda: [loss_of(model)(0)[0]]), spec, loss_of(model), folder, silent)
    return {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}, model


@pytest.mark.parametrize(
    ("patterns", "slow"),
    [
        (["layers.1-2.mlp.down_proj"], ["*layers.1.mlp.down_proj*", "*layers.2.mlp.down_proj*"]),
        (["*norm", "embed_tokens"], ["*norm.weight", "*embed_tokens*"]),
        (["layers.0", "q_proj"], ["*layers.0.*", "*q_proj*"]),
        (["self_attn.[qk]_proj"], ["*self_attn.q_proj*", "*self_attn.k_proj*"]),
    ],
)
def test_layers_that_a_pattern_names_move_and_no_others(
    patterns: list[str], slow: list[str], tmp_path: Path
) -> None:
    moved, model = trained(patterns, tmp_path)
    names = [n for n, _ in model.named_parameters()]
    expected = {n for p in slow for n in names if fnmatch(n, p)}
    assert moved == expected != set()


def test_words_name_all_weights_or_the_matrices_that_a_quantizer_touches(tmp_path: Path) -> None:
    for word in ("all", "matrices"):
        (tmp_path / word).mkdir()
        moved, model = trained(word, tmp_path / word)
        every = {n for n, _ in model.named_parameters()}
        assert moved == (every if word == "all" else {m.name for m in matrices(model)})


@pytest.mark.parametrize(
    "train", [["layers.1.mlp"], {"sure": {"percentile": 80}}, "matrices", "all"]
)
def test_a_checkpoint_holds_what_moves_and_an_interrupted_run_ends_with_the_same_bits(
    train: Any, tmp_path: Path
) -> None:
    def run(name: str, cut: int | None) -> PreTrainedModel:
        (tmp_path / name).mkdir(exist_ok=True)
        model = tiny_model(num_hidden_layers=2)
        spec = OptimSpec.model_validate({"train": train, "steps": 6, "lr": 1e-2})

        def cut_off(done: int, total: int, note: str) -> None:
            if done == cut:
                raise KeyboardInterrupt

        moving = attach(model, spec, lambda: [loss_of(model)(0)[0]])
        wants = {n for n, p in model.named_parameters() if p.requires_grad}
        try:
            fit(moving, spec, loss_of(model), tmp_path / name, hearing(cut_off))
        finally:
            kept = torch.load(tmp_path / name / "resume.pt", weights_only=True)["weights"]
            assert set(kept) == wants
        return moving.settle()

    whole = run("whole", None)
    with pytest.raises(Interrupted):
        run("cut", 4)
    resumed = run("cut", None)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_patterns_that_fit_nothing_name_what_is_near() -> None:
    names = [n for n, _ in tiny_model(num_hidden_layers=3).named_parameters()]
    for pattern, says in (
        ("layers.0.mlp.down_pro", "fits no weight .*layers.0-2.mlp.down_proj"),
        ("layers.1-7.mlp.down_proj", "reaches beyond the model: 'layers.7.mlp.down_proj' fits no"),
        ("layers.8-9", "fits no weight"),
    ):
        with pytest.raises(UserError, match=says):
            chosen([pattern], names)
    assert "layers.0-2.self_attn.q_proj" in summed_up(names)
    assert "norm" in summed_up(names)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"train_only": "matrices"}, 'train_only: write train = "matrices"'),
        ({"sure": {"percentile": 90}}, "sure: write train = {sure = {...}}"),
        ({"train": "matrixes"}, "train: 'matrixes' is neither 'all' nor 'matrices'"),
        ({"train": {"sur": {}}}, "Did you mean sure"),
        ({"train": {"sure": {"percentil": 1}}}, "train.sure.percentil: .*Did you mean percentile"),
        ({"train": {"sure": {"percentile": 101}}}, "train.sure.percentile: input should be less"),
        ({"train": {}}, "train: write one of"),
        ({"train": []}, "train: the list of layers is empty"),
        ({"train": 7}, "train: write .all., .matrices., a list of layers or a table"),
        ({"train": ["layers.7-5"]}, "train.0: the range 7-5 in 'layers.7-5' runs backwards"),
        ({"train": ["layers..mlp"]}, "train.0: 'layers..mlp' has an empty part"),
    ],
)
def test_faults_of_what_trains_are_one_sentence(data: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        parse(UnlearnSpec, {"method": "ga"} | data, "unlearn")
    assert "faults" not in str(caught.value)
    (run,) = expanded({"method": "ga", "grid": {"train.sure.percentile": 50}})
    assert run["train"] == {"sure": {"percentile": 50}}


def test_a_sweep_says_before_it_runs_which_layers_its_target_lacks(
    folder_of: Any, model: PreTrainedModel, tmp_path: Path
) -> None:
    sweep = tmp_path / "s.toml"
    sweep.write_text(
        f'name = "s"\ntarget = "{folder_of(model, "m")}"\n[[corpus]]\nlab = "news"\n'
        '[[unlearn]]\nmethod = "ga"\ntrain = ["layers.9"]\n'
        '[[unlearn]]\nmethod = "npo"\ntrain = ["mlp.up_prof"]\n'
    )
    with pytest.raises(UserError, match="2 faults") as caught:
        plan(read_sweep(sweep))
    assert "'layers.9' fits no weight" in str(caught.value)
    assert "'mlp.up_prof' fits no weight of the model. Did you mean" in str(caught.value)


def test_training_has_no_forget_loss_to_choose_by() -> None:
    with pytest.raises(UserError, match="SURE chooses by the forget loss"):
        parse(TrainSpec, {"train": {"sure": {}}}, "train")


def test_few_layers_that_move_are_not_taken_for_steps_lost_in_rounding(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, folder_of: Any, tmp_path: Path
) -> None:
    model = tiny_model(vocab=len(tokenizer), max_position_embeddings=1024, num_hidden_layers=4)
    target, out = folder_of(model, "target"), tmp_path / "out"
    out.mkdir()
    spec = UnlearnSpec(
        method="ga", steps=2, lr=1e-3, train=("layers.3.mlp.down_proj",), select="last"
    )
    said = unlearn.run(spec, {"target": target, "corpus": corpus}, out, silent)
    assert said.share_changed > 0
    assert "Nothing was unlearned" not in said.ended
    assert said.moving == LayersResult(weights=1)
