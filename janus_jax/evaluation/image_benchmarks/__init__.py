"""Benchmarks of generated images: how their files are read, and how a folder of images is scored."""
