"""Lines on stderr that say what is being compiled and that it still is, since a compilation takes minutes."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

EVERY_SECONDS = 60.0


@contextlib.contextmanager
def compiling(what: str, advice: str = "") -> Iterator[None]:
    """Says what is compiled, and then every minute how long it has taken so far, after five minutes with advice."""
    tell(f"compiling {what}: 1 to 5 minutes for most programs")
    done, start = threading.Event(), time.monotonic()

    def remind() -> None:
        while not done.wait(EVERY_SECONDS):
            minutes = (time.monotonic() - start) / 60
            tell(f"still compiling after {minutes:.0f} min{advice if minutes > 5 else ''}")

    reminder = threading.Thread(target=remind, daemon=True)
    reminder.start()
    try:
        yield
    finally:
        done.set()
        reminder.join()


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
