import queue
import subprocess
import sys
import time

from janus_jax.process_end import RESTART
from janus_jax.training.watchdog import Watchdog

PROGRAM = """
import time
from janus_jax.training.watchdog import Watchdog
watchdog = Watchdog({seconds}, lambda: {stopping}, 0.5)
time.sleep({before})
watchdog.step_ended(6)
if {closed}:
    watchdog.close()
time.sleep(60 if not {closed} else 1.5)
"""


def run(seconds=0.5, stopping=False, **fields):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(seconds=seconds, stopping=stopping, **fields)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_a_process_whose_steps_no_longer_end_says_so_and_ends():
    result = run(before=0, closed=False)
    assert result.returncode == RESTART
    assert "error: no step has ended for 0.5 s after step 6" in result.stderr


def test_a_process_that_was_asked_to_stop_waits_less_for_its_steps():
    result = run(seconds=1800, stopping=True, before=0, closed=False)
    assert result.returncode == RESTART
    assert "asked to stop, but no step has ended for 0.5 s after step 6" in result.stderr


def test_the_first_step_may_compile_and_what_follows_the_last_step_may_take_time():
    result = run(before=1.5, closed=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_process_that_the_others_need_ends_later(monkeypatch):
    ends = queue.Queue()
    monkeypatch.setattr(Watchdog, "_end", lambda self, reason: ends.put(time.monotonic()))
    for stopping, message in ((False, "a step"), (True, "a stop")):
        watchdog = Watchdog(0.2 if not stopping else 1800, lambda stopping=stopping: stopping, 0.2, patience=0.7)
        begin = time.monotonic()
        watchdog.step_ended(6)
        assert ends.get(timeout=30) - begin > 0.9, message
        watchdog.close()
        while not ends.empty():
            ends.get()
