"""Names of TPUs that mean the same device."""

# As `jax.Device.device_kind` may be -> as the tables of this package name it.
_SAME = {"TPU v5e": "TPU v5 lite", "TPU v5p": "TPU v5", "TPU v6e": "TPU v6 lite"}


def canonical_kind(device_kind: str) -> str:
    """The kind under which the tables hold a device; any other kind as it is."""
    return _SAME.get(device_kind, device_kind)
