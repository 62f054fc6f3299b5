"""Sweeps on a cluster: what a machine must show before it makes anything, what becomes of a lock
whose holder died, and (slow, with Ray) two machines on loopback, one of which is lost."""

import fcntl
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from remnant.errors import UserError
from remnant.flow import cluster
from remnant.flow.cluster import Needs, Order, Silence, check_machine, comes, needs_on, room
from remnant.flow.failures import failures
from remnant.flow.hands import Hands, local_hands
from remnant.flow.plan import plan, prepare_node, train_node
from remnant.flow.run import packages, rest_of
from remnant.flow.store import Store, write_progress
from remnant.parsing import parse
from remnant.records import SweepSpec, TrainSpec
from tests.test_flow import SWEEP, content
from tests.test_store import CORPUS as SMALL


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


def order_for(store: Store, **changes: Any) -> Order:
    root = str(store.root.resolve())
    return Order(root, "cluster-1", os.getcwd(), {}, packages())._replace(**changes)


@pytest.fixture
def order(store: Store) -> Iterator[Order]:
    """An order whose token is there and locked, as while a sweep runs."""
    with store.lock("cluster-1", wait=False):
        yield order_for(store)


def refusal(order: Order) -> str:
    with pytest.raises(UserError) as refused:
        check_machine(order)
    return str(refused.value)


def test_a_machine_with_the_same_folder_locks_and_versions_is_fine(order: Order) -> None:
    check_machine(order)


def test_a_machine_with_another_folder_under_the_same_path_is_refused(order: Order) -> None:
    assert "does not see the store" in refusal(order._replace(token="cluster-2"))
    assert "--store" in refusal(order._replace(root="/nowhere"))


def test_a_machine_where_a_held_lock_is_free_is_refused(store: Store) -> None:
    with store.lock("cluster-1", wait=False):
        pass
    assert "does not heed locks" in refusal(order_for(store))


def test_a_machine_with_other_versions_is_refused_by_name(order: Order) -> None:
    other = dict(order.packages) | {"torch": "1.0"}
    assert "and the sweep was started with 1.0" in refusal(order._replace(packages=other))
    more = dict(order.packages) | {"llama": "3"}
    assert "has llama none" in refusal(order._replace(packages=more))
    check_machine(order._replace(packages=dict(order.packages) | {"python": "3.0"}))


@pytest.mark.parametrize(
    ("machines", "alone", "needs", "places"),
    [
        ([{"CPU": 4.0}, {"CPU": 8.0}], False, Needs(1, 0), 12),
        ([{"CPU": 4.0}, {"CPU": 8.0}], True, Needs(4, 0), 3),
        ([{"CPU": 64.0, "GPU": 8.0}], True, Needs(8, 1), 8),
        ([{"CPU": 64.0, "GPU": 8.0}, {"CPU": 2.0}], False, Needs(1, 1), 8),
        ([{"memory": 1e9}, {"CPU": 1.0}], True, Needs(1, 0), 1),
    ],
)
def test_a_piece_gets_a_core_and_a_large_one_its_share_of_a_machine(
    machines: list[dict[str, float]], alone: bool, needs: Needs, places: int
) -> None:
    assert needs_on(machines, alone=alone) == needs
    assert room(machines, needs) == places


def test_a_cluster_without_cores_is_refused() -> None:
    with pytest.raises(UserError, match="no machine with a free core"):
        needs_on([{"memory": 1e9}, {"CPU": 0.0}], alone=False)


def test_only_stages_that_compute_with_a_model_ask_for_a_gpu() -> None:
    corpus = prepare_node(SMALL)
    assert Needs(2, 1).of(corpus) == {"num_cpus": 2, "num_gpus": 0}
    assert Needs(2, 1).of(train_node(TrainSpec(), corpus)) == {"num_cpus": 2, "num_gpus": 1}


def test_silence_counts_from_the_first_look_and_ends_with_every_word(tmp_path: Path) -> None:
    now = [100.0]
    path = tmp_path / "progress.json"
    silence = Silence(path, lambda: now[0])
    seen = []
    for said, passed in (("", 50), ("a", 10), ("a", 10), ("b", 10), ("b", 70), ("", 9), ("b", 9)):
        path.write_text(said)
        now[0] += passed
        seen.append(silence.seconds())
    assert seen == [0, 0, 10, 0, 70, 0, 0]
    path.unlink()
    assert silence.seconds() == 0


def test_what_another_machine_writes_later_is_waited_for(store: Store) -> None:
    path = store.root / "objects" / "late"
    threading.Timer(0.4, path.mkdir).start()
    assert not comes(path.exists, store, 0.0)
    assert comes(path.exists, store, 20.0)


def test_what_never_comes_is_given_up(store: Store) -> None:
    since = time.monotonic()
    assert not comes(lambda: False, store, 0.3)
    assert 0.3 < time.monotonic() - since < 10


def test_what_is_left_of_a_sweep_is_ready_waiting_or_lost(store: Store) -> None:
    corpus, other = prepare_node(SMALL), prepare_node(SMALL.model_copy(update={"forget_docs": 5}))
    nodes = [corpus, other, train_node(TrainSpec(), corpus), train_node(TrainSpec(), other)]
    rest = rest_of(store, nodes, {corpus.name})
    assert rest.open == [other, nodes[3]]
    assert rest.ready == [other]
    assert rest.lost == {corpus.name, nodes[2].name}


def test_a_piece_is_made_as_a_task_and_only_once(store: Store, order: Order) -> None:
    node = prepare_node(SMALL)
    cluster.make_piece(order, node)
    made = store.manifest(node.name).created
    cluster.make_piece(order, node)
    assert Store(store.root).manifest(node.name).created == made


def test_a_piece_that_fails_as_a_task_says_why_in_the_store(store: Store, order: Order) -> None:
    corpus = prepare_node(SMALL)
    bad = train_node(TrainSpec(architecture="nothing", steps=1), corpus)
    cluster.make_piece(order, corpus)
    cluster.make_piece(order, bad)
    assert "nothing" in failures(store, [bad])[bad.name]["message"]


def test_a_piece_whose_source_is_not_seen_is_not_made(
    store: Store, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "comes", partial(comes, most=0.0))
    with pytest.raises(UserError, match="does not see all that train-"):
        cluster.make_piece(order, train_node(TrainSpec(), prepare_node(SMALL)))
    assert not list(store.root.glob("partial/*"))


@pytest.fixture
def dead(store: Store) -> Iterator[str]:
    """The name of a piece that a machine had begun when it died, its lock still held."""
    name = prepare_node(SMALL).name
    store.scratch(name).mkdir()
    write_progress(store.scratch(name), 1, 2, "half done")
    with (store.root / "locks" / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield name


def test_the_lock_of_a_machine_that_died_is_broken_after_a_silence(
    store: Store, order: Order, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "SILENT_SECONDS", 1.0)
    cluster.make_piece(order, prepare_node(SMALL))
    assert store.faults(dead) == []


def test_a_lock_is_not_broken_while_its_holder_speaks(
    store: Store, order: Order, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "SILENT_SECONDS", 2.0)
    thread = threading.Thread(target=cluster.make_piece, args=(order, prepare_node(SMALL)))
    thread.start()
    for word in range(20):
        write_progress(store.scratch(dead), word, 20, "alive")
        time.sleep(0.2)
    assert not store.has(dead)
    thread.join(60)
    assert store.has(dead)


def test_who_waits_for_a_lock_that_is_broken_waits_for_the_new_one(store: Store) -> None:
    with (store.root / "locks" / "a").open("w") as old:
        fcntl.flock(old, fcntl.LOCK_EX)
        held: list[str] = []

        def wait() -> None:
            with store.lock("a", wait=True):
                held.append("waited")

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.3)
        store.break_lock("a")
        with store.lock("a", wait=False) as mine:
            assert mine
            old.close()
            time.sleep(0.3)
            assert held == []
    thread.join(20)
    assert held == ["waited"]


def test_a_machine_without_ray_says_how_to_install_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[cluster\]'"):
        cluster.cluster_hands(store, SweepSpec.model_construct(), [], "auto", 0)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "There is no cluster of Ray at 127.0.0.1:1"),
        ("somewhere", "'somewhere' is no address"),
        ("host:99999", "'host:99999' is no address"),
        (":6379", "':6379' is no address"),
    ],
)
def test_an_address_where_nobody_answers_is_refused_at_once(address: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        cluster._check_address(address, "Start one.")


def test_nothing_of_ray_is_imported_without_a_cluster() -> None:
    code = "import sys, remnant.verbs; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


class Lost(Exception):
    """As Ray reports a machine that is gone."""


class Told(Lost):
    """As Ray reports what a task has raised."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class Clerk:
    """Hands out as Ray does; every task has ended when it is looked at."""

    exceptions = type("exceptions", (), {"RayError": Lost, "RayTaskError": Told})

    def __init__(self, body: Callable[[Order, Any], None]) -> None:
        self.body, self.names, self.most = body, list[str](), 0

    def remote(self, _: object) -> "Clerk":
        return self

    def options(self, **options: Any) -> Any:
        self.names.append(options["name"])
        return type("Task", (), {"remote": staticmethod(lambda *given: partial(self.body, *given))})

    def wait(self, tasks: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        self.most = max(self.most, len(tasks))
        return tasks, []

    def get(self, task: Any) -> None:
        task()


def crew_of(store: Store, clerk: Clerk, sweep: SweepSpec, most: int) -> Hands:
    task = cluster._Task(clerk, order_for(store), Needs(1, 0))
    crew = cluster._Crew(clerk, store, plan(sweep), task, most)
    return Hands(1, crew.busy, crew.stop, lambda: "")


def first_corpora() -> SweepSpec:
    """A sweep that begins with two corpora."""
    data = tomllib.loads(SWEEP)
    (corpus,) = data["corpus"]
    data["corpus"] = [corpus | {"name": "a"}, corpus | {"name": "b", "forget_docs": 7}]
    return parse(SweepSpec, data, "sweep")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Lost("the machine is gone"), "was lost 6 times, last as: the machine is gone"),
        (Told(UserError("It is bad.", "Mend it.")), "It is bad. Mend it."),
        (Told(ValueError("odd\nand more")), "odd"),
    ],
)
def test_a_piece_that_is_lost_is_a_failure_in_words_and_holds_up_what_hangs_on_it(
    store: Store, error: Exception, message: str
) -> None:
    def lose(_: Order, node: Any) -> None:
        raise error

    clerk, sweep = Clerk(lose), first_corpora()
    hands = crew_of(store, clerk, sweep, 9)
    assert hands.busy()
    assert not hands.busy()
    corpora = [n for n in plan(sweep) if n.stage == "prepare"]
    assert clerk.names == [n.name for n in corpora]
    told = failures(store, plan(sweep))
    assert [message in told[n.name]["message"] for n in corpora] == [True, True]


@pytest.mark.parametrize(("most", "together"), [(1, 1), (9, 2)])
def test_no_more_pieces_are_out_than_were_asked_for(store: Store, most: int, together: int) -> None:
    def fail(_: Order, node: Any) -> None:
        raise Lost("gone")

    clerk = Clerk(fail)
    hands = crew_of(store, clerk, first_corpora(), most)
    while hands.busy():
        pass
    assert clerk.most == together


def test_worker_processes_are_hands_too(store: Store) -> None:
    sweep = parse(SweepSpec, tomllib.loads(SWEEP) | {"name": "no"}, "sweep")
    hands = local_hands(store, sweep, 1)
    assert hands.places == 1
    assert hands.busy()
    hands.stop()
    assert not hands.busy()


# With Ray: `make setup-all` installs it.

HEAD = """
import json, os, sys
os.environ["RAY_memory_monitor_refresh_ms"] = "0"
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
print(json.dumps(cluster.address), flush=True)
for line in sys.stdin:
    if line.strip() == "lose":
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        print(json.dumps("lost"), flush=True)
cluster.shutdown()
"""


class TwoMachines:
    """A head without cores and two machines of one core, in a process of their own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", HEAD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.address = self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return str(json.loads(self._process.stdout.readline()))

    def lose_one(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("lose\n")
        self._process.stdin.flush()
        assert self._answer() == "lost"

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


@pytest.fixture
def machines() -> Iterator[TwoMachines]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs Ray")
    found = TwoMachines()
    try:
        yield found
    finally:
        found.close()


def start(folder: Path, store: str, *more: str) -> "subprocess.Popen[str]":
    (folder / "small.toml").write_text(SWEEP)
    command = [sys.executable, "-m", "remnant.cli", "run", "small.toml", "--store", store, *more]
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def ended(process: "subprocess.Popen[str]", code: int, seconds: int = 200) -> str:
    said = process.communicate(timeout=seconds)[0]
    assert process.returncode == code, said
    return said


def begun(store: Path, pattern: str, count: int) -> None:
    """Wait until so many pieces are being made."""
    deadline = time.monotonic() + 100
    while len(list(store.glob(f"partial/{pattern}"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cluster_makes_the_same_files_as_one_machine_even_if_a_machine_is_lost(
    machines: TwoMachines, tmp_path: Path
) -> None:
    there, longer = ("--cluster", machines.address), ("--set", "train.steps=400")
    ended(start(tmp_path, "here", "--workers", "2", *longer), 0)
    said = ended(start(tmp_path, "there", *there, *longer), 0)
    assert "done train" in said
    assert content(tmp_path / "there") == content(tmp_path / "here")
    assert list((tmp_path / "there" / "locks").glob("cluster-*")) == []
    # Both machines train when one of them goes.
    cut = start(tmp_path, "cut", *there, *longer)
    begun(tmp_path / "cut", "train-*/steps.jsonl", 2)
    machines.lose_one()
    assert list((tmp_path / "cut").glob("objects/train-*")) == []
    ended(cut, 0, 400)
    assert content(tmp_path / "cut") == content(tmp_path / "here")
    names = [tmp_path / s / "reports" / "small" / "summary.json" for s in ("here", "there", "cut")]
    assert len({p.read_text() for p in names}) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_saves_what_the_machines_have_begun(machines: TwoMachines, tmp_path: Path) -> None:
    there = ("--cluster", machines.address)
    process = start(tmp_path, "s", *there, "--set", "train.steps=20000")
    begun(tmp_path / "s", "train-*/steps.jsonl", 2)
    process.send_signal(signal.SIGINT)
    said = ended(process, 130, 90)
    assert "The same command goes on." in said
    assert "Traceback" not in said
    assert len(list((tmp_path / "s").glob("partial/train-*/resume.pt"))) == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_piece_that_fails_on_a_machine_is_told_as_here(
    machines: TwoMachines, tmp_path: Path
) -> None:
    process = start(
        tmp_path, "s", "--cluster", machines.address, "--set", "train.architecture=nothing"
    )
    assert "nothing" in ended(process, 2)
