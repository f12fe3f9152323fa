"""What --data holds, for people: `launch.evaluate --list`."""

from collections.abc import Sequence

from janus_jax.data.preparation.hashes import hash_file
from janus_jax.evaluation.benchmark import Benchmark, ImageBenchmark
from janus_jax.evaluation.plan import make_plan
from janus_jax.phases import phase
from janus_jax.reports.text import format_table

MAX_NAMED = 3  # Number of missing images that are named.
_SHORT_HASH = 12  # Hexadecimal digits of a SHA-256 that are shown.


def format_listing(benchmarks: Sequence[Benchmark | ImageBenchmark], rows: int) -> str:
    """A table of the benchmarks, their files with hashes, and images that are missing."""
    table, details = [["benchmark", "layout", "split", "requests", "distinct", "batches", "missing images"]], []
    for benchmark in benchmarks:
        plan = make_plan(benchmark.requests, rows)
        missing = benchmark.missing_images() if hasattr(benchmark, "missing_images") else []
        counts = (plan.num_requests, plan.num_distinct, len(plan.batches), len(missing))
        origin = (getattr(benchmark, "layout", ""), getattr(benchmark, "split", ""))
        table.append([benchmark.name, *origin, *map(str, counts)])
        files = [path for path in benchmark.files if path.is_file()]
        with phase(f"hashing the files of {benchmark.name}"):
            details += [f"{benchmark.name}: {hash_file(path)[:_SHORT_HASH]} {path}" for path in files]
        details += [f"{benchmark.name}: missing {path}" for path in missing[:MAX_NAMED]]
    return "\n".join([format_table(table), "", "SHA-256 of the files:", *details])
