"""A part of a benchmark, as a benchmark of its own."""

import dataclasses
from collections.abc import Collection
from typing import Any

from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import Benchmark, ImageBenchmark
from janus_jax.evaluation.question_benchmark import QuestionBenchmark

AnyBenchmark = Benchmark | ImageBenchmark


def first_requests(benchmark: AnyBenchmark, limit: int | None) -> AnyBenchmark:
    """The benchmark of the first `limit` requests; None keeps all."""
    if limit is None or limit >= len(benchmark.requests):
        return benchmark
    return requests_at(benchmark, [request.index for request in benchmark.requests[:limit]])


def requests_with_ids(benchmark: AnyBenchmark, ids: Collection[str]) -> AnyBenchmark:
    """The benchmark of the requests with these ids, or with these indices where no request has such an id.

    Raises UserError for an id that is neither.
    """
    by_id = {request.id: request.index for request in benchmark.requests}
    by_index = {str(request.index): request.index for request in benchmark.requests}
    unknown = [wanted for wanted in ids if wanted not in by_id and wanted not in by_index]
    if unknown:
        first = benchmark.requests[0]
        expected = f"expected an id such as {first.id}, or an index such as {first.index}"
        raise UserError(f"--samples={unknown[0]}: {benchmark.name} has no such request, {expected}")
    return requests_at(benchmark, [by_id.get(wanted, by_index.get(wanted, -1)) for wanted in ids])


def requests_at(benchmark: AnyBenchmark, indices: Collection[int]) -> AnyBenchmark:
    """The benchmark of the requests with these indices."""
    kept = set(indices)
    chosen = [request for request in benchmark.requests if request.index in kept]
    if isinstance(benchmark, QuestionBenchmark):
        if [request.index for request in benchmark.requests[: len(chosen)]] == [request.index for request in chosen]:
            return benchmark.first(len(chosen))
        return benchmark.only([request.id for request in chosen])
    of_images: Any = benchmark  # the benchmarks of images are dataclasses with this field
    return dataclasses.replace(of_images, requests=chosen)
