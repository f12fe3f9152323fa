"""One table of accelerators: peak rates, memory, and the links between chips."""

import dataclasses
import glob
import math
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from janus_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuDetails:
    """What the cost model of `compile_check` needs to know of a TPU chip."""

    cores: int  # TensorCores of a chip
    clock: float  # Hz
    hbm_bandwidth: float  # bytes per second, the figure of libtpu's own cost model
    hbm_bytes: int
    mxu_edge: int  # the matrix unit pads products to multiples of this size
    vector_lanes: int  # elementwise operations per cycle of one core
    link_bandwidth: float  # bytes per second of one link in one direction
    wraps_from: int  # number of chips from which an axis of the torus is closed to a ring


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    flops: float  # dense bf16 operations per second, from the maker's data sheet
    tpu: TpuDetails | None = None


# Start of `jax.Device.device_kind` -> chip. The longest start that matches counts.
CHIPS = {
    "TPU v4": Chip(
        flops=275e12,
        tpu=TpuDetails(
            cores=2,
            clock=1.05e9,
            hbm_bandwidth=982e9,
            hbm_bytes=32 << 30,
            mxu_edge=128,
            vector_lanes=4096,
            link_bandwidth=45e9,
            wraps_from=4,
        ),
    ),
    "TPU v5 lite": Chip(
        flops=197e12,
        tpu=TpuDetails(
            cores=1,
            clock=1.5e9,
            hbm_bandwidth=737e9,
            hbm_bytes=16 << 30,
            mxu_edge=128,
            vector_lanes=4096,
            link_bandwidth=45e9,
            wraps_from=16,
        ),
    ),
    "TPU v5": Chip(
        flops=459e12,
        tpu=TpuDetails(
            cores=2,
            clock=1.75e9,
            hbm_bandwidth=2350e9,
            hbm_bytes=95 << 30,
            mxu_edge=128,
            vector_lanes=4096,
            link_bandwidth=90e9,
            wraps_from=4,
        ),
    ),
    "TPU v6 lite": Chip(
        flops=918e12,
        tpu=TpuDetails(
            cores=1,
            clock=1.75e9,
            hbm_bandwidth=1638e9,
            hbm_bytes=32 << 30,
            mxu_edge=256,
            vector_lanes=4096,
            link_bandwidth=90e9,
            wraps_from=16,
        ),
    ),
    "NVIDIA H200": Chip(flops=989e12),
    "NVIDIA H100 PCIe": Chip(flops=756e12),
    "NVIDIA H100": Chip(flops=989e12),
    "NVIDIA A100": Chip(flops=312e12),
}
HOST_BANDWIDTH = 32e9  # bytes per second between HBM and the memory of the host; an assumption
# Bytes per second between a chip and the chips of other slices. The assumption is a network of 200 Gb/s for each host
# of four chips.
SLICE_BANDWIDTH = 6.25e9

# Other names under which `jax.Device.device_kind` may report a TPU -> name in the table.
_OTHER_NAMES = {"TPU v5e": "TPU v5 lite", "TPU v5p": "TPU v5", "TPU v6e": "TPU v6 lite"}

# Files of the drivers of TPUs: up to v4, and from v5e on.
_TPU_FILES = ("/dev/accel*", "/dev/vfio/[0-9]*")
# What libtpu asks a TPU host for, and complains about at length where there is none. Any known type of TPU will do.
_NO_TPU_HOST = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
}


def quiet_without_tpu() -> None:
    """Keeps libtpu from complaining that a machine is no TPU host (libtpu 0.0.42.1); call it before JAX starts.

    Nothing changes on a machine with TPUs, nor are variables changed that are set already.
    """
    if not any(glob.glob(pattern) for pattern in _TPU_FILES):
        for name, value in _NO_TPU_HOST.items():
            os.environ.setdefault(name, value)


def canonical_kind(device_kind: str) -> str:
    """Name under which the table has a kind of device. A kind that has only one name is returned as it is."""
    return _OTHER_NAMES.get(device_kind, device_kind)


def hbm_bytes(device: Any) -> int | None:
    """Memory of a TPU that JAX calls a device, by the table; None for other devices and for unknown TPUs."""
    chip = CHIPS.get(canonical_kind(device.device_kind))
    if chip is None or chip.tpu is None:
        return None
    return chip.tpu.hbm_bytes * getattr(device, "num_cores", chip.tpu.cores) // chip.tpu.cores


def peak_flops(devices: Iterable[Any]) -> float | None:
    """Peak rate of all devices together, the denominator of MFU; None if that of one is unknown, such as a CPU's.

    A device of JAX is a whole chip, also on v4 and v5p, whose chips have two cores.
    """
    peaks = []
    for device in devices:
        kind = canonical_kind(device.device_kind)
        known = max((start for start in CHIPS if kind.startswith(start)), key=len, default=None)
        if known is None:
            return None
        peaks.append(CHIPS[known].flops)
    return math.fsum(peaks)


@dataclasses.dataclass(frozen=True)
class Machine:
    """The devices of a compiled TPU program. A device has `cores` cores that work as one."""

    kind: str  # a key of `CHIPS`
    cores: int
    coordinates: tuple[tuple[int, int, int], ...]  # place of each device of a slice, in the order of partitions
    slices: int = 1  # number of equal slices; the compiled program is that of one of them

    def __post_init__(self) -> None:
        known = sorted(kind for kind, chip in CHIPS.items() if chip.tpu)
        if self.kind not in known:
            raise UserError(f"device kind {self.kind!r} is not one of {known}")

    @property
    def chip(self) -> TpuDetails:
        chip = CHIPS[self.kind].tpu
        assert chip is not None
        return chip

    @property
    def share(self) -> float:
        """Share of a chip that one device is."""
        return self.cores / self.chip.cores

    @property
    def flops(self) -> float:
        return CHIPS[self.kind].flops * self.share

    @property
    def vector_rate(self) -> float:
        return self.chip.vector_lanes * self.chip.clock * self.cores

    @property
    def hbm_bandwidth(self) -> float:
        return self.chip.hbm_bandwidth * self.share

    @property
    def hbm_bytes(self) -> int:
        return int(self.chip.hbm_bytes * self.share)

    @cached_property
    def extent(self) -> tuple[int, int, int]:
        """Number of chips along each axis of the torus."""
        x, y, z = (1 + max(c[axis] for c in self.coordinates) for axis in range(3))
        return x, y, z

    def closed(self, axis: int) -> bool:
        """Whether the torus axis is a ring."""
        return self.extent[axis] >= self.chip.wraps_from

    def spans(self, devices: Sequence[int]) -> tuple[int, int, int]:
        """Number of chips along each axis that a group of devices covers."""
        x, y, z = (len({self.coordinates[d][axis] for d in devices}) for axis in range(3))
        return x, y, z
