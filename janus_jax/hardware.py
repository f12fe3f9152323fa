"""What a TPU chip can do, and the links between chips."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property

from janus_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Core:
    """Rates of one TensorCore. HBM bandwidth is what libtpu's own cost model uses; the rest are public figures."""

    flops: float  # bf16, per second
    clock: float  # Hz
    hbm_bandwidth: float  # bytes per second
    hbm_bytes: int
    mxu_edge: int  # matrix products are padded to multiples of it
    vector_lanes: int  # elementwise operations per cycle
    link_bandwidth: float  # bytes per second, one link, one direction
    wraps_from: int  # smallest extent of a torus axis that is closed to a ring


CORES = {
    "TPU v4": Core(
        flops=137.5e12,
        clock=1.05e9,
        hbm_bandwidth=491e9,
        hbm_bytes=16 << 30,
        mxu_edge=128,
        vector_lanes=4096,
        link_bandwidth=45e9,
        wraps_from=4,
    ),
    "TPU v5 lite": Core(
        flops=197e12,
        clock=1.5e9,
        hbm_bandwidth=737e9,
        hbm_bytes=16 << 30,
        mxu_edge=128,
        vector_lanes=4096,
        link_bandwidth=45e9,
        wraps_from=16,
    ),
    "TPU v5": Core(
        flops=229.4e12,
        clock=1.75e9,
        hbm_bandwidth=1175e9,
        hbm_bytes=95 << 29,
        mxu_edge=128,
        vector_lanes=4096,
        link_bandwidth=90e9,
        wraps_from=4,
    ),
    "TPU v6 lite": Core(
        flops=918e12,
        clock=1.75e9,
        hbm_bandwidth=1638e9,
        hbm_bytes=32 << 30,
        mxu_edge=256,
        vector_lanes=4096,
        link_bandwidth=90e9,
        wraps_from=16,
    ),
}
HOST_BANDWIDTH = 32e9  # between HBM and the host's memory, assumed
SLICE_BANDWIDTH = 6.25e9  # of a chip to other slices, assumed: 200 Gb/s for a host of four chips


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices of a compiled program. A device is a chip with `cores` cores that work as one."""

    kind: str  # as `jax.Device.device_kind`
    cores: int
    coordinates: tuple[tuple[int, int, int], ...]  # of each device of a slice, in the order of partitions
    slices: int = 1  # all alike; a compiled program is that of one

    def __post_init__(self) -> None:
        if self.kind not in CORES:
            raise UserError(f"device kind {self.kind!r} is not one of {sorted(CORES)}")

    @cached_property
    def core(self) -> Core:
        return CORES[self.kind]

    @property
    def flops(self) -> float:
        return self.core.flops * self.cores

    @property
    def vector_rate(self) -> float:
        return self.core.vector_lanes * self.core.clock * self.cores

    @property
    def hbm_bandwidth(self) -> float:
        return self.core.hbm_bandwidth * self.cores

    @property
    def hbm_bytes(self) -> int:
        return self.core.hbm_bytes * self.cores

    @cached_property
    def extent(self) -> tuple[int, int, int]:
        """Chips along each axis of the torus."""
        x, y, z = (1 + max(c[axis] for c in self.coordinates) for axis in range(3))
        return x, y, z

    def closed(self, axis: int) -> bool:
        """Whether the torus axis is a ring."""
        return self.extent[axis] >= self.core.wraps_from

    def spans(self, devices: Sequence[int]) -> tuple[int, int, int]:
        """Chips along each axis that a group of devices covers."""
        x, y, z = (len({self.coordinates[d][axis] for d in devices}) for axis in range(3))
        return x, y, z
