"""Long phases are shown on a terminal, with their time and amount, and short ones are not."""

import contextlib
import io
import os
import subprocess
import sys
import time

import pytest

from janus_jax import phases
from launch.cli import phase_display
from launch.cli.phase_display import show_phases, terminal_line
from tests.helpers import REPOSITORY


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Times a tenth of the usual ones."""
    for name in ("QUIET_SECONDS", "REFRESH_SECONDS", "KEPT_SECONDS"):
        monkeypatch.setattr(phase_display, name, getattr(phase_display, name) / 10)


def screen():
    """A context manager with what is written to stderr."""
    return contextlib.redirect_stderr(io.StringIO())


def test_a_phase_is_shown_while_it_runs_and_only_if_it_takes_long():
    with screen() as written:
        with terminal_line("short", None, ""):
            pass
        with terminal_line("compiling: answer", None, ""):
            time.sleep(0.3)
            assert "compiling: answer: 00:00" in written.getvalue()
        with terminal_line("reading weights", 4_000_000_000, "B") as advance:
            for _ in range(4):
                advance(1_000_000_000)
                time.sleep(0.1)
    assert "short" not in written.getvalue()
    assert "4.00G/4.00G" in written.getvalue()


def test_a_phase_that_fails_ends_its_line():
    with screen(), pytest.raises(ValueError, match="reason"), terminal_line("reading", 1, "B"):
        raise ValueError("reason")


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_shown_without_a_terminal(monkeypatch, terminal):
    shown = []
    monkeypatch.setattr(phases, "show_with", shown.append)
    with screen() as written:
        written.isatty = lambda: terminal
        show_phases()
    assert shown == [terminal_line] * terminal


LISTED = """
import contextlib, os, runpy, sys
from launch.cli import phase_display

@contextlib.contextmanager
def told(name, total, unit):
    print(name, flush=True)
    yield lambda amount: None

os.dup2(os.open(sys.argv.pop(1), os.O_WRONLY), 2)  # stderr is a terminal
phase_display.terminal_line = told
runpy.run_module("launch.evaluate", run_name="__main__", alter_sys=True)
"""


def test_the_evaluation_shows_from_its_start_what_it_opens_and_reads():
    folder, (control, terminal) = REPOSITORY / "tests/data_files/evaluation/data", os.openpty()
    arguments = [os.ttyname(terminal), f"--data={folder}/pope", "--benchmarks=pope", "--list"]
    try:
        shown = subprocess.run(
            [sys.executable, "-c", LISTED, *arguments], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, timeout=60
        )
    finally:
        os.close(terminal)
        os.close(control)
    assert shown.returncode == 0, shown.stdout
    assert shown.stdout.split("\n")[:3] == ["looking for benchmarks", "opening pope", "hashing the files of pope"]
