"""The way from files on disk to packed rows. It uses NumPy, Pillow and Grain, and never imports JAX."""
