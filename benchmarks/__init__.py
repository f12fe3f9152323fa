"""The suites of `launch.benchmark`: one file each, with a function that returns rows of its table."""
