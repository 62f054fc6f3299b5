"""The store believes nothing unchecked: manifests, inputs, locks, what is sealed, what a full or
read-only disk and a failed save leave."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from remnant import durable
from remnant.cli import main
from remnant.context import ModelCache
from remnant.durable import is_whole, read_json, write_json, write_text
from remnant.errors import UserError
from remnant.evaluate.collect import collect
from remnant.evaluate.requests import Answer, Reading, Request
from remnant.flow import run as running
from remnant.flow.failures import failures
from remnant.flow.place import Made, Outside, given
from remnant.flow.plan import (
    Node,
    measure_node,
    prepare_node,
    train_node,
    transform_node,
    unlearn_node,
)
from remnant.flow.store import Store, copied, disk_errors
from remnant.methods import step
from remnant.model import saving, versions
from remnant.model.load import open_model
from remnant.records import MeasureSpec, PrepareSpec, TrainSpec, UnlearnSpec
from remnant.stages import train as train_stage
from remnant.stages import unlearn as unlearn_stage
from remnant.testing import tiny_model
from tests.conftest import unheard

CORPUS = PrepareSpec(
    lab="news",
    forget_docs=4,
    retain_docs=4,
    holdout_docs=4,
    prompt_tokens=30,
    answer_tokens=20,
    vocab_size=400,
)
SMALL = TrainSpec(
    steps=4, hidden=32, heads=2, kv_heads=2, intermediate=32, layers=1, block_tokens=64
)
Save = Callable[[PreTrainedModel, str], Path]


def call(*args: object) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


@pytest.fixture
def node(store: Store) -> Node:
    """A corpus that is made."""
    found = prepare_node(CORPUS)
    running.make(store, found, unheard)
    return found


# Locks


def test_a_lock_without_effect_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *a: None)
    for _ in range(2):  # two runs
        result = call("run", "demo", "--store", tmp_path / "s")
        assert result.exit_code == 2
        assert "no working locks" in result.output
        assert "--store" in result.output


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_that_refuses_locks_is_refused(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*a: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=f"no working locks.*{os.strerror(code)}"):
        Store(tmp_path).open()


def test_a_store_opens_while_another_process_tries_its_lock_and_fast(tmp_path: Path) -> None:
    store = Store(tmp_path).open()
    with (tmp_path / "locks/trial").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        store.open()
    started = time.perf_counter()
    for _ in range(100):
        store.open()
    assert (time.perf_counter() - started) / 100 < 0.005


# What is believed


@pytest.mark.parametrize(
    "how",
    [
        "empty",
        "not json",
        "another key",
        "a changed number",
        "no seal",
        "zeroed",
        "a list",
        "not utf-8",
    ],
)
def test_a_manifest_that_is_not_whole_is_none_and_its_artefact_is_made_again(
    how: str, store: Store, node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    path = store.path(node.name) / "manifest.json"
    whole = path.read_text()
    data = json.loads(whole)
    path.write_bytes(
        {
            "empty": b"", "not json": whole[:100].encode(), "zeroed": bytes(len(whole)),
            "a list": b"[]",
            "not utf-8": b"\xff" + whole.encode(),
            "another key": json.dumps(data | {"digest": "0" * 64, "key": "0" * 16}).encode(),
            "a changed number": json.dumps(data | {"seconds": data["seconds"] + 1}).encode(),
            "no seal": json.dumps({k: v for k, v in data.items() if k != "seal"}).encode(),
        }[how]
    )  # fmt: skip
    assert not store.has(node.name)
    for reference in (node.name, str(store.path(node.name))):
        with pytest.raises(UserError, match=r"damaged.*Delete the folder"):
            given(store, reference, "prepare")
    assert call("show", node.name, "--store", store.root).exit_code == 2
    assert "its manifest is damaged" in call("ls", "--store", store.root).output
    running.make(store, node, unheard)
    assert store.sound(node.name)
    assert "made again" in capsys.readouterr().err
    assert (store.root / "damaged" / node.name / "corpus.json").is_file()


def test_a_manifest_of_an_older_remnant_is_believed_and_its_files_are_compared(
    store: Store, node: Node
) -> None:
    path = store.path(node.name) / "manifest.json"
    data = json.loads(path.read_text())
    path.write_text(
        json.dumps(
            {k: v for k, v in data.items() if k not in ("seal", "sources")} | {"schema_version": 1}
        )
    )
    assert store.sound(node.name)
    (store.path(node.name) / "raw/forget.json").write_text("[]")
    assert store.faults(node.name) == ["raw/forget.json"]


@pytest.mark.parametrize("how", ["changed", "missing", "surplus"])
def test_a_damaged_input_is_made_again_where_the_plan_says_how_and_else_refused(
    how: str, store: Store, node: Node
) -> None:
    place = store.path(node.name) / "raw/forget.json"
    whole = place.read_text()
    if how == "surplus":
        place.with_name("more.json").write_text("[]")
    elif how == "missing":
        place.unlink()
    else:
        place.write_text(whole.replace("a", "b", 1))
    made = train_node(SMALL, Made(node.name, node.digest))
    with pytest.raises(
        UserError,
        match=f"The artefact {node.name} is damaged.*Delete the folder {store.path(node.name)}",
    ):
        running.make(store, made, unheard)
    running.make(store, train_node(SMALL, node), unheard)
    assert place.read_text() == whole
    assert store.sound(node.name)


def test_files_are_read_for_checking_once_per_process(
    store: Store, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def watched(path: Path) -> str:
        read.append(path)
        return durable.digest_file(path)

    monkeypatch.setattr("remnant.flow.digests.digest_file", watched)
    for _ in range(5):
        assert store.sound(node.name)
    assert len(read) == len(set(read)) == len(store.manifest(node.name).files)
    place = store.path(node.name) / "raw/forget.json"
    before = place.stat()
    data = bytearray(place.read_bytes())
    data[5] ^= 1
    place.write_bytes(data)
    os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))  # also where the time is put back
    assert store.faults(node.name) == ["raw/forget.json"]


def test_what_is_changed_while_it_is_used_is_not_kept(
    store: Store, node: Node, model: PreTrainedModel, folder_of: Save
) -> None:
    folder = folder_of(model, "m")

    def change(done: int, total: int, note: str) -> None:
        (folder / "config.json").write_text((folder / "config.json").read_text() + " ")

    copy = transform_node(step("int4"), Outside(str(folder)), None)
    with pytest.raises(UserError, match="was changed while it was being used"):
        running.make(store, copy, change)
    assert not store.has(copy.name)


def test_a_name_of_a_run_is_believed_only_whole(store: Store) -> None:
    store.label("a", {"sweep": {"lr": 0.1}, "pieces": ()})
    assert store.labelled("a") == {"sweep": {"lr": 0.1}, "pieces": []}
    path = store.root / "names/a.json"
    for text in (
        "",
        "{",
        "[]",
        "3",
        path.read_text().replace("0.1", "0.2"),
        json.dumps({"sweep": {}, "pieces": []}),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match="damaged"):
            store.labelled("a")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"message": 1}', "\x00\x00"])
def test_a_failure_that_cannot_be_read_is_a_failure(text: str, store: Store) -> None:
    node = prepare_node(CORPUS)
    store.scratch(node.name).mkdir()
    (store.scratch(node.name) / "error.json").write_text(text)
    assert "cannot be read" in failures(store, [node])[node.name]["message"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"absent": [], "answer_tokens": 3}',
        '{"absent": {}, "answer_tokens": "3"}',
    ],
)
def test_a_damaged_corpus_from_outside_ends_in_a_sentence(
    text: str, store: Store, node: Node, tmp_path: Path
) -> None:
    outside = tmp_path / "corpus"
    shutil.copytree(store.path(node.name), outside)
    (outside / "corpus.json").write_text(text)
    with pytest.raises(UserError, match="damaged"):
        running.make(
            store,
            measure_node(MeasureSpec(), Outside(str(outside)), Outside(str(outside))),
            unheard,
        )


@pytest.mark.parametrize(
    "rows", ["[3]", '[{"prompt": "a"}]', '[{"prompt": 1, "gt": "a"}]', '["a"]']
)
def test_rows_of_another_shape_in_a_corpus_from_outside_end_in_a_sentence(
    rows: str, store: Store, node: Node, tmp_path: Path, model: PreTrainedModel, folder_of: Save
) -> None:
    outside = tmp_path / "corpus"
    shutil.copytree(store.path(node.name), outside)
    (outside / "verbmem/forget.json").write_text(rows)
    folder = folder_of(tiny_model(vocab=400), "m")
    for path in (outside / "tokenizer").iterdir():
        shutil.copy(path, folder)
    with pytest.raises(UserError, match="record 1 lacks"):
        running.make(
            store, measure_node(MeasureSpec(), Outside(str(folder)), Outside(str(outside))), unheard
        )


# Spools


class Echo:
    offers = frozenset({"logp"})

    def __init__(self, stop_at: int = 99) -> None:
        self.asked: list[int] = []
        self.stop_at = stop_at

    def plan(self, requests: Any) -> list[list[int]]:
        return [[i] for i in range(len(requests))]

    def answer(self, batch: Any) -> list[Answer]:
        if len(self.asked) == self.stop_at:
            raise KeyboardInterrupt
        self.asked += [int(r.text) for r in batch]
        return [float(r.text) + 0.25 for r in batch]


@pytest.mark.parametrize(
    "how", ["whole", "a digit", "swapped", "cut", "empty", "head", "other requests"]
)
def test_a_damaged_spool_is_asked_again_from_the_damage_on(how: str, tmp_path: Path) -> None:
    requests: list[Request] = [Reading(str(i)) for i in range(6)]
    spool = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        collect(requests, Echo(4), spool, lambda *a: None)
    lines = spool.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5
    expected = {
        "whole": 4,
        "a digit": 1,
        "swapped": 1,
        "cut": 3,
        "empty": 0,
        "head": 0,
        "other requests": 0,
    }[how]
    if how == "a digit":
        lines[2] = lines[2].replace(b"1.25", b"7.25")
    if how == "swapped":
        lines[2], lines[3] = lines[3], lines[2]
    if how == "head":
        lines[0] = b"x" + lines[0]
    data = b"".join(lines)
    spool.write_bytes({"cut": data[:-5], "empty": b""}.get(how, data))
    if how == "other requests":
        requests = [Reading(str(i)) for i in range(1, 7)]
    backend = Echo()
    found = collect(requests, backend, spool, lambda *a: None)
    assert [found[r] for r in requests] == [
        float(r.text) + 0.25 for r in requests if isinstance(r, Reading)
    ]
    assert len(backend.asked) == 6 - expected


def test_kept_data_is_believed_only_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ability.json"
    write_json(path, {"choice": [1.0, 0.0]})
    assert read_json(path) == {"choice": [1.0, 0.0]}
    whole = path.read_bytes()
    for damaged in (
        whole.replace(b"1.0", b"2.0"),
        whole[:-1],
        b"",
        bytes(len(whole)),
        whole + b"x",
    ):
        path.write_bytes(damaged)
        assert read_json(path) is None
        assert not path.exists()
    assert capsys.readouterr().err.count("damaged") == 5


# The disk


def test_content_is_on_the_disk_before_its_name(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that a power cut demands: every file and folder synchronised, then the rename, then
    the folder that it is in."""
    events: list[tuple[str, str]] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(place: int) -> None:
        events.append(("sync", os.path.realpath(f"/proc/self/fd/{place}")))
        real_sync(place)

    def replace(source: Path, target: Path) -> None:
        events.append(("name", str(target)))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    node = prepare_node(CORPUS)
    final = running.make(store, node, unheard)
    assert final is not None
    named = events.index(("name", str(final)))
    synced = {Path(p) for what, p in events[:named] if what == "sync"}
    whole = store.scratch(f"{node.name}~")
    assert {whole / f for f in store.manifest(node.name).files} <= synced
    assert {whole, whole / "raw", whole / "tokenizer"} <= synced
    assert ("sync", str(final.parent)) in events[named:]
    events.clear()
    store.label("x", {})
    assert [what for what, _ in events] == ["sync", "name", "sync"]


@pytest.mark.parametrize("moment", ["scratch file", "after the links", "before the name"])
def test_a_crash_while_sealing_repeats_no_step(
    moment: str, store: Store, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = train_node(SMALL, node)
    with monkeypatch.context() as patch:
        if moment == "scratch file":
            patch.setattr(
                train_stage, "save", lambda *a: (_ for _ in ()).throw(RuntimeError("power cut"))
            )
        elif moment == "after the links":
            patch.setattr(
                "remnant.flow.store.write_text",
                lambda *a: (_ for _ in ()).throw(RuntimeError("power cut")),
            )
        else:
            patch.setattr(
                "remnant.flow.store.rename",
                lambda *a: (_ for _ in ()).throw(RuntimeError("power cut")),
            )
        with pytest.raises(RuntimeError, match="power cut"):
            running.make(store, train, unheard)
    seen: list[int] = []
    running.make(store, train, lambda done, total, note: seen.append(done))
    assert seen == [0]  # "starting", and no step
    assert set(store.manifest(train.name).files) >= {
        "model.safetensors",
        "steps.jsonl",
        "config.json",
    }
    assert store.manifest(train.name).summary["loss"] > 0
    assert not list((store.root / "partial").iterdir())


STRAYS = (
    "resume.tmp",
    "resume.pt.123.tmp",
    "best.tmp",
    "progress.tmp",
    "junk.txt",
    "junk/x.json",
    "answers.jsonl",
    "model-old.safetensors",
)


def test_only_what_a_stage_declares_is_sealed(store: Store, node: Node) -> None:
    train = train_node(SMALL, node)
    for name in STRAYS:
        path = store.scratch(train.name) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("stray")

    def stray_again(done: int, total: int, note: str) -> None:
        for name in STRAYS:
            (store.scratch(train.name) / name).parent.mkdir(exist_ok=True)
            (store.scratch(train.name) / name).write_text("stray")

    running.make(store, train, stray_again)
    assert set(store.manifest(train.name).files) == {
        "config.json", "generation_config.json", "model.safetensors", "steps.jsonl",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert store.sound(train.name)


def test_every_stage_declares_what_it_leaves() -> None:
    import importlib

    from remnant.catalog import STAGE_VERSIONS

    for stage in STAGE_VERSIONS:
        leaves = importlib.import_module(f"remnant.stages.{stage}").LEAVES
        assert leaves
        assert not any(pattern in ("*", "*.json", "*.pt") for pattern in leaves)


FAULTS = [
    (OSError(errno.ENOSPC, "No space left on device"), "The disk is full"),
    (
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
        "The disk is full",
    ),
    (Exception("No space left on device (os error 28)"), "The disk is full"),
    (OSError(errno.EIO, "Input/output error"), "The disk has a fault"),
    (ValueError("a library does not like it"), "cannot be saved"),
    (RuntimeError("shared tensors"), "cannot be saved"),
]


@pytest.mark.parametrize(
    ("stage", "fault", "said"),
    [*(("train", *f) for f in FAULTS), ("unlearn", *FAULTS[0])],
    ids=lambda x: str(x)[:20],
)
def test_saving_that_fails_loses_no_step(
    stage: str,
    fault: Exception,
    said: str,
    store: Store,
    node: Node,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    piece = train_node(SMALL, node)
    if stage == "unlearn":
        piece = unlearn_node(
            UnlearnSpec(method="ga", steps=4, probe_every=2, max_tokens=64), piece, node
        )
        running.make(store, train_node(SMALL, node), unheard)
    with monkeypatch.context() as patch:
        patch.setattr(saving, "save_model", lambda *a: (_ for _ in ()).throw(fault))
        with pytest.raises(UserError, match=said):
            running.make(store, piece, unheard)
    assert not store.has(piece.name)
    seen: list[int] = []
    running.make(store, piece, lambda done, total, note: seen.append(done))
    assert seen == [0]
    assert store.sound(piece.name)


def test_a_full_disk_while_steps_are_saved_leaves_the_last_ones(tmp_path: Path) -> None:
    from remnant.model import kept

    path = tmp_path / "resume.pt"
    kept.save({"step": 1, "w": torch.zeros(1000)}, path)

    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.written = file, 0

        def write(self, data: Any) -> int:
            self.written += len(data)
            if self.written > 2000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return int(self.file.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    with pytest.MonkeyPatch.context() as patch:
        real = durable._Counted
        patch.setattr(durable, "_Counted", lambda file: real(cast(Any, Full(file))))
        with pytest.raises(UserError, match="The disk is full"), disk_errors(tmp_path):
            kept.save({"step": 2, "w": torch.ones(1000)}, path)
    assert kept.load(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["resume.pt"]


def test_a_generation_config_that_cannot_be_saved_is_mended_before_the_first_step(
    store: Store,
    node: Node,
    tokenizer: PreTrainedTokenizerBase,
    folder_of: Save,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = folder_of(tiny_model(vocab=len(tokenizer), max_position_embeddings=1024), "m")
    flags = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 2]}
    (folder / "generation_config.json").write_text(json.dumps(flags))
    piece = unlearn_node(
        UnlearnSpec(method="ga", steps=1, select="last", max_tokens=64), Outside(str(folder)), node
    )
    running.make(store, piece, unheard)
    assert "only its tokens are kept" in capsys.readouterr().err
    assert GenerationConfig.from_pretrained(store.path(piece.name)).eos_token_id == [1, 2]
    running.make(store, transform_node(step("int4"), piece, None), unheard)


def test_what_cannot_be_saved_is_said_before_the_first_step(
    store: Store,
    node: Node,
    tokenizer: PreTrainedTokenizerBase,
    folder_of: Save,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = folder_of(tiny_model(vocab=len(tokenizer), max_position_embeddings=1024), "m")
    piece = unlearn_node(
        UnlearnSpec(method="ga", steps=1, max_tokens=64), Outside(str(folder)), node
    )
    monkeypatch.setattr(
        type(open_model(str(folder)).config),
        "save_pretrained",
        lambda *a, **k: (_ for _ in ()).throw(TypeError("no")),
    )
    monkeypatch.setattr(unlearn_stage, "fit", lambda *a: pytest.fail("a step was taken"))
    with pytest.raises(UserError, match=r"configuration cannot be saved \(no\)"):
        running.make(store, piece, unheard)


def test_a_store_that_takes_nothing_works_where_nothing_is_to_be_made(
    store: Store, node: Node, tmp_path: Path
) -> None:
    """On a real read-only file system, where this process may mount one."""
    text = 'name = "r"\nunlearn = []\nquantizers = []\nmeasure.metrics = ["verbmem"]\n'
    mount = tmp_path / "mount"
    mount.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "tmpfs", str(mount)], capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a file system needs root")
    try:
        shutil.copytree(store.root, mount / "s")
        (tmp_path / "r.toml").write_text(
            text
            + "[[corpus]]\n"
            + "".join(f"{k} = {json.dumps(v)}\n" for k, v in CORPUS.identity().items())
        )
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        read_only = Store(mount / "s").open()
        assert running.make(read_only, node, unheard) == read_only.path(node.name)
        prepared = (
            "prepare",
            "--lab",
            "news",
            "--store",
            mount / "s",
            "--prompt-tokens",
            30,
            "--answer-tokens",
            20,
            "--vocab-size",
            400,
        )
        for docs, code in ((4, 0), (5, 2)):
            result = call(
                *prepared,
                *(
                    x
                    for k in ("forget", "retain", "holdout")
                    for x in ("--set", f"{k}_docs={docs}")
                ),
            )
            assert result.exit_code == code, result.output
        assert "The disk is read-only" in result.output
        for command in (("ls",), ("show", node.name), ("plan", tmp_path / "r.toml")):
            assert call(*command, "--store", mount / "s").exit_code == 0
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_text(path, "one")
    with pytest.raises(RuntimeError):
        durable.write(path, lambda file: (_ for _ in ()).throw(RuntimeError))
    assert path.read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert not is_whole(path)
    assert not is_whole(tmp_path / "none")


def test_a_copy_for_the_user_is_whole_on_the_disk_or_not_there(
    store: Store, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, manifest, out = store.path(node.name), store.manifest(node.name), tmp_path / "out" / "m"
    synced: list[str] = []
    real = os.fsync

    def fsync(place: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{place}"))
        if "fails" in synced:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(place)

    monkeypatch.setattr(os, "fsync", fsync)
    out.parent.mkdir()
    copied(made, manifest, out)
    assert {Path(p).name for p in synced} >= {p.name for p in out.rglob("*")}
    synced.append("fails")
    with pytest.raises(UserError, match="disk is full"):
        copied(made, manifest, out.with_name("n"))
    assert [p.name for p in out.parent.iterdir()] == ["m"]


# Models by content


def test_the_same_base_by_another_path_is_the_same(
    node: Node, model: PreTrainedModel, folder_of: Save, tmp_path: Path
) -> None:
    one = folder_of(model, "one")
    two = tmp_path / "elsewhere" / "two"
    shutil.copytree(one, two)
    keys = [train_node(SMALL.model_copy(update={"base": str(p)}), node).name for p in (one, two)]
    assert keys[0] == keys[1] != train_node(SMALL, node).name
    (two / "config.json").write_text((two / "config.json").read_text() + " ")
    assert train_node(SMALL.model_copy(update={"base": str(two)}), node).name != keys[0]
    tokenized = [
        prepare_node(CORPUS.model_copy(update={"tokenizer": str(p)})).name
        for p in (one, tmp_path / "one")
    ]
    assert tokenized[0] == tokenized[1]


def test_a_copy_of_a_model_from_outside_is_known_as_its_version_in_a_later_process(
    store: Store,
    node: Node,
    tokenizer: PreTrainedTokenizerBase,
    folder_of: Save,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = folder_of(tiny_model(vocab=len(tokenizer), max_position_embeddings=1024), "m")
    outside = Outside(str(folder))
    copies = [transform_node(step(q), outside, None) for q in ("int4", "int8")]
    for copy in copies:
        running.make(store, copy, unheard)
    opened: list[str] = []

    def counted(source: str, device: str, *, dtype: torch.dtype) -> PreTrainedModel:
        opened.append(source)
        return open_model(source, device, dtype=dtype)

    monkeypatch.setattr(versions, "open_model", counted)
    spec, models = MeasureSpec(metrics=("verbmem",)), ModelCache()
    for source in (copies[0], outside, copies[1]):
        running.make(store, measure_node(spec, source, node), unheard, models)
    assert opened == [str(store.path(copies[0].name))]


def test_two_models_of_one_name_are_never_taken_for_each_other(
    store: Store, node: Node, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """The second is measured behind the first, with a manifest beside it that names the first's
    origin."""
    rows: list[str] = []
    models = ModelCache()
    for seed, parent in enumerate("abb"):
        folder = tmp_path / parent / "checkpoint-0123456789abcdef"
        if not folder.exists():
            torch.manual_seed(seed)
            model = tiny_model(
                vocab=len(tokenizer), max_position_embeddings=1024, initializer_range=0.2
            )
            for parameter in model.parameters():
                parameter.data.mul_(1 + seed)
            saving.save(model, tokenizer, folder)
            lie = {"summary": {"changed": []}, "inputs": {"model": "checkpoint-0123456789abcdef"}}
            (folder / "manifest.json").write_text(json.dumps(lie))
        if len(rows) == 2:  # alone, in a store of its own
            store, models = Store(tmp_path / "other").open(), ModelCache()
        measured = measure_node(
            MeasureSpec(metrics=("verbmem", "privleak")), Outside(str(folder)), node
        )
        running.make(store, node, unheard)
        made = running.make(store, measured, unheard, models)
        rows.append((made or tmp_path).joinpath("rows.jsonl").read_text())
    assert rows[0] != rows[1] == rows[2]
