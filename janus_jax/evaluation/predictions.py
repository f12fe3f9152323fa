"""Predictions that any model wrote: the benchmark's official file, or JSON lines of {"index" or "id", "text"}."""

from collections.abc import Sequence

from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import Answer
from janus_jax.evaluation.question_benchmark import QuestionBenchmark
from janus_jax.evaluation.readers.records import Record, first_ten, read_json_lines
from janus_jax.evaluation.submissions import joined


def read_predictions(benchmark: QuestionBenchmark, path: epath.PathLike) -> Sequence[Answer]:
    """One answer per question, in the order of the questions.

    Lines are joined by `id` if all of them are ids of the benchmark, otherwise by `index`, the place of a question in
    the benchmark's file. Answers to questions that are left out on purpose are passed over. `finish` and `error` are
    read where they are, so the samples of one of our own runs can be scored again.

    Raises:
        UserError: the file is damaged, or questions are missing, repeated or unknown; up to ten are named.
    """
    path = epath.Path(path)
    if not path.exists():
        raise UserError(f"--predictions={path} is missing")
    if path.is_dir() or path.suffix != ".jsonl":
        return benchmark.read_submission(path)
    lines = list(read_json_lines(path))
    if not lines:
        raise UserError(f"{path}: empty, expected one answer per line")
    if "text" not in lines[0].values or not {"index", "id"} & lines[0].values.keys():
        return benchmark.read_submission(path)
    indices = {question.id: question.index for question in benchmark.requests}
    indices |= {name: index for index, name in benchmark.unasked.items()}
    if all("id" in line.values and line.name("id") in indices for line in lines):
        found = [(indices[line.name("id")], line) for line in lines]
    elif all("index" in line.values for line in lines):
        found = [(_index(line), line) for line in lines]
    else:
        unknown = [line.name("id") if "id" in line.values else f"({line.origin})" for line in lines]
        raise UserError(
            f"{path}: ids that {benchmark.name} does not have: "
            f"{first_ten([name for name in unknown if name not in indices])}; expected its ids, or an index per line"
        )
    answers = [
        (index, Answer(index, line.text("text"), finish=line.optional("finish"), error=line.optional("error")))
        for index, line in found
    ]
    questions = benchmark.requests
    by_index = joined(path, answers, [question.index for question in questions], set(benchmark.unasked))
    return [by_index[question.index] for question in questions]


def _index(line: Record) -> int:
    value = line.values["index"]
    if not isinstance(value, int) or isinstance(value, bool):
        raise line.error("index", "a whole number")
    return value
