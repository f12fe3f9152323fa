"""Shows how far work has come that other processes do in parts."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import tqdm

REPORT_SECONDS = 1.0


@contextmanager
def shown_progress(done: Callable[[], tuple[int, int]], total: int) -> Iterator[None]:
    """While the block runs, shows a bar on a terminal, otherwise a line whenever a part is finished.

    Args:
        done: Returns (finished parts, samples read).
        total: Number of parts.
    """
    stop = threading.Event()
    watcher = threading.Thread(target=_show, args=(done, total, stop))
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def _show(done: Callable[[], tuple[int, int]], total: int, stop: threading.Event) -> None:
    shown = -1
    with tqdm.tqdm(total=total, unit="part", disable=not sys.stderr.isatty()) as bar:
        while True:
            last = stop.wait(REPORT_SECONDS)
            parts, samples = done()
            bar.set_postfix_str(f"{samples:,} samples", refresh=False)
            bar.update(parts - bar.n)
            if bar.disable and parts != shown:
                print(f"{parts}/{total} parts, {samples:,} samples read", flush=True)
            shown = parts
            if last:
                return
