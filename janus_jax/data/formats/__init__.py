"""Readers of public data formats, one file each; all give `Record`s, or `Bad` for what cannot be used.

A source is cut into units that can be read independently and in any order. What is wrong with a sample is counted and
never raised; what is wrong with the request (no such file, unknown option) is a `UserError`. Start at `formats.py`.
"""
