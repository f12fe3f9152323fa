"""What is free for a process: the memory of the machine, and what the limits of its control groups leave."""

from types import SimpleNamespace

import jax
import pytest

from janus_jax.free_memory import free_bytes, free_host_bytes, total_bytes


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {}, 8_000 * 1024),  # no limit anywhere
        ("0::/job/part", {"job/part/memory.max": "max", "job/memory.max": "3000000"}, 3_000_000 - 1_000_000 + 700_000),
        ("0::/", {"memory.max": "90000000"}, 8_000 * 1024),  # more than the machine has
        ("0::/", {"memory.max": "1100000"}, 1_100_000 - 1_000_000 + 700_000),
        ("4:memory:/job\n0::/", {"memory/memory.limit_in_bytes": "2000000"}, 2_000_000 - 1_500_000 + 700_000),
    ],
    ids=["none", "of a group around", "large", "version 2", "version 1"],
)
def test_a_cpu_has_what_the_machine_and_the_limits_of_its_groups_leave(groups, files, expected, tmp_path, monkeypatch):
    """Without 700000 bytes of files, which the kernel gives back."""
    monkeypatch.setattr("janus_jax.free_memory.PROC", tmp_path / "proc")
    monkeypatch.setattr("janus_jax.free_memory.CGROUPS", tmp_path / "groups")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text(groups + "\n")
    for name, limit in files.items():
        folder = (tmp_path / "groups" / name).parent
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(limit + "\n")
        (folder / "memory.current").write_text("1000000\n")
        (folder / "memory.usage_in_bytes").write_text("1500000\n")
        (folder / "memory.stat").write_text("anon 5\ninactive_file 500000\nactive_file 200000\n")
    (cpu,) = jax.local_devices()[:1]
    assert free_bytes([cpu]) == free_host_bytes() == expected
    limits = [int(limit) for limit in files.values() if limit != "max"]
    assert total_bytes([cpu, cpu]) == min([9_000 * 1024, *limits]) // 2  # two devices share the host


def test_an_accelerator_has_what_it_reports():
    def device(**stats):
        return SimpleNamespace(platform="gpu", memory_stats=lambda: stats)

    assert total_bytes([device(bytes_limit=7, bytes_in_use=3), device(bytes_limit=9)]) == 7
    assert total_bytes([device(bytes_limit=7), device()]) is None
