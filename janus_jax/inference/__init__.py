"""Decoding of text and images on device, and the pipeline object behind the public API."""
