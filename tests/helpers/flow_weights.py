"""Weights of the original JanusFlow and of diffusers' VAE in our layout, by the tables of `weights.name_map`.

The parity tests, which use them, check the tables too: a tensor in the wrong place or orientation changes the numbers.
"""

import jax.numpy as jnp
import numpy as np

from janus_jax.models.params import unflatten
from janus_jax.models.scan_layers import is_stacked
from janus_jax.weights.foreign import block_of
from janus_jax.weights.name_map import links


def from_foreign(state, config, layout):
    """State dict -> parameters of `config`; only those whose tensor is in the state."""
    slices = {}
    for link in links(config, layout):
        if link.name in state:
            slices.setdefault(link.path, []).append(block_of(np.asarray(state[link.name]), link))
    flat = {path: np.stack(found) if is_stacked(path) else found[0] for path, found in slices.items()}
    return unflatten({path: jnp.asarray(value, jnp.float32) for path, value in flat.items()})
