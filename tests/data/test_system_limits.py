import resource
import shutil
from types import SimpleNamespace

import pytest

from janus_jax.data import system_limits
from janus_jax.data.system_limits import OTHER_FILES, require_open_files, require_shared_memory
from janus_jax.errors import UserError


def test_too_little_shared_memory_is_refused_with_both_sizes_and_what_helps(monkeypatch, tmp_path):
    monkeypatch.setattr(system_limits, "SHARED_MEMORY", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=63 << 20))
    require_shared_memory(63 << 20, workers=2)
    with pytest.raises(UserError, match=r"data\.workers=2 .* 65\.0 MiB .* 63\.0 MiB .*--shm-size=128m"):
        require_shared_memory(65 << 20, workers=2)
    monkeypatch.setattr(system_limits, "SHARED_MEMORY", str(tmp_path / "not Linux"))
    require_shared_memory(1 << 60, workers=2)


@pytest.fixture
def limits(monkeypatch):
    """(soft, hard) limit of open files, as the process has them now."""
    now = [1024, 4096]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: tuple(now))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, new: now.__setitem__(slice(2), new))
    return now


def test_the_limit_of_open_files_is_raised_as_far_as_the_system_allows(limits):
    require_open_files(1024 - OTHER_FILES)
    assert limits == [1024, 4096]
    require_open_files(3000)
    assert limits == [3000 + OTHER_FILES, 4096]
    with pytest.raises(UserError, match=r"5000 files .* need 5256 .* is 4096.*ulimit -n 5256"):
        require_open_files(5000)


def test_a_process_without_a_limit_of_open_files_keeps_none(limits):
    limits[:] = [resource.RLIM_INFINITY] * 2
    require_open_files(10**9)
    assert limits == [resource.RLIM_INFINITY] * 2
