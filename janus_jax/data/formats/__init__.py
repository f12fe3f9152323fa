"""Readers of public data formats, one file each. All of them give `Record`s, or `DroppedSample`s with a reason.

A data set is divided into units that can be read independently and in any order. A sample that cannot be used is
counted and never raises an error. A request that makes no sense (no such file, an unknown option) raises `UserError`.
`registry.py` lists the formats, and `base.py` says what a format must provide.
"""
