"""Compiles a program for a TPU topology without a TPU, and predicts from the compiled text how long a step takes."""
