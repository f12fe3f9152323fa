"""Peak rates of accelerators: the denominator of MFU."""

import math
from collections.abc import Iterable
from typing import Any

from janus_jax.training.device_kinds import canonical_kind

# Dense bf16 operations per second of one device, by how its kind starts: data sheets of the makers.
# The first match decides. On v4 and v5p a device is a chip with two cores.
_PEAKS = (
    ("TPU v6 lite", 918e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5", 459e12),
    ("TPU v4", 275e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100", 989e12),
    ("NVIDIA A100", 312e12),
)


def peak_flops(devices: Iterable[Any]) -> float | None:
    """Of all devices together, per second; None if the peak of one is not known, as a CPU's."""
    kinds = [canonical_kind(device.device_kind) for device in devices]
    peaks = [next((peak for start, peak in _PEAKS if kind.startswith(start)), None) for kind in kinds]
    known = [peak for peak in peaks if peak is not None]
    return math.fsum(known) if len(known) == len(peaks) else None
