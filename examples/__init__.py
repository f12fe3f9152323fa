"""Complete small projects that use janus_jax."""
