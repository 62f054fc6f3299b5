"""`remnant view`: the runs of a store as a page on this machine alone, which follows them while
they go.

No file is served by its path: a page is made of the runs that the store names, and what an address
asks for is one of these names or nothing.
"""

import errno
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from remnant.errors import UserError, first_line
from remnant.flow.progress import Paces
from remnant.flow.store import Store
from remnant.report import runs, terminal
from remnant.report.notebook import environment
from remnant.report.page import rendered
from remnant.report.runs import Found, Kept, Run

HOST = "127.0.0.1"
REPORT = "/report/"
# Nothing but this page's own script and style, and nothing of it inside another page.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self'; "
    "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
# A look at thousands of pieces takes half a second of processor; of such looks are made so many
# that they take this share of a core, which the runs need.
QUICK, BUSY = 0.1, 0.05
# Ports that a system keeps for itself, or that somebody else has.
REFUSED = {
    errno.EADDRINUSE: "is taken by another program",
    errno.EACCES: "is kept by the system for its own programs",
}


class Answer(NamedTuple):
    """What is sent back."""

    status: HTTPStatus
    kind: str
    body: str


class Watched:
    """A store as it is looked at again and again: what takes long is made anew only where
    something was finished since.

    Args:
        store: an opened store.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._looking, self._writing = threading.Lock(), threading.Lock()
        self._last, self._again = "", 0.0
        self._paces = Paces()
        self._found: dict[str, tuple[frozenset[str], Found]] = {}
        self._reports: dict[str, tuple[frozenset[str], str]] = {}

    def page(self) -> str:
        """The page that follows the store."""
        return self._shown("view.html.j2", root=str(self.store.root), now=self.now())

    def now(self) -> str:
        """What changes of it."""
        with self._looking:
            if time.monotonic() < self._again:
                return self._last
            begun = time.thread_time()
            self._last = self._look()
            took = time.thread_time() - begun
            self._again = time.monotonic() + (took / BUSY if took > QUICK else 0.0)
            return self._last

    def _look(self) -> str:
        names, known = runs.every(self.store)
        found = [self._run(name) for name in names]
        alone = runs.single(self.store, known, self._paces.left)
        # What goes on first; then by name, as they come.
        found.sort(key=lambda run: not run.going)
        return self._shown("runs.html.j2", runs=found, alone=alone, place=REPORT)

    def report(self, name: str) -> str:
        """The report of a run as far as it is.

        Raises:
            UserError: there is no such run, or it is damaged.
        """
        with self._writing:
            run = runs.kept(self.store, name)
            done = frozenset(p.name for p in run.pieces if self.store.has(p.name))
            before = self._reports.get(name)
            if before is None or before[0] != done:
                text = rendered(runs.collected(self.store, run), self.store)
                self._reports[name] = before = (done, text)
            return before[1]

    def _run(self, name: str) -> Run:
        found = runs.look(self.store, name, lambda run: self._of(name, run), self._paces.left)
        # A file's name may be no text; such a run is shown, and has no address.
        return found._replace(name=_encoded(name).decode())

    def _of(self, name: str, run: Kept) -> Found:
        done = runs.judged(self.store, run)
        before = self._found.get(name)
        if before is None or before[0] != done:
            self._found[name] = before = (done, runs.found_of(self.store, run))
        return before[1]

    @staticmethod
    def _shown(template: str, **values: object) -> str:
        return environment().get_template(template).render(**values)


def _encoded(text: str) -> bytes:
    r"""A text as it is sent; of halves of a character, from names of files or from JSON, a "?".

    >>> _encoded("\udcff")
    b'?'
    """
    return text.encode(errors="replace")


def answer(watched: Watched, path: str) -> Answer:
    """What an address of the page shows.

    Args:
        watched: the store.
        path: of the address, as it was sent.
    """
    place = unquote(urlsplit(path).path)
    shown: dict[str, tuple[str, Callable[[], str]]] = {
        "/": ("text/html", watched.page),
        "/now": ("text/html", watched.now),
        "/view.js": ("text/javascript", script),
    }
    if place.startswith(REPORT):
        shown[place] = "text/html", lambda: watched.report(place.removeprefix(REPORT))
    if place not in shown:
        return Answer(HTTPStatus.NOT_FOUND, "text/plain", "There is no such page.")
    kind, made = shown[place]
    try:
        return Answer(HTTPStatus.OK, kind, made())
    except (UserError, OSError, ValueError) as error:
        # No such run, one that is damaged, or a store that was taken away.
        return Answer(HTTPStatus.NOT_FOUND, "text/plain", first_line(error))


def script() -> str:
    """The page's script."""
    return (resources.files("remnant") / "report" / "view.js").read_text(encoding="utf-8")


class Server(ThreadingHTTPServer):
    """Answers on loopback alone.

    Args:
        watched: the store.
        port: 0 for any that is free.
    """

    daemon_threads = True

    def __init__(self, watched: Watched, port: int) -> None:
        self.watched = watched
        super().__init__((HOST, port), Handler)

    @property
    def hosts(self) -> frozenset[str]:
        """The names under which a browser on this machine asks."""
        port = self.server_address[1]
        return frozenset(f"{name}:{port}" for name in (HOST, "localhost"))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away in the middle of an answer is no fault."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    # Seconds for a request to arrive.
    timeout = 60

    def do_GET(self) -> None:
        """Answer, if the request is for this page and not for another name that leads here."""
        if self.headers.get("Host", "") not in self.server.hosts:
            # A page from elsewhere whose name was pointed at this machine (DNS rebinding).
            said = f"This page is at http://{HOST}:{self.server.server_address[1]}/ only."
            return self._send(Answer(HTTPStatus.FORBIDDEN, "text/plain", said))
        self._send(answer(self.server.watched, self.path))

    do_HEAD = do_GET

    def _send(self, found: Answer) -> None:
        body = _encoded(found.body)
        self.send_response(found.status)
        self.send_header("Content-Type", f"{found.kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        """Nothing of the versions that answer."""
        return "remnant"

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads a line for every second of a page."""


def serving(store: Store, port: int) -> Server:
    """A server that is ready to answer.

    Raises:
        UserError: the port cannot be had.
    """
    try:
        return Server(Watched(store), port)
    except OSError as error:
        why = REFUSED.get(error.errno or 0, f"cannot be had ({error.strerror})")
        raise UserError(
            f"Port {port} of this machine {why}.", "--port 0 takes one that is free."
        ) from error


def show(store: Store, port: int) -> None:
    """Serve a store's runs until Ctrl-C."""
    screen = terminal.console()
    with serving(store, port) as server:
        address = f"http://{HOST}:{server.server_address[1]}/"
        try:
            screen.print(f"The runs of {store.root}: {address} (Ctrl-C ends it)", markup=False)
            server.serve_forever()
        except KeyboardInterrupt:
            screen.print("Stopped. What runs goes on.")
