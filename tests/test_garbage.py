"""What `remnant gc` finds and deletes, and what it never touches."""

import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from remnant.cli import main
from remnant.durable import digest_of
from remnant.errors import UserError
from remnant.flow.garbage import FORSAKEN, remove, unneeded
from remnant.flow.store import Store
from remnant.records import Manifest

RUN = "remnant run small.toml"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


def made(store: Store, what: str, inputs: tuple[str, ...] = (), command: str = RUN) -> str:
    """A small artefact of its own, made from some others; its name."""
    digest = digest_of(what)
    manifest = Manifest(
        key=digest[:16],
        digest=digest,
        stage="train",
        stage_version=1,
        spec={},
        inputs={str(i): name for i, name in enumerate(inputs)},
        methods={},
        files={},
        summary={},
        seconds=0.0,
        created=time.strftime("%Y-%m-%d"),
        command=command,
        packages={},
        commit=None,
        dirty=None,
        device="",
        peak_memory_mb=0.0,
    )
    name = f"train-{manifest.key}"
    store.scratch(name).mkdir(parents=True)
    (store.scratch(name) / "weights").write_text("x" * 1000)
    store.seal(name, manifest)
    return name


def named(store: Store, label: str, *names: str, target: str = "") -> None:
    pieces = [{"name": name, "stage": "train"} for name in names]
    store.label(label, {"sweep": {"target": target}, "pieces": pieces})


def found(store: Store, *, by_hand: bool = False) -> set[str]:
    return {one.path.name for one in unneeded(store, by_hand=by_hand)}


def call(store: Store, *given: str) -> Result:
    return CliRunner().invoke(main, ["gc", *given, "--store", str(store.root)])


def test_what_a_run_names_or_was_made_from_is_kept(store: Store) -> None:
    corpus = made(store, "corpus")
    model = made(store, "model", (corpus,))
    old = made(store, "old", (corpus,))
    named(store, "a", model)
    assert found(store) == {old}


def test_a_run_that_is_named_anew_leaves_behind_what_only_it_needed(store: Store) -> None:
    first, second = made(store, "first"), made(store, "second")
    named(store, "a", first)
    assert found(store) == {second}
    named(store, "a", second)
    assert found(store) == {first}
    named(store, "b", first)
    assert found(store) == set()


def test_an_artefact_that_is_named_as_a_folder_is_kept(store: Store) -> None:
    first, second, third = (made(store, what) for what in ("1", "2", "3"))
    by_path = made(store, "4", (f"runs/objects/{first} (0123456789abcdef)",))
    named(store, "a", by_path, target=f"runs/objects/{second}")
    assert found(store) == {third}


def test_what_single_commands_made_goes_on_request_only(store: Store) -> None:
    source = made(store, "source")
    model = made(store, "model", (source,), "remnant unlearn m --data run")
    assert found(store) == set()
    assert found(store, by_hand=True) == {source, model}
    named(store, "a", model)
    assert found(store, by_hand=True) == set()


def test_unfinished_work_goes_after_a_day_and_if_no_run_names_it(store: Store) -> None:
    young, old, wanted = (f"train-{digit * 16}" for digit in "123")
    for name in (young, old, wanted):
        store.scratch(name).mkdir()
        (store.scratch(name) / "resume.pt").write_text("x")
    for name in (old, wanted):
        for path in (store.scratch(name), store.scratch(name) / "resume.pt"):
            os.utime(path, (0, time.time() - FORSAKEN - 60))
    named(store, "a", wanted)
    assert found(store) == {old}


def test_the_logs_of_killed_runs_go_after_a_day(store: Store) -> None:
    young, old = ((store.root / "partial" / f"workers-{n}.log") for n in (1, 2))
    for log in (young, old):
        log.write_text("what nobody expected")
    os.utime(old, (0, time.time() - FORSAKEN - 60))
    assert found(store) == {old.name}
    remove(store, unneeded(store))
    assert (young.exists(), old.exists()) == (True, False)


def test_nothing_is_deleted_without_a_yes_and_all_that_was_listed_with_it(store: Store) -> None:
    kept, gone = made(store, "kept"), made(store, "gone")
    named(store, "a", kept)
    listed = call(store).output
    assert gone in listed
    assert "0.0 MB; deleted with --yes" in listed
    assert store.has(gone)
    assert "1 entries" in call(store, "--yes").output
    assert not store.has(gone)
    assert store.sound(kept)
    assert not list((store.root / "damaged").iterdir())
    assert "0 entries" in call(store).output


def test_what_was_set_aside_goes(store: Store) -> None:
    name = made(store, "model")
    (store.path(name) / "weights").write_text("y")
    store.set_aside(name)
    assert found(store) == {name}
    assert made(store, "model") == name
    assert len(unneeded(store)) == 2
    remove(store, unneeded(store))
    assert found(store) == set()


def test_nothing_goes_while_something_is_being_made(store: Store) -> None:
    gone = made(store, "gone")
    with store.lock("train-0123456789abcdef", wait=False) as held:
        assert held
        assert Store(store.root).locked() == ["train-0123456789abcdef"]
        refused = call(store, "--yes")
    assert refused.exit_code == 2
    assert "Work is going on" in refused.output
    assert store.has(gone)
    assert call(store, "--yes").exit_code == 0
    assert not store.has(gone)


def test_a_damaged_name_stops_it(store: Store) -> None:
    made(store, "model")
    named(store, "a")
    place = store.root / "names" / "a.json"
    place.write_text(place.read_text()[:-3])
    with pytest.raises(UserError, match="is damaged"):
        unneeded(store)


def test_what_another_version_wrote_is_left_alone(store: Store) -> None:
    name = made(store, "model")
    (store.path(name) / "manifest.json").write_text('{"schema_version": 99}')
    assert found(store, by_hand=True) == set()
