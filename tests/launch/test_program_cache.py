"""Compiled programs are kept between processes; damage, another machine and a full folder do no harm."""

import os
import subprocess
import sys

import pytest

from launch.cli import program_cache
from launch.cli.program_cache import folder_of_machine, machine, prune
from tests.helpers import REPOSITORY

PROGRAM = """
import sys
from pathlib import Path
from launch.cli import program_cache
program_cache.MIN_COMPILE_SECONDS = 0
program_cache.keep_programs(Path(sys.argv[1]))
import jax, numpy as np
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)
result = jax.jit(lambda x: (x @ x.T).sum() + 1)(np.eye(3, dtype=np.float32))
print(float(result), len(hits))
"""


def run(folder):
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.split()


def test_a_second_process_takes_the_programs_of_the_first_and_damage_is_compiled_again(tmp_path):
    assert run(tmp_path) == ["4.0", "0"]
    assert run(tmp_path) == ["4.0", "1"]
    entries = list(tmp_path.glob("*-cache"))
    assert entries
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:20])
    assert run(tmp_path)[0] == "4.0"


def test_machines_with_other_instructions_have_other_folders(tmp_path, monkeypatch):
    names = []
    for flags in ("fpu avx2", "fpu avx2 avx512f"):
        (tmp_path / "cpuinfo").write_text(f"processor: 0\nmodel name: one\nflags: {flags}\nprocessor: 1\n")
        monkeypatch.setattr(program_cache, "CPU_INFO", str(tmp_path / "cpuinfo"))
        names.append(machine())
    assert len(set(names)) == 2
    monkeypatch.setattr(program_cache, "CPU_INFO", str(tmp_path / "none"))
    assert machine() not in names


def test_the_folder_is_in_the_users_cache_folder_or_the_given_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folder_of_machine(None) == tmp_path / "janus_jax" / "programs" / machine()
    assert folder_of_machine(str(tmp_path / "mine")) == tmp_path / "mine" / machine()


@pytest.mark.parametrize(("limit", "kept"), [(300, {"0", "1", "2"}), (299, {"1", "2"}), (100, {"2"}), (0, set())])
def test_programs_that_were_used_longest_ago_are_removed(tmp_path, limit, kept):
    for number in range(3):
        path = tmp_path / str(number)
        path.write_bytes(bytes(100))
        os.utime(path, (number, number))
    prune(tmp_path, limit)
    assert {path.name for path in tmp_path.iterdir()} == kept
