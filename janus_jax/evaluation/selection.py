"""A part of a benchmark, as a benchmark of its own."""

import dataclasses
from collections.abc import Collection
from typing import Any, TypeVar

from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import Benchmark, ImageBenchmark

AnyBenchmark = TypeVar("AnyBenchmark", bound=Benchmark | ImageBenchmark)


def first_requests(benchmark: AnyBenchmark, limit: int | None) -> AnyBenchmark:
    """The benchmark of the first `limit` requests; None keeps all."""
    if limit is None or limit >= len(benchmark.requests):
        return benchmark
    return _with_requests(benchmark, benchmark.requests[:limit])


def requests_with_ids(benchmark: AnyBenchmark, ids: Collection[str]) -> AnyBenchmark:
    """The benchmark of the requests with these ids, or with these indices where no request has such an id.

    Raises UserError for an id that is neither.
    """
    by_id = {request.id for request in benchmark.requests}
    indices = {str(request.index) for request in benchmark.requests}
    for wanted in ids:
        if wanted not in by_id and wanted not in indices:
            raise UserError(f"--samples={wanted}: {benchmark.name} has no request with this id or index")
    as_index = {wanted for wanted in ids if wanted not in by_id}
    found = [request for request in benchmark.requests if request.id in ids or str(request.index) in as_index]
    return _with_requests(benchmark, found)


def requests_at(benchmark: AnyBenchmark, indices: Collection[int]) -> AnyBenchmark:
    """The benchmark of the requests with these indices."""
    return _with_requests(benchmark, [request for request in benchmark.requests if request.index in indices])


def _with_requests(benchmark: AnyBenchmark, requests: Any) -> AnyBenchmark:
    """The benchmark with other requests. Benchmarks are dataclasses with a field of this name."""
    return dataclasses.replace(benchmark, requests=tuple(requests))  # type: ignore[type-var]
