"""Experiments, one file each: `get_config(stage)` returns a complete config."""
