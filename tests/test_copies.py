"""Transformed copies of models: those that are only measured are never written, those that
something reads are let go when it is done, and the numbers and bytes are those of kept ones."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from remnant import api
from remnant.context import ModelCache
from remnant.durable import digest_file
from remnant.errors import UserError
from remnant.flow import plan as planning
from remnant.flow import run as running
from remnant.flow.copies import Copy, by_form, let_go, node_of, readers_of, wanted
from remnant.flow.failures import failures
from remnant.flow.node import Node
from remnant.flow.place import Outside
from remnant.flow.store import WEIGHTS, Store, has_weights
from remnant.flow.sweepfile import read_sweep
from remnant.methods import chain, step
from remnant.records import FileRecord, MeasureSpec
from tests.conftest import unheard
from tests.test_flow import SWEEP

ASKED = MeasureSpec(metrics=("verbmem",))
FORMS = ("int4", "nf4", "prune20+int4")


@pytest.fixture
def source(folder_of: Callable[[PreTrainedModel, str], Path], model: PreTrainedModel) -> Outside:
    return Outside(str(folder_of(model, "outside")))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


def measured(source: Outside, corpus: Path, *forms: str) -> list[Node]:
    text = Outside(str(corpus))
    copies = [planning.transformed(chain(form), source, text) for form in forms]
    return planning.ordered(planning.measure_node(ASKED, copy, text) for copy in copies)


def weights_in(store: Store) -> list[Path]:
    found = [path for pattern in WEIGHTS for path in store.root.rglob(pattern)]
    return sorted(found)


def rows(store: Store, nodes: list[Node]) -> list[str]:
    own = [n.name for n in nodes if n.stage == "measure"]
    return [(store.path(name) / "rows.jsonl").read_text() for name in own]


def made(store: Store, nodes: list[Node], copy: Copy | None = None) -> None:
    """All of them, each with a memory of its own, as by workers that take turns."""
    copies = wanted(nodes)
    for node in nodes:
        own = copies.get(node.name, Copy.KEPT) if copy is None else copy
        running.make(store, node, unheard, ModelCache(), copy=own)


def test_what_is_only_measured_is_never_written_and_gives_the_same_rows(
    source: Outside, corpus: Path, tmp_path: Path
) -> None:
    nodes = measured(source, corpus, *FORMS)
    light, full = Store(tmp_path / "light").open(), Store(tmp_path / "full").open()
    api.done(light, nodes, progress=False)
    assert weights_in(light) == []
    made(full, nodes, Copy.KEPT)
    assert len(weights_in(full)) == 2 * sum(n.stage == "transform" for n in nodes)
    assert rows(light, nodes) == rows(full, nodes)
    assert running.missing(light, nodes) == []
    assert all(map(light.sound, (n.name for n in nodes)))


def test_without_the_model_in_memory_a_copy_is_made_again(
    source: Outside, corpus: Path, store: Store, tmp_path: Path
) -> None:
    nodes = measured(source, corpus, "int4", "prune20+int4")
    made(store, nodes)
    assert weights_in(store) == []
    other = Store(tmp_path / "other").open()
    made(other, nodes, Copy.KEPT)
    assert rows(store, nodes) == rows(other, nodes)


def test_a_copy_is_made_again_with_the_same_bytes(
    source: Outside, corpus: Path, store: Store, tmp_path: Path
) -> None:
    nodes = measured(source, corpus, "int4", "nf4")
    first, second = (n for n in nodes if n.stage == "transform")
    made(store, nodes)
    running.make(store, first, unheard)
    other = Store(tmp_path / "other").open()
    running.make(other, first, unheard)
    pairs = zip(weights_in(store), weights_in(other), strict=True)
    assert all(digest_file(a) == digest_file(b) for a, b in pairs)
    assert not has_weights(store.manifest(second.name))
    let_go(store, readers_of(nodes))
    assert has_weights(store.manifest(first.name))  # it was asked for by itself


def test_what_is_read_is_let_go_when_that_is_done(
    source: Outside, corpus: Path, store: Store
) -> None:
    nodes = _explained(source)
    copies = [n.name for n in nodes if n.stage == "transform"]
    assert wanted(nodes) == dict.fromkeys(copies, Copy.READ)
    before: dict[str, dict[str, FileRecord]] = {}
    for node in nodes:
        running.make(store, node, unheard, copy=wanted(nodes).get(node.name, Copy.KEPT))
        let_go(store, readers_of(nodes))
        if node.stage != "explain":
            before |= {n: store.manifest(n).files for n in copies if store.has(n)}
    assert weights_in(store) == []
    assert running.missing(store, nodes) == []
    # Another piece that reads them has them made anew.
    for name in copies:
        again = running.whole(store, name, unheard)
        assert again.files == before[name]


def _explained(source: Outside) -> list[Node]:
    first, second = (planning.transform_node(step(f), source, None) for f in ("int8", "int4"))
    return planning.ordered([planning.explain_node(source, source, first, second)])


def test_a_copy_that_is_being_read_stays(source: Outside, store: Store) -> None:
    nodes = _explained(source)
    made(store, nodes)
    first = nodes[0].name
    with store.reading(first), store.reading(first):
        let_go(store, readers_of(nodes))
        assert [p.parent.name for p in weights_in(store)] == [first] * 2
        assert store.locked() == [first]
    let_go(store, readers_of(nodes))
    assert weights_in(store) == []


def test_a_kill_while_a_copy_is_let_go_is_no_damage(
    source: Outside, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = _explained(source)
    made(store, nodes)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            let_go(store, readers_of(nodes))
    first = nodes[0].name
    assert not has_weights(store.manifest(first))
    assert any(store.path(first).glob(WEIGHTS[0]))
    assert store.sound(first)
    let_go(store, readers_of(nodes))
    assert weights_in(store) == []


def test_a_copy_that_comes_out_otherwise_is_refused(
    source: Outside, corpus: Path, store: Store
) -> None:
    copy, *_ = nodes = measured(source, corpus, "int4")
    running.make(store, copy, unheard, copy=Copy.KNOWN)
    manifest = store.manifest(copy.name)
    summary = manifest.summary | {"weights": "0" * 64}
    store._noted(copy.name, manifest.model_copy(update={"summary": summary}))
    for wants in (nodes[-1], copy):
        with pytest.raises(UserError, match="came out with other weights"):
            running.make(store, wants, unheard, copy=Copy.KEPT)


def test_a_copy_that_is_named_by_its_artefact_is_made_again_from_its_manifest(
    source: Outside, corpus: Path, store: Store
) -> None:
    nodes = measured(source, corpus, "prune20+int4")
    made(store, nodes)
    name = nodes[1].name
    assert node_of(store, name).name == name
    (expected,) = rows(store, nodes)
    shutil.rmtree(store.path(nodes[-1].name))
    api.measure(name, corpus, metrics=("verbmem",), store=store.root)
    assert (store.path(nodes[-1].name) / "rows.jsonl").read_text() == expected
    assert weights_in(store) == []
    Path(source.source, "config.json").unlink()
    with pytest.raises(UserError, match="cannot be made again"):
        node_of(store, nodes[0].name)


@pytest.mark.slow
def test_a_sweep_is_done_without_any_copy(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(SWEEP)
    nodes = planning.plan(read_sweep(tmp_path / "s.toml"))
    store = Store(tmp_path / "store").open()
    most = 0

    def progress(done: int, total: int, note: str) -> None:
        nonlocal most
        most = max(most, sum(p.name == "codes.safetensors" for p in weights_in(store)))

    running.work(store, nodes, lambda node: progress)
    assert failures(store, nodes) == {}
    assert running.missing(store, nodes) == []
    assert {p.parent.name.split("-")[0] for p in weights_in(store)} == {"train", "unlearn"}
    # The target's copy and that of one unlearned model, under one form at a time.
    assert most == 2
    assert {n.stage for n in nodes if not store.manifest(n.name).kept} == {"transform"}


def test_forms_are_done_with_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(SWEEP.replace('["int4"]', '["int4", "nf4"]'))
    nodes = planning.plan(read_sweep(tmp_path / "s.toml"))
    ordered = [n.label.steps for n in by_form(nodes)]
    assert list(dict.fromkeys(ordered)) == [(), ("int4",), ("nf4",)]
    assert ordered == sorted(ordered)
