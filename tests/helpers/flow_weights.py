"""Weights of the original JanusFlow and of diffusers' VAE in our layout, by the tables of `convert`.

The numbers of the parity tests check the tables: a tensor in the wrong place or orientation shows there.
"""

import jax.numpy as jnp
import numpy as np

from janus_jax.models.params import unflatten
from janus_jax.weights.name_map import links
from janus_jax.weights.open_model import block_of


def from_foreign(state, config, layout):
    """State dict -> parameters of `config`; only those whose tensor is in the state."""
    pieces = {}
    for link in links(config, layout):
        if link.name in state:
            pieces.setdefault(link.path, []).append(block_of(np.asarray(state[link.name]), link))
    flat = {path: np.stack(found) if "/layers/" in path else found[0] for path, found in pieces.items()}
    return unflatten({path: jnp.asarray(value, jnp.float32) for path, value in flat.items()})
