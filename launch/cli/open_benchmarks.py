"""Opens the benchmarks that --benchmarks names in what --data holds."""

from collections.abc import Sequence

from janus_jax.evaluation import registry
from janus_jax.evaluation.benchmark import Benchmark, ImageBenchmark


def open_benchmarks(
    data: str, names: Sequence[str], protocol: str, num_images: int | None
) -> Sequence[Benchmark | ImageBenchmark]:
    return registry.load(data, names, protocol)
