"""Decoding of text and images: the engine, and the objects that `janus_jax.from_pretrained` returns."""
