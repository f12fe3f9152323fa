"""Measures of a model: one file for each kind."""
