import os
import sys
from importlib.machinery import ModuleSpec

import pytest

from launch.cli import host_memory

ARGV = [sys.executable, "-m", "launch.train", "--workdir=x"]


@pytest.fixture
def starts(monkeypatch, tmp_path):
    """The processes that were started in the place of this one, for a command where huge pages are given on request."""
    starts = []
    monkeypatch.setattr(os, "execve", lambda *start: starts.append(start))
    monkeypatch.setattr(sys, "orig_argv", ARGV)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("launch.train", None))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(host_memory, "WHEN_GIVEN", tmp_path / "enabled")
    host_memory.WHEN_GIVEN.write_text("always [madvise] never")
    return starts


def test_a_command_starts_once_more_with_the_same_arguments_and_huge_pages(starts, monkeypatch):
    host_memory.use_huge_pages()
    ((program, arguments, environment),) = starts
    assert (program, arguments) == (sys.executable, ARGV)
    assert environment == {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    monkeypatch.setenv("GLIBC_TUNABLES", environment["GLIBC_TUNABLES"])  # as after the new start
    host_memory.use_huge_pages()
    assert len(starts) == 1


def test_nothing_starts_again_where_huge_pages_are_always_given_or_unknown(starts):
    host_memory.WHEN_GIVEN.write_text("[always] madvise never")
    host_memory.use_huge_pages()
    host_memory.WHEN_GIVEN.unlink()
    host_memory.use_huge_pages()
    assert starts == []


def test_a_script_that_runs_a_command_inside_is_not_started_again(starts, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "script.py"])
    host_memory.use_huge_pages()
    assert starts == []
