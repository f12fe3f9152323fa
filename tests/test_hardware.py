"""The table of accelerators, and machines made of its chips."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from janus_jax import hardware
from janus_jax.errors import UserError
from janus_jax.hardware import CHIPS, Machine, peak_flops, quiet_without_tpu
from tests.helpers import REPOSITORY

# Starts JAX inside a command, and then compiles for a TPU.
START = """
from launch.cli import errors
def main():
    import jax
    from janus_jax.compile_check.program import topology_devices
    print(jax.devices()[0].platform, len(topology_devices("v5e-4")))
errors.run(main)
"""


def devices(*kinds):
    return [SimpleNamespace(device_kind=kind) for kind in kinds]


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5e", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU v6e", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
    ],
)
def test_the_peak_is_that_of_the_data_sheet_by_any_name_of_a_device(kind, flops):
    assert peak_flops(devices(kind) * 3) == 3 * flops


def test_one_device_without_a_known_peak_leaves_all_without():
    assert peak_flops(devices("NVIDIA H100 80GB HBM3", "cpu")) is None


@pytest.mark.parametrize("kind", [kind for kind, chip in CHIPS.items() if chip.tpu])
def test_a_device_of_all_cores_is_a_chip_and_one_of_a_single_core_its_share(kind):
    chip = CHIPS[kind]
    whole, core = (Machine(kind, cores, ((0, 0, 0),)) for cores in (chip.tpu.cores, 1))
    assert (whole.flops, whole.hbm_bandwidth, whole.hbm_bytes) == (
        chip.flops,
        chip.tpu.hbm_bandwidth,
        chip.tpu.hbm_bytes,
    )
    assert (core.flops, core.hbm_bytes) == (chip.flops / chip.tpu.cores, chip.tpu.hbm_bytes // chip.tpu.cores)
    assert whole.vector_rate == chip.tpu.cores * core.vector_rate


@pytest.mark.parametrize("kind", ["TPU v99", "NVIDIA A100"])
def test_a_kind_without_a_cost_model_is_refused(kind):
    with pytest.raises(UserError, match=kind):
        Machine(kind, 1, ((0, 0, 0),))


def test_commands_print_nothing_of_libtpu_on_a_machine_without_tpus():
    pytest.importorskip("libtpu", reason="the TPU compiler, of Linux only")
    # Other processes may have loaded libtpu, which JAX then leaves alone.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TPU_", "JAX_PLATFORMS"))}
    environment["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    command = [sys.executable, "-c", START]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["cpu", "4"]


def test_a_machine_with_tpus_keeps_its_environment(monkeypatch):
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES", raising=False)
    monkeypatch.setattr(hardware.glob, "glob", lambda pattern: [pattern])
    quiet_without_tpu()
    assert "TPU_WORKER_HOSTNAMES" not in os.environ
