"""Asks a model some questions of a benchmark and prints all about them: `launch.evaluate --samples`."""

from collections.abc import Sequence
from typing import Any

from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import Benchmark, ImageBenchmark, Question
from janus_jax.evaluation.selection import requests_with_ids
from launch.cli.evaluation_model import CHECKPOINT, ask


def answered(benchmarks: Sequence[Benchmark | ImageBenchmark], ids: Sequence[str]) -> str:
    """The chosen questions as text, with answers, how they are read, and the right answers. Nothing is written.

    Raises UserError for ids that the benchmark does not have, without --checkpoint, or for images.
    """
    if len(benchmarks) != 1:
        names = ",".join(benchmark.name for benchmark in benchmarks)
        raise UserError(f"--samples are those of one benchmark, but --benchmarks={names}")
    if not CHECKPOINT.value:
        raise UserError("--samples needs --checkpoint; what is answered already stands in samples.jsonl of the output")
    benchmark: Any = requests_with_ids(benchmarks[0], ids)
    questions = [request for request in benchmark.requests if isinstance(request, Question)]
    if not questions:
        raise UserError(f"--samples: {benchmark.name} asks for images; launch.generate --prompt_number makes them")
    records = ask(benchmark).answer(questions)
    scores = benchmark.score([record.to_answer() for record in records])
    parts = []
    for question, record, sample in zip(questions, records, scores.samples, strict=True):
        lines = {
            "question": f"{question.id} (index {question.index})",
            "images": ", ".join(image.name for image in question.images),
            "prompt": question.prompt,
            "answer": record.text,
            "error": record.error,
            "end": f"{record.finish} after {record.num_tokens} tokens",
            "read as": sample.parsed,
            "gold": question.gold,
            "score": sample.score,
        }
        parts.append("\n".join(f"{name}: {value}" for name, value in lines.items()))
    return "\n\n".join(parts)
