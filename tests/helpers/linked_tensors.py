"""Reads and writes tensors by the links of `weights.name_map`, without any file."""

import numpy as np

from janus_jax.models.scan_layers import is_stacked


def read(state, table):
    """Our parameters, as a converter reads them: `state` is {their name: values}."""
    slices = {}
    for link in table:
        value = state[link.name]
        if link.part:
            value = np.split(value, link.part[1])[link.part[0]]
        slices.setdefault(link.path, []).append(link.transform.to_ours(value))
    return {path: np.stack(values) if is_stacked(path) else values[0] for path, values in slices.items()}


def write(params, table):
    """Their tensors, as a converter writes them: `params` is {our path: values}."""
    slices = {}
    for link in table:
        value = params[link.path] if link.layer is None else params[link.path][link.layer]
        slices.setdefault(link.name, {})[link.part] = link.transform.to_theirs(value)
    return {
        name: np.concatenate([blocks[part] for part in sorted(blocks)]) if None not in blocks else blocks[None]
        for name, blocks in slices.items()
    }


def assert_same_arrays(ours, expected):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name, strict=True)
