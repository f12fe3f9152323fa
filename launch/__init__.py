"""The commands, one file each: `python -m launch.NAME --help`."""
