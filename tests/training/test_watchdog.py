import queue
import subprocess
import sys
import time

from janus_jax.training.resilience.exit_codes import RESTART
from janus_jax.training.resilience.watchdog import Watchdog

PROGRAM = """
import time
from janus_jax.training.resilience.watchdog import Watchdog
watchdog = Watchdog({start}, {seconds}, lambda: {stopping}, 0.5)
time.sleep({before})
watchdog.step_ended(6)
if {ending}:
    watchdog.run_ends()
if {closed}:
    watchdog.close()
time.sleep({after} if not {closed} else 1.5)
"""


def run(start=1800, seconds=0.5, stopping=False, ending=False, after=60, **fields):
    fields |= {"start": start, "seconds": seconds, "stopping": stopping, "ending": ending, "after": after}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(**fields)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_a_process_whose_steps_no_longer_end_says_so_and_ends():
    result = run(before=0, closed=False)
    assert result.returncode == RESTART
    assert "error: no step has ended for 0.5 s after step 6" in result.stderr


def test_a_process_whose_first_step_does_not_end_says_so_and_ends():
    result = run(start=0.5, seconds=1800, before=60, closed=False)
    assert result.returncode == RESTART
    assert "error: no first step has ended 0.5 s after the start (--start_timeout)" in result.stderr


def test_a_process_that_was_asked_to_stop_waits_less_for_its_steps():
    result = run(seconds=1800, stopping=True, before=0, closed=False)
    assert result.returncode == RESTART
    assert "asked to stop, but no step has ended for 0.5 s after step 6" in result.stderr


def test_the_first_step_may_compile_and_what_follows_the_last_step_may_take_time():
    result = run(before=1.5, closed=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_process_whose_last_save_does_not_end_says_so_and_ends():
    result = run(start=0.5, seconds=1800, before=0, ending=True, closed=False)
    assert result.returncode == RESTART
    assert "error: no end of saving 0.5 s after step 6 (--start_timeout): " in result.stderr


def test_a_last_save_may_take_longer_than_a_step_also_when_asked_to_stop():
    result = run(seconds=0.5, stopping=True, before=0, ending=True, after=1.5, closed=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_process_that_the_others_need_ends_later(monkeypatch):
    ends = queue.Queue()
    monkeypatch.setattr(Watchdog, "_end", lambda self, reason: ends.put(time.monotonic()))
    for start, step, stopping, message in (
        (0.2, 1800, False, "a start"),
        (1800, 0.2, False, "a step"),
        (1800, 1800, True, "a stop"),
        (0.2, 1800, False, "a last save"),
    ):
        watchdog = Watchdog(start, step, lambda stopping=stopping: stopping, 0.2, patience=0.7)
        begin = time.monotonic()
        if message != "a start":
            watchdog.step_ended(6)
        if message == "a last save":
            watchdog.run_ends()
        assert ends.get(timeout=30) - begin > 0.9, message
        watchdog.close()
        while not ends.empty():
            ends.get()
