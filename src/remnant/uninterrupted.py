"""Work that Ctrl-C may not cut in two. No torch."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C, and a signal that ends the process, until the end of the context.

    For what must be done whole or not at all, as weights that are moved one after the other, and
    is over soon. The signal is dealt with behind it as it would have been. Signals reach the main
    thread only, so nothing is held back in another one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, Any]] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # What is no function of Python (ignored, the system's own, another language's) stays.
    held = [number for number, handler in before.items() if callable(handler)]
    for number in held:
        signal.signal(number, lambda *given: came.append(given))
    try:
        yield
    finally:
        for number in held:
            signal.signal(number, before[number])
        for first, frame in came[:1]:
            handler = before[signal.Signals(first)]
            assert callable(handler)
            handler(first, frame)
