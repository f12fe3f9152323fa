"""Pallas kernels for TPUs. Only the generic function of the same job, one folder up, calls them."""
