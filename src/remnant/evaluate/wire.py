"""One request to a server: one answer within a given time and size, or the reason why there is
none. No torch.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx

# Log-probabilities of two thousand echoed tokens are less than a megabyte; a model's answer is far
# less.
LONGEST_BODY = 32 * 2**20


class Reply(NamedTuple):
    """What a server sent: the status, the headers and the whole body."""

    status: int
    headers: httpx.Headers
    body: bytes


class Unanswered(Exception):
    """A request without a whole answer: the words say why; asking again may help."""


class Guard:
    """Cuts the connections of one request when its time is over, also while the server goes on to
    send a byte now and then.

    A read of httpx ends when nothing arrives for a while, never because the whole takes too long;
    so the sockets are shut from outside.
    """

    def __init__(self, seconds: float) -> None:
        self.over = False
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self.cut)
        self._timer.daemon = True

    def __enter__(self) -> "Guard":
        self._timer.start()
        return self

    def __exit__(self, *anything: object) -> None:
        self._timer.cancel()

    def seen(self, event: str, info: dict[str, Any]) -> None:
        """Remember, as a trace of httpx, the socket of every connection that is made."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            made = info["return_value"].get_extra_info("socket")
            if isinstance(made, socket.socket):
                with self._lock:
                    self._sockets.append(made)
                    late = self.over
                if late:
                    self.cut()

    def cut(self) -> None:
        """Shut the connections; whoever reads from them gets an error at once."""
        with self._lock:
            self.over = True
            for made in self._sockets:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(made, socket.SHUT_RDWR)


class Line:
    """A server's address with what is needed to ask it.

    Args:
        address: the full address that requests are sent to, without a query.
        query: the query that is sent with every request.
        key: the key that is sent with every request; empty for none.
        seconds: a request ends after so long, whatever arrives.
    """

    def __init__(self, address: str, query: str, key: str, seconds: float) -> None:
        self._url = httpx.URL(address, query=query.encode()) if query else httpx.URL(address)
        self._seconds = seconds
        self._open: set[Guard] = set()
        self._hung_up = False
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        # A connection for every request: only a new one tells its socket, and a kept one may be
        # dead.
        self._client = httpx.Client(
            headers=headers, timeout=seconds, limits=httpx.Limits(max_keepalive_connections=0)
        )

    def ask(self, content: bytes) -> Reply:
        """Post a body; raises Unanswered. Redirects are not followed."""
        with self._guarded() as guard:
            if self._hung_up:
                raise Unanswered("it is not asked any more")
            try:
                with self._client.stream(
                    "POST", self._url, content=content, extensions={"trace": guard.seen}
                ) as reply:
                    return Reply(reply.status_code, reply.headers, self._body(reply, guard))
            except (httpx.HTTPError, httpx.StreamError, OSError) as error:
                if guard.over:
                    raise Unanswered(
                        f"it sent no whole answer within {self._seconds:g} s"
                    ) from error
                raise Unanswered(f"it cannot be reached ({type(error).__name__})") from error

    def hang_up(self) -> None:
        """End all requests that are on their way, and begin none."""
        self._hung_up = True
        for guard in list(self._open):
            guard.cut()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[Guard]:
        with Guard(self._seconds) as guard:
            self._open.add(guard)
            try:
                yield guard
            finally:
                self._open.discard(guard)

    def _body(self, reply: httpx.Response, guard: Guard) -> bytes:
        parts: list[bytes] = []
        size, end = 0, time.monotonic() + self._seconds
        for part in reply.iter_bytes():
            size += len(part)
            parts.append(part)
            if size > LONGEST_BODY:
                raise Unanswered(f"its answer is longer than {LONGEST_BODY // 2**20} MiB")
            if guard.over or time.monotonic() > end:
                raise Unanswered(f"it sent no whole answer within {self._seconds:g} s")
        if guard.over:
            raise Unanswered(f"it sent no whole answer within {self._seconds:g} s")
        return b"".join(parts)
