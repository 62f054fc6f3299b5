"""Several processes do as one does: the same losses, weights and decisions, and any number of them
goes on from what any other left."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from remnant import ranks
from remnant.context import Context, ModelCache
from remnant.errors import UserError
from remnant.functional.weights import at_least_percentile, stochastic_round
from remnant.model.blocks import blocks
from remnant.records import OptimSpec, TrainSpec, UnlearnSpec
from remnant.stages import train, unlearn
from remnant.testing import tiny_model
from remnant.trainable.layers import everything
from remnant.training import checkpoints
from remnant.training.loop import fit
from tests.conftest import silent

Save = Callable[[PreTrainedModel, str], Path]
# Seconds; a rank that waits for another for good is a failure.
MOST_SECONDS = 240
# When a checkpoint is due: behind every step, and as it is by default.
OFTEN = ((lambda size, model: -1.0), 1e9)
SELDOM = (checkpoints.apart, checkpoints.SHARE)
COMMON: dict[str, Any] = {
    "steps": 3, "batch_size": 3, "lr": 1e-3, "max_tokens": 48, "select": "last",
    "stop_forget": 0.0, "stop_utility": 0.0, "probe_every": 100,
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "ga_gdr": {"method": "ga_gdr", "clip": 0.5, "accumulate": 2},
    "npo_klr": {"method": "npo_klr", "robust": 1.0},
    "sure": {"method": "npo_gdr", "train": {"sure": {"unit": "module", "percentile": 60}}},
    "sure-row": {"method": "ga_gdr", "train": {"sure": {"unit": "row", "renew_every": 2}}},
    "sure-weight": {"method": "ga_gdr", "train": {"sure": {"unit": "weight", "scaled": True}}},
    "lora": {"method": "npo_klr", "train": {"lora": {"rank": 4}}, "clip": 0.5},
    "rounded": {
        "method": "ga_gdr", "weights": "bf16-stochastic-rounding", "compute": "fp32",
        "count_lost": True, "dual": {},
    },
    "moments": {"method": "ga_gdr", "moments": "bf16"},
}  # fmt: skip
# NPO reads the difference of two log-likelihoods of some 280 nats each, of which one place more or
# less in float32 is 3e-5, or 2.2e-6 of a loss of 13.9. Sums in float64 were 1.7e-7 apart, but would
# be other numbers in one process, too. A divergence near 0 is one of numbers of some 6 nats.
CLOSE = {"npo": 5e-6}
DEFAULT = ("ga_gdr", "npo_klr", "sure", "lora")


class World(NamedTuple):
    """Some ranks that hold some copies of a model."""

    size: int
    copies: int = 1

    def __str__(self) -> str:
        return f"{self.copies}x{self.size // self.copies}"


TWO_BY_TWO = World(4, copies=2)


def begin(rank: int, world: World, port: int) -> None:
    """Be one of some ranks."""
    named = {"RANK": rank, "WORLD_SIZE": world.size, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in named.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", ranks.REPLICAS: str(world.copies)}
    torch.set_num_threads(1)
    ranks.join("cpu")


def as_rank(rank: int, world: World, port: int, job: Callable[..., None], given: Any) -> None:
    """Do a job as one of some ranks."""
    begin(rank, world, port)
    job(*given)
    torch.distributed.destroy_process_group()


def on_ranks(count: int | World, job: Callable[..., None], *given: Any) -> list[int | None]:
    """Do a job in so many new processes; their exit codes."""
    world = World(count) if isinstance(count, int) else count
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_ranks"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=as_rank, args=(rank, world, port, job, given))
        for rank in range(world.size)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + MOST_SECONDS
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        process.kill()
    return [process.exitcode for process in processes]


def unlearned(
    settings: dict[str, Any], inputs: dict[str, Path], out: Path, cut: int | None = None
) -> None:
    """Run the stage, the first rank in the folder; be cut off behind a step."""
    spec = UnlearnSpec.model_validate(COMMON | settings)

    def progress(done: int, total: int, note: str) -> None:
        if cut is not None and done > cut:
            raise SystemExit(0)

    checkpoints.apart, checkpoints.SHARE = OFTEN if cut is not None else SELDOM
    with tempfile.TemporaryDirectory() as other:
        folder = out if ranks.first() else Path(other)
        folder.mkdir(exist_ok=True)
        try:
            result = unlearn.run(spec, inputs, folder, Context(progress, ModelCache()))
        except ranks.Given:
            return
    if ranks.first():
        (out / "result.json").write_text(result.model_dump_json())


def numbers(folder: Path) -> tuple[list[dict[str, float]], dict[str, Tensor], dict[str, Any]]:
    """The log, the weights and the result of a run."""
    lines = (folder / "steps.jsonl").read_text().splitlines()
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return [json.loads(line) for line in lines], load_file(folder / "model.safetensors"), found


def chosen(result: dict[str, Any]) -> list[Any]:
    """How many steps a run took, how it stopped, and what it chose to move."""
    moving = dict(result["moving"] or {})
    named = [name for name, _ in moving.pop("most_salient", [])]
    return [result["steps"], result["stopped"], moving, named]


def check_same(one: Path, other: Path, weights: float = 1e-5) -> None:
    """Losses within 1e-6 of each other, weights nearly, all counts and choices the same."""
    log, tensors, result = numbers(one)
    own_log, own_tensors, own_result = numbers(other)
    assert len(log) == len(own_log)
    for line, own in zip(log, own_log, strict=True):
        for name, loss in line.items():
            assert own[name] == pytest.approx(loss, rel=CLOSE.get(name, 1e-6), abs=1e-6)
    assert tensors.keys() == own_tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(own_tensors[name], tensor, rtol=0, atol=weights)
    assert chosen(own_result) == chosen(result)
    config = (other / "config.json").read_text()
    assert config == (one / "config.json").read_text()


@pytest.fixture
def inputs(corpus: Path, model: PreTrainedModel, folder_of: Save) -> dict[str, Path]:
    return {"target": folder_of(model, "target"), "corpus": corpus}


@pytest.mark.parametrize("way", DEFAULT)
def test_two_processes_unlearn_as_one_does(
    way: str, inputs: dict[str, Path], tmp_path: Path
) -> None:
    unlearned(WAYS[way], inputs, tmp_path / "one")
    assert on_ranks(2, unlearned, WAYS[way], inputs, tmp_path / "two") == [0, 0]
    check_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("world", [World(2), World(4), TWO_BY_TWO], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_twenty_steps_of_more_processes_are_those_of_one(
    way: str, world: World, inputs: dict[str, Path], tmp_path: Path
) -> None:
    settings = WAYS[way] | {"steps": 20, "lr": 1e-4}
    unlearned(settings, inputs, tmp_path / "one")
    assert on_ranks(world, unlearned, settings, inputs, tmp_path / "more") == [0] * world.size
    # A number that is rounded to bfloat16 may fall to either side of a tie.
    check_same(tmp_path / "one", tmp_path / "more", 1e-3 if way == "rounded" else 1e-5)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (World(2), World(1)),
        pytest.param(World(2), World(4), marks=pytest.mark.slow),
        pytest.param(World(1), World(2), marks=pytest.mark.slow),
        pytest.param(TWO_BY_TWO, World(1), marks=pytest.mark.slow),
        pytest.param(World(2), TWO_BY_TWO, marks=pytest.mark.slow),
        pytest.param(TWO_BY_TWO, World(4, copies=4), marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "way", ["npo_klr", *(pytest.param(n, marks=pytest.mark.slow) for n in ("lora", "moments"))]
)
def test_another_number_of_processes_goes_on(
    way: str, before: World, after: World, inputs: dict[str, Path], tmp_path: Path
) -> None:
    unlearned(WAYS[way], inputs, tmp_path / "whole")
    cut = tmp_path / "cut"
    assert on_ranks(before, unlearned, WAYS[way], inputs, cut, 1) == [0] * before.size
    left = torch.load(cut / "resume.pt", weights_only=True)
    assert left["step"] == 1
    assert not (cut / "result.json").exists()
    assert on_ranks(after, unlearned, WAYS[way], inputs, cut) == [0] * after.size
    check_same(tmp_path / "whole", cut)


def trained(corpus: Path, out: Path) -> None:
    """Train a model of two blocks."""
    spec = TrainSpec(
        steps=3, batch_size=3, hidden=16, layers=2, heads=2, kv_heads=2, block_tokens=32, context=64
    )
    with tempfile.TemporaryDirectory() as other:
        folder = out if ranks.first() else Path(other)
        folder.mkdir(exist_ok=True)
        try:
            result = train.run(spec, {"corpus": corpus}, folder, silent)
        except ranks.Given:
            return
    if ranks.first():
        (out / "result.json").write_text(json.dumps({"loss": result.loss}))


@pytest.mark.slow
def test_two_processes_train_as_one_does(corpus: Path, tmp_path: Path) -> None:
    trained(corpus, tmp_path / "one")
    assert on_ranks(2, trained, corpus, tmp_path / "two") == [0, 0]
    one, two = (numbers(tmp_path / name) for name in ("one", "two"))
    assert two[2]["loss"] == pytest.approx(one[2]["loss"], rel=1e-6)
    for name, tensor in one[1].items():
        torch.testing.assert_close(two[1][name], tensor, rtol=0, atol=1e-5)


def check_what_is_gathered(folder: Path) -> None:
    """Laws of the functions of `ranks`, on three ranks."""
    rank = torch.distributed.get_rank()
    for rows in (1, 2, 3, 7):
        every = torch.arange(1.0, rows + 1)
        weight = torch.ones(1, requires_grad=True)
        found = ranks.gathered(torch.tensor(ranks.own(every.tolist())) * weight, rows)
        assert torch.equal(found.detach(), every)
        found.square().mean().backward()
        assert weight.grad is not None
        ranks.average([weight.grad])
        torch.testing.assert_close(weight.grad, 2 * every.square().mean()[None])
    scores = torch.rand(31, generator=torch.Generator().manual_seed(0))
    for share in (0, 37.5, 90, 100):
        least = ranks.percentile([scores[rank::3], scores[:0]], share)
        kept = at_least_percentile(scores, share)
        assert torch.equal(scores.double() >= least, kept)
    assert ranks.told(rank) == 0
    assert ranks.totals([1.0, rank]) == [3.0, 3.0]
    shard = torch.arange(2.0 * rank).view(-1, 2)
    (rows_of,) = ranks.rows_of([shard])
    assert rows_of.sizes == (0, 1, 2)
    assert rows_of.here == slice((0, 0, 1)[rank], (0, 1, 3)[rank])
    joined = rows_of.joined(shard)
    assert joined.flatten().tolist() == ([0.0, 1.0, 0.0, 1.0, 2.0, 3.0] if rank == 0 else [])
    model = tiny_model(tie_word_embeddings=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    collect = ranks.spread(model, blocks)
    own = sum(ranks.local(p).numel() for p in model.parameters())
    assert ranks.total(own) == sum(p.numel() for p in before.values())
    assert own < 0.5 * sum(p.numel() for p in before.values())
    (folder / f"{rank}").touch()
    try:
        collect()
    except ranks.Given:
        assert rank
        return
    assert not rank
    assert type(model) is type(tiny_model())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_what_is_gathered_is_what_one_process_has(tmp_path: Path) -> None:
    assert on_ranks(3, check_what_is_gathered, tmp_path) == [0, 0, 0]
    assert {p.name for p in tmp_path.iterdir()} == {"0", "1", "2"}


def check_copies(folder: Path) -> None:
    """Laws of the functions of `ranks`, on four ranks that hold two copies of a model."""
    rank = torch.distributed.get_rank()
    assert (ranks.sharing(), ranks.shard()) == (2, rank % 2)
    assert ranks.in_first_replica() == (rank < 2)
    assert ranks.totals([1.0, rank]) == [2.0, 1.0 if rank < 2 else 5.0]
    assert ranks.anywhere(rank == 3)
    assert not ranks.anywhere(rank == 4)
    assert ranks.own([*"abcdef"]) == [*"abcdef"][rank::4]
    values = torch.arange(10.0).view(5, 2)
    own = values[:3] if rank % 2 == 0 else values[3:]
    (rows,) = ranks.rows_of([own])
    assert rows.here == (slice(0, 3), slice(3, 5))[rank % 2]
    assert rows.joined(own).tolist() == (values.tolist() if rank == 0 else [])
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ranks.spread(model, blocks)
    for name, parameter in model.named_parameters():
        assert torch.equal(ranks.local(parameter), before[name][ranks.span(parameter)])
        assert torch.equal(ranks.whole(parameter.detach()), before[name])
        ranks.fill(parameter, before[name] + 1 if rank == 0 else None)
        assert torch.equal(ranks.local(parameter), before[name][ranks.span(parameter)] + 1)
    (folder / f"{rank}").touch()


@pytest.mark.slow
def test_copies_are_divided_each_among_its_own(tmp_path: Path) -> None:
    assert on_ranks(TWO_BY_TWO, check_copies, tmp_path) == [0] * 4
    assert len([*tmp_path.iterdir()]) == 4


def check_that_disks_fail_together() -> None:
    """A full disk of one rank is told on all."""

    def write() -> None:
        if not ranks.first():
            raise OSError(28, "full")

    ranks.on_all(lambda: None)
    with pytest.raises(OSError, match="full"):
        ranks.on_all(write)


@pytest.mark.slow
def test_a_disk_that_fails_on_one_process_fails_on_all() -> None:
    assert on_ranks(2, check_that_disks_fail_together) == [0, 0]


def check_that_all_stop(folder: Path) -> None:
    """A gradient that is not finite on one rank ends the steps of all."""
    model = tiny_model()

    def loss_at(micro: int) -> tuple[Tensor, dict[str, float]]:
        loss = torch.stack([p.square().mean() for p in model.parameters()]).sum()
        bad = micro == 1 and not ranks.first()
        return loss * (float("inf") if bad else 1.0), {"loss": 1.0}

    own = folder / str(torch.distributed.get_rank())
    own.mkdir()
    with pytest.raises(UserError, match="not finite at step 2"):
        fit(everything(model), OptimSpec(steps=3), loss_at, own, silent)


def test_all_processes_stop_at_the_step_that_is_not_finite_on_one(tmp_path: Path) -> None:
    assert on_ranks(2, check_that_all_stop, tmp_path) == [0, 0]


@pytest.mark.parametrize("shape", [(6,), (6, 3)])
def test_rows_are_rounded_as_within_the_whole(shape: Sequence[int]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    whole = stochastic_round(values, torch.Generator().manual_seed(2))
    for rows in (slice(0, 2), slice(2, 6), slice(6, 6)):
        own = stochastic_round(values[rows], torch.Generator().manual_seed(2), (6, rows))
        assert torch.equal(own, whole[rows])


def start(inputs: dict[str, Path], store: Path, steps: int) -> "subprocess.Popen[str]":
    """The command on two processes."""
    settings = COMMON | {"steps": steps, "probe_every": 1000}
    given = [f"--set={name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-P", "-m", "remnant", "unlearn", str(inputs["target"])]
    data = ["--data", str(inputs["corpus"]), "--method", "ga_gdr", "--store", str(store)]
    return subprocess.Popen(
        [*command, *data, *given, "--devices", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def rank_of(launcher: int, rank: int) -> int:
    """The process of a rank, by what the launcher's children were given."""
    children = Path(f"/proc/{launcher}/task").glob("*/children")
    for child in " ".join(path.read_text() for path in children).split():
        if f"\0RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError("there is no such rank")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_run_and_the_same_command_goes_on(
    rank: int, inputs: dict[str, Path], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    run = start(inputs, store, 300)
    deadline = time.monotonic() + MOST_SECONDS
    while not any(store.glob("partial/*/steps.jsonl")):
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(rank_of(run.pid, rank), signal.SIGKILL)
    _, said = run.communicate(timeout=MOST_SECONDS)
    assert run.returncode == 2
    assert said.count("One of the 2 processes of this run has ended. The same command goes on") == 1
    assert "Traceback" not in said
    again = start(inputs, store, 300)
    _, said = again.communicate(timeout=MOST_SECONDS)
    assert again.returncode == 0, said
    assert len(next(store.glob("objects/*/steps.jsonl")).read_text().splitlines()) == 300


@pytest.mark.slow
def test_what_is_wrong_is_told_once(inputs: dict[str, Path], tmp_path: Path) -> None:
    run = start(inputs | {"corpus": tmp_path / "nowhere"}, tmp_path / "store", 3)
    _, said = run.communicate(timeout=MOST_SECONDS)
    assert run.returncode == 2
    assert said.count("remnant: ") == 1
    assert "nowhere" in said
