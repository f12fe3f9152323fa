"""One file per component of the papers: Flax linen modules, thin over `janus_jax.ops`."""
