"""What keeps a run safe: losses that are not finite, preemption, processes that hang, exit codes."""
