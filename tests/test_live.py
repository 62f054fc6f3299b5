"""`remnant view`: what it shows of a store, to whom, and that it serves nothing else."""

import errno
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import CliRunner

from remnant import api
from remnant.cli import main
from remnant.errors import UserError
from remnant.flow.plan import prepare_node
from remnant.flow.store import FAILURE, Store, write_progress
from remnant.records import AuditSpec, PrepareSpec
from remnant.report import live, runs
from remnant.report.live import HOST, Server, Watched, serving
from remnant.report.table import Results
from tests.test_account import MARKER, audited, listed, sealed, store
from tests.test_front import HOSTILE, Tags

__all__ = ["store"]
RUN = "a run"
NEXT = "unlearn-" + "0" * 16


def audit_of(store: Store, found: Results) -> str:
    """The audit of a run as an artefact; its name."""
    (group,) = found.groups
    files = {
        "cells.json": listed(group.cells), "recovery.json": listed(group.recoveries),
        "verdicts.json": listed(group.verdicts), "evidence.json": listed(group.evidence),
    }  # fmt: skip
    members = {f"{v.model}/{v.form}": v for v in found.labels.values()}
    inputs = {
        f"{found.labels[name].model}/{found.labels[name].form}": name for name in found.labels
    }
    spec = AuditSpec(members=members).model_dump(mode="json")
    said = {"auc_retrain": 0.5, "outcomes": {}}
    return sealed(store, "audit", inputs, files, spec=spec, summary=said)


def named(store: Store, name: str, title: str, *pieces: str) -> None:
    """A run under its name, of which some pieces may be there."""
    sweep = {"name": "made", "title": title, "corpus": [{"lab": "news"}], "unlearn": []}
    listed = [{"name": piece, "stage": piece.partition("-")[0]} for piece in pieces]
    store.label(name, {"sweep": sweep, "pieces": listed})


@pytest.fixture
def full(store: Store) -> Store:
    return filled(store)


def filled(store: Store) -> Store:
    """A store with a run whose audit is done and whose next piece is being made."""
    named(store, RUN, "A run", audit_of(store, audited(store)), NEXT)
    doing(store, 3)
    return store


def doing(store: Store, done: int) -> None:
    store.scratch(NEXT).mkdir(exist_ok=True)
    write_progress(store.scratch(NEXT), done, 9, "loss 1.5")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = Store(tmp_path_factory.mktemp("served") / "store").open()
    with serving(filled(place), 0) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def asked(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    """What comes back, without a proxy or anything else that mends a path."""
    line = http.client.HTTPConnection(HOST, server.server_address[1], timeout=60)
    line.putrequest(method, path, skip_host=True)
    given = {"Host": f"{HOST}:{server.server_address[1]}"} | headers
    for name, value in given.items():
        line.putheader(name, value)
    line.endheaders()
    answer = line.getresponse()
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    return answer.status, answer.read().decode()


def test_a_run_is_told_with_its_progress_and_what_was_found(server: Server) -> None:
    status, shown = asked(server, "/")
    assert status == 200
    for told in (
        "A run", "1 of 2 pieces are done", "3 of 9", "loss 1.5", "Not gone. Of 12 forms",
        "came back", 'href="/report/a%20run"', "as far as it is",
    ):  # fmt: skip
        assert told in shown
    status, report = asked(server, "/report/a%20run")
    assert status == 200
    assert "What is not claimed" in report
    assert MARKER not in shown + report


def test_what_is_made_is_seen_and_what_ends_is_no_longer(full: Store) -> None:
    watched = Watched(full)
    assert "3 of 9" in watched.now()
    doing(full, 5)
    assert "5 of 9" in watched.now()
    assert "about" in watched.now()
    progress = full.scratch(NEXT) / "progress.json"
    progress.write_text(json.dumps(json.loads(progress.read_text()) | {"time": 0.0}))
    assert "nobody is making the rest" in watched.now()
    (full.scratch(NEXT) / FAILURE).write_text(json.dumps({"message": "no <b>", "traceback": ""}))
    assert "no &lt;b&gt;" in watched.now()


def test_looks_that_take_long_are_made_seldom(full: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    watched, spent = Watched(full), itertools.count()
    monkeypatch.setattr(time, "thread_time", lambda: next(spent) / 2)
    first = watched.now()
    doing(full, 7)
    assert watched.now() == first
    later = time.monotonic() + 0.5 / live.BUSY
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert "7 of 9" in watched.now()


def test_a_report_is_made_anew_only_where_something_was_finished(
    full: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Results] = []

    def rendered(results: Results, _: Store) -> str:
        made.append(results)
        return "page"

    monkeypatch.setattr(live, "rendered", rendered)
    watched = Watched(full)
    assert [watched.report(RUN), watched.report(RUN)] == ["page", "page"]
    assert len(made) == 1
    name = sealed(full, "train", {}, {})
    named(full, RUN, "A run", name, *[p.name for p in runs.kept(full, RUN).pieces])
    watched.report(RUN)
    assert len(made) == 2


def test_an_audit_by_itself_and_single_commands_are_shown_too(store: Store) -> None:
    found = audited(store)
    name = audit_of(store, found)
    doing(store, 2)
    shown = Watched(store).now()
    assert name in shown
    assert "9 of 9 pieces are done" in shown
    assert "Single commands" in shown
    assert f"{NEXT}: 2 of 9" in shown
    kept = runs.kept(store, name)
    again = runs.collected(store, kept).groups[0]
    assert again.verdicts == found.groups[0].verdicts
    assert {p.label.model for p in kept.pieces} - {""} == {v.model for v in found.labels.values()}


def test_the_report_of_an_audit_is_written_again_by_its_name(store: Store, tmp_path: Path) -> None:
    name = audit_of(store, audited(store))
    given = ["report", name, "--store", str(store.root), "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(main, given).exit_code == 0
    assert MARKER not in (tmp_path / "out" / "report.html").read_text()


def test_a_store_that_is_taken_away_is_told_in_words(full: Store) -> None:
    watched = Watched(full)
    shutil.rmtree(full.root)
    found = live.answer(watched, "/now")
    assert "Nothing is here yet" in found.body or found.status == 404


def test_a_run_that_cannot_be_read_does_not_hide_the_others(full: Store) -> None:
    (full.root / "names" / "spoilt.json").write_text("{")
    (full.root / "names" / "strange.json").write_text("[1]")
    shown = Watched(full).now()
    assert "spoilt cannot be shown" in shown
    assert "strange cannot be shown" in shown
    assert "1 of 2 pieces are done" in shown


def test_what_is_no_text_does_not_take_the_page_down(server: Server) -> None:
    root = server.watched.store.root
    odd = Path(os.fsdecode(os.fsencode(root / "names") + b"/no\xff text.json"))
    odd.write_text("{")
    alone = server.watched.store.scratch("unlearn-" + "1" * 16)
    alone.mkdir()
    write_progress(alone, 1, 9, "loss \ud800")
    try:
        for path in ("/", "/now"):
            status, shown = asked(server, path)
            assert status == 200
            assert "no? text cannot be shown" in shown
            assert "loss ?" in shown
            assert "1 of 2 pieces are done" in shown
        assert asked(server, "/report/no%ff%20text")[0] == 404
        assert asked(server, "/report/no%ed%b3%bf%20text")[0] == 404
    finally:
        odd.unlink()
        shutil.rmtree(alone)


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd", "/report/../../../etc/passwd", "/report/..%2f..%2fnames%2fa%20run",
        "/report/%2e%2e/%2e%2e/secret", "/report//etc/passwd", "/report/", "/objects/", "/names",
        "/report/a%20run%00", "/report/a%20run/../..", "//etc/passwd", "/view.js/..", "/now/x",
        "http://elsewhere/objects", "/report/%ff%fe", "/\\..\\secret",
    ],
)  # fmt: skip
def test_no_path_leads_to_a_file(server: Server, path: str) -> None:
    (server.watched.store.root / "secret").write_text(MARKER)
    status, shown = asked(server, path)
    assert status == 404
    assert MARKER not in shown
    assert "root:" not in shown


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "[::1]:{port}"]
)
def test_another_name_that_leads_here_is_refused(server: Server, host: str) -> None:
    port = server.server_address[1]
    status, shown = asked(server, "/", Host=host.format(port=port))
    assert status == 403
    assert "A run" not in shown
    assert asked(server, "/now", Host=f"localhost:{port}")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(server: Server, method: str) -> None:
    line = http.client.HTTPConnection(HOST, server.server_address[1], timeout=60)
    line.request(method, "/now", body="x")
    assert line.getresponse().status == 501
    assert asked(server, "/now", "HEAD") == (200, "")


@pytest.mark.parametrize("text", [h for h in HOSTILE if h])
def test_no_word_of_a_user_runs_on_the_page(full: Store, text: str) -> None:
    name = text.replace("/", "|").replace("\\", "|")
    named(full, name, text, NEXT)
    write_progress(full.scratch(NEXT), 1, 9, text)
    (full.scratch(NEXT) / FAILURE).write_text(json.dumps({"message": text, "traceback": text}))
    shown = Watched(full).page()
    tags = Tags()
    tags.feed(shown)
    assert shown.count("<script") == 1
    assert not tags.found & {"img", "iframe", "svg"}
    assert not tags.handlers
    assert quote(name, safe="") in shown or text == name


def test_it_listens_on_this_machine_alone(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.2", server.server_address[1])) == errno.ECONNREFUSED


def test_a_port_that_is_taken_is_told_in_words(full: Store) -> None:
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"Port {port} .* taken.*--port 0"):
            serving(full, port)
        given = ["view", "--store", str(full.root), "--port", str(port)]
        done = CliRunner().invoke(main, given)
    assert done.exit_code == 2
    assert done.exception is None or isinstance(done.exception, SystemExit)


def test_ctrl_c_ends_it_cleanly(full: Store) -> None:
    command = [sys.executable, "-m", "remnant", "view", "--store", str(full.root), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = process.stdout.readline().decode()
        address = re.search(r"http://127\.0\.0\.1:(\d+)/", said)
        assert address
        assert int(address[1]) > 0
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"Stopped" in out
    assert err == b""


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["view", "--store", str(tmp_path / "none")])
    assert done.exit_code == 2
    assert "There is no store" in done.output
    assert not (tmp_path / "none").exists()


class Advancing(Watched):
    """A store in which something is done at every look."""

    looks = 0

    def now(self) -> str:
        self.looks += 1
        doing(self.store, min(self.looks, 9))
        return super().now()


@pytest.mark.skipif(
    shutil.which("chromium") is None, reason="Chromium is not installed (apt-get install chromium)"
)
def test_the_page_follows_in_a_real_browser(server: Server, tmp_path: Path) -> None:
    server.watched = Advancing(server.watched.store)
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--no-proxy-server", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
        "--virtual-time-budget=9000", "--dump-dom", f"http://{HOST}:{server.server_address[1]}/",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    shown = re.search(r"(\d) of 9", done.stdout)
    assert shown
    assert int(shown[1]) > 1
    assert done.stdout.count("<section") == 1


def test_a_single_command_says_in_the_store_how_far_it_is(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[Path, int, int, str]] = []
    monkeypatch.setattr("remnant.flow.run.write_progress", lambda *state: said.append(state))
    spec = PrepareSpec(lab="news", forget_docs=3, retain_docs=4, holdout_docs=3, vocab_size=300)
    node = prepare_node(spec)
    api.done(store, [node], progress=False)
    assert {state[0] for state in said} == {store.scratch(node.name)}
