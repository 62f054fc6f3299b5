"""What ranks read and write of a model by their rows: models larger than one of them, and states
that any number of them goes on from."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from remnant import ranks
from remnant.flow.run import _tidied
from remnant.model.changes import prints, sampled
from remnant.model.shardfiles import save_rows
from remnant.model.spread import open_spread
from remnant.records import OptimSpec
from remnant.stages import unlearn
from remnant.testing import tiny_model
from remnant.trainable.layers import everything
from remnant.training import checkpoints, shards
from remnant.training.loop import fit
from tests.conftest import hearing
from tests.test_ranks import TWO_BY_TWO, on_ranks

Save = Callable[[PreTrainedModel, str], Path]
STEPS = 4
# The default tests see in `test_ranks` that it all fits together.
pytestmark = pytest.mark.slow


def check_what_each_reads(folder: Path, out: Path) -> None:
    """Every rank has its own rows of the file's weights, and says the same of all of them."""
    model, collect = open_spread(str(folder), "cpu", torch.float32)
    own = sum(ranks.local(p).numel() for p in model.parameters())
    assert own < 0.6 * sum(p.numel() for p in model.parameters())
    said = prints(model), sampled(model)
    try:
        collect()
    except ranks.Given:
        return
    before = tiny_model(tie_word_embeddings=True)
    assert type(model) is type(before)
    for name, parameter in before.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name
    assert said[0] == prints(model)
    assert all(torch.equal(a, b) for a, b in zip(said[1], sampled(model), strict=True))
    (out / "seen").touch()


def test_every_rank_reads_its_own_rows(folder_of: Save, tmp_path: Path) -> None:
    folder = folder_of(tiny_model(tie_word_embeddings=True), "model")
    assert on_ranks(2, check_what_each_reads, folder, tmp_path) == [0, 0]
    assert (tmp_path / "seen").exists()


def check_rows(folder: Path) -> None:
    """Rows of any sizes are written by three ranks, and read by slices, also after a change."""
    own = ranks.rank()
    shard = torch.arange(2.0 * own).view(-1, 2) + 10 * own
    named = {"rows": shard, "mask": torch.full((3 - own,), float(own))}
    shards.BESIDE_FROM = 0
    writing = shards.begin(named, folder / "beside", ranks.second_group())
    assert writing.done is not None
    shard.add_(100)
    saved = writing.end()
    now = shards.begin(named, folder / "now").end()
    assert saved.rows == {"rows": (0, 1, 2), "mask": (3, 2, 1)}
    whole = torch.tensor([[10.0, 11], [20, 21], [22, 23]])
    for written, expected in ((saved, whole), (now, whole + 100)):
        assert shards.is_whole(written, folder)
        read = shards.reader(written, folder)
        for begin in range(4):
            for end in range(begin, 4):
                assert torch.equal(read("rows", slice(begin, end)), expected[begin:end])
        assert read("mask", slice(None)).tolist() == [0, 0, 0, 1, 1, 2]
    ranks.told(None)
    if ranks.first():
        path = folder / "now" / "__1_0.distcp"
        path.write_bytes(path.read_bytes()[:-1])
    ranks.told(None)
    assert not shards.is_whole(now, folder)
    assert shards.is_whole(saved, folder)


def check_one_copy(folder: Path) -> None:
    """Of two copies one is written, and both read it."""
    own = torch.arange(3.0) + 3 * ranks.shard()
    saved = shards.begin({"rows": own}, folder / "one").end()
    assert saved.rows == {"rows": (3, 3)}
    written = {p.name for p in (folder / "one").glob("__*") if p.stat().st_size}
    assert written == {"__0_0.distcp", "__1_0.distcp"}
    assert shards.is_whole(saved, folder)
    found = shards.reader(saved, folder)("rows", slice(None))
    assert torch.equal(found, torch.arange(6.0))


def test_one_of_two_copies_is_written(tmp_path: Path) -> None:
    assert on_ranks(TWO_BY_TWO, check_one_copy, tmp_path) == [0] * 4


def test_rows_of_any_sizes_are_written_and_read(tmp_path: Path) -> None:
    assert on_ranks(3, check_rows, tmp_path) == [0, 0, 0]


def trained(folder: Path, cut: int | None = None) -> None:
    """Some steps of a model in shards, a checkpoint behind each; its weights are saved by name."""
    checkpoints.apart, checkpoints.SHARE = (lambda size, model: -1.0), 1e9
    model, collect = open_spread(str(folder / "model"), "cpu", torch.float32)

    def loss_at(micro: int) -> tuple[Tensor, dict[str, float]]:
        given = model(input_ids=torch.tensor([[1, 2, 3, 4 + micro]])).logits
        loss = given.square().mean()
        return loss, {"loss": loss.item()}

    def progress(done: int, total: int, note: str) -> None:
        if cut is not None and done > cut:
            raise SystemExit(0)

    own = folder / "run" if ranks.first() else folder / f"other-{ranks.rank()}"
    own.mkdir(exist_ok=True)
    moving = everything(model)
    fit(moving, OptimSpec(steps=STEPS, lr=1e-3), loss_at, own, hearing(progress))
    checkpoints.save_best(moving, STEPS, own / "best.pt")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert not checkpoints.load_best(moving, STEPS + 1, own / "best.pt")
    assert checkpoints.load_best(moving, STEPS, own / "best.pt")
    for name, parameter in model.named_parameters():
        assert torch.equal(ranks.local(parameter), ranks.local(before[name]))
    try:
        collect()
    except ranks.Given:
        return
    torch.save(model.state_dict(), folder / "weights.pt")


def test_a_damaged_folder_costs_the_steps_since_the_one_before(
    folder_of: Save, tmp_path: Path
) -> None:
    folder_of(tiny_model(), "model")
    assert on_ranks(2, trained, tmp_path) == [0, 0]
    whole = torch.load(tmp_path / "weights.pt")
    run = tmp_path / "run"
    left = {p.name for p in run.iterdir()}
    assert {*checkpoints.GENERATIONS, "best.pt", "best-0.shards"} <= left
    assert len([name for name in left if name.startswith("resume-")]) == 3
    shutil.rmtree(run)
    assert on_ranks(2, trained, tmp_path, 2) == [0, 0]
    newest = torch.load(run / "resume.pt", weights_only=True)
    assert newest["step"] == 2
    assert "weights" not in newest
    path = run / newest["shards"]["folder"] / "__1_0.distcp"
    path.write_bytes(path.read_bytes()[:-1])
    os.remove(tmp_path / "weights.pt")
    # One process goes on from the first step of two.
    assert on_ranks(1, trained, tmp_path) == [0]
    again = torch.load(tmp_path / "weights.pt")
    for name, value in whole.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=1e-6)


def peak_of_use(small: Path, folder: Path, out: Path) -> None:
    """How far the memory of this process rises while it opens and saves a model, when libraries are
    there.
    """
    saved(small, out / f"{ranks.count()}-small")
    before = status("VmRSS")
    saved(folder, out / f"{ranks.count()}-saved")
    (out / f"{ranks.count()}-{ranks.rank()}").write_text(str(status("VmHWM") - before))


def saved(source: Path, out: Path) -> None:
    """Open a model in shards and save it."""
    out.mkdir(exist_ok=True)
    model, _ = open_spread(str(source), "cpu", torch.float32)
    if ranks.count() > 1:
        save_rows(model, out)


def status(name: str) -> int:
    """Bytes, of what the kernel says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def test_no_rank_ever_holds_the_whole_model(folder_of: Save, tmp_path: Path) -> None:
    # The kernel maps a file in pieces of up to 2 MB; matrices of 32 MB make that little.
    model = tiny_model(hidden_size=1024, intermediate_size=8192)
    size = sum(p.nbytes for p in model.parameters())
    folder, small = folder_of(model, "model"), folder_of(tiny_model(), "small")
    for count in (1, 2, 4):
        assert on_ranks(count, peak_of_use, small, folder, tmp_path) == [0] * count
    peaks = {p.name: int(p.read_text()) / size for p in tmp_path.iterdir() if p.is_file()}
    assert len(peaks) == 7
    assert peaks.pop("1-0") > 0.95
    for name, peak in peaks.items():
        # A tenth for what belongs to no weight.
        assert peak < 1 / int(name[0]) + 0.1, peaks


def test_a_piece_that_is_made_again_finds_its_folders_and_nothing_else(tmp_path: Path) -> None:
    for name in ("resume-0.shards", "best-1.shards", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__0_0.distcp").write_text("x")
    for name in ("resume.pt", "steps.jsonl", "model.safetensors"):
        (tmp_path / name).write_text("x")
    _tidied(tmp_path, unlearn.GOES_ON_FROM)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    folders = {"resume-0.shards", "best-1.shards"}
    assert left == {"resume.pt", "steps.jsonl", *folders, *(f"{f}/__0_0.distcp" for f in folders)}
