"""From files to packed rows. NumPy, Pillow and Grain only; no JAX."""
