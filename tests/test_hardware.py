"""The table of accelerators, and machines made of its chips."""

from types import SimpleNamespace

import pytest

from janus_jax.errors import UserError
from janus_jax.hardware import CHIPS, Machine, peak_flops


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
