"""The suites of `launch.benchmark`, one file each. A suite's `run()` yields its results, one line of the table each."""
