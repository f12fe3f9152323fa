"""Ends a process that cannot wait for its own threads."""

import multiprocessing
import os
import sys
from typing import NoReturn

RESTART = 75  # EX_TEMPFAIL, the exit code of what the same command may get over: a lost host, a bucket that fails


def end_at_once(code: int) -> NoReturn:
    """Ends this process and its worker processes without closing anything, where a thread or a worker may hang."""
    for worker in multiprocessing.active_children():
        worker.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
