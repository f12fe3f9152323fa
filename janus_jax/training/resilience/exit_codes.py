"""Exit codes of a run, and the end of a process that cannot wait for its own threads."""

import multiprocessing
import os
import sys
from typing import NoReturn

RESTART = 75  # EX_TEMPFAIL: the same command may succeed when started again, as after a lost host or a failing bucket


def end_at_once(code: int) -> NoReturn:
    """Ends this process and its worker processes without closing anything, since a thread or a worker may hang."""
    for worker in multiprocessing.active_children():
        worker.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
