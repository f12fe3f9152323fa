"""The commands, one file each: `python -m launch.NAME --help`.

JAX and the modules that need it are imported where they are first used, inside functions. So --help and mistakes in
flags or file names take no longer than Python itself.
"""
