"""Rules by which answers are read and scored, one file each: pure functions without JAX and pyarrow.

The rule of the benchmark's own code is the headline; those of common tool kits stand beside it under their names. An
answer that cannot be read counts as wrong and is counted; nothing is chosen at random.
"""
