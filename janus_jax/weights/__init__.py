"""Checkpoint folders of others <-> ours, exact in both directions and one tensor in memory at a time."""
