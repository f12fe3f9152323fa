"""Which time limits end a process, with its message and exit code, and which of them a run does not exceed."""

import json
import queue
import subprocess
import sys
import time

import pytest

from janus_jax.training.resilience.exit_codes import RESTART
from janus_jax.training.resilience.watchdog import Watchdog
from tests.helpers import REPOSITORY

# Each case is a run: the limits of the watchdog, what the run does, and what must come of it. `before` is the time
# until the end of a step, `after` the time after it, at the end of which the process has not been closed.
CASES = {
    "steps that no longer end": (
        dict(before=0),
        "error: no step has ended for 0.5 s after step 6",
    ),
    "a first step that does not end": (
        dict(start=0.5, seconds=1800, before=60),
        "error: no first step has ended 0.5 s after the start (--start_timeout)",
    ),
    "a step that does not end once the run is asked to stop": (
        dict(seconds=1800, stopping=True, before=0),
        "error: asked to stop, but no step has ended for 0.5 s after step 6",
    ),
    "a last save that does not end": (
        dict(start=0.5, seconds=1800, before=0, ending=True),
        "error: no end of saving 0.5 s after step 6 (--start_timeout): ",
    ),
    "a first step that compiles, and work after the run": (dict(before=1.5, closed=True, after=1.5), None),
    "a last save that takes longer than a step, also when asked to stop": (
        dict(stopping=True, before=0, ending=True, after=1.5),
        None,
    ),
}
# Runs all cases at the same time, each in a fork, since importing takes longer than all of them.
PROGRAM = """
import json, os, sys, tempfile, time
from janus_jax.training.resilience.watchdog import Watchdog

def run(before, start=1800, seconds=0.5, stopping=False, ending=False, closed=False, after=60):
    watchdog = Watchdog(start, seconds, lambda: stopping, 0.5)
    time.sleep(before)
    watchdog.step_ended(6)
    if ending:
        watchdog.run_ends()
    if closed:
        watchdog.close()
    time.sleep(after)

children = []
for case in json.loads(sys.argv[1]):
    file = tempfile.TemporaryFile("w+")
    child = os.fork()
    if not child:
        os.dup2(file.fileno(), 2)
        run(**case)
        os._exit(0)
    children.append((child, file))
results = []
for child, file in children:
    _, status = os.waitpid(child, 0)
    file.seek(0)
    results.append((os.waitstatus_to_exitcode(status), file.read()))
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results():
    """Exit code and stderr of each case."""
    cases = json.dumps([case for case, _ in CASES.values()])
    command = [sys.executable, "-c", PROGRAM, cases]
    output = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True, cwd=REPOSITORY).stdout
    return dict(zip(CASES, json.loads(output), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_process_ends_when_a_limit_is_exceeded_and_only_then(results, name):
    message = CASES[name][1]
    code, errors = results[name]
    if message is None:
        assert (code, errors) == (0, "")
    else:
        assert code == RESTART and message in errors


def test_a_process_that_the_others_need_ends_later(monkeypatch):
    ends = queue.Queue()
    monkeypatch.setattr(Watchdog, "end", lambda self, reason: ends.put(time.monotonic()))
    for start, step, stopping, message in (
        (0.2, 1800, False, "a start"),
        (1800, 0.2, False, "a step"),
        (1800, 1800, True, "a stop"),
        (0.2, 1800, False, "a last save"),
    ):
        begin = time.monotonic()
        watchdog = Watchdog(start, step, lambda stopping=stopping: stopping, 0.2, patience=0.4)
        try:
            if message != "a start":
                watchdog.step_ended(6)
            if message == "a last save":
                watchdog.run_ends()
            assert ends.get(timeout=30) - begin > 0.6, message
        finally:
            watchdog.close()
        while not ends.empty():
            ends.get()
