"""A benchmark of questions that was read from files, with its rule and the form of its predictions."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import Answer, Question, Scores
from janus_jax.evaluation.readers.records import FileImage, first_ten

Rule = Callable[[Sequence[Question], Sequence[Answer]], Scores]


class Submission(Protocol):
    """The form in which a benchmark's own server or script takes answers."""

    def write(self, questions: Sequence[Question], answers: Sequence[Answer], folder: epath.Path) -> list[epath.Path]:
        """Writes the answers. Raises UserError for an answer that the form cannot hold."""
        ...

    def read(self, questions: Sequence[Question], unasked: Collection[str], path: epath.Path) -> list[Answer]:
        """Reads one answer per question, in their order; ids in `unasked` are passed over. Raises UserError."""
        ...


@dataclasses.dataclass(frozen=True)
class QuestionBenchmark:
    """Implements `Benchmark`."""

    name: str
    files: Sequence[epath.Path]
    requests: Sequence[Question]
    rule: Rule
    submission: Submission
    split: str = ""
    layout: str = "official"  # official, parquet or tsv
    protocol: str = "janus"
    system_prompt: str | None = ""  # Janus' authors evaluate without one; None is that of the model's own template
    max_new_tokens: int = 128
    unasked: Mapping[int, str] = dataclasses.field(default_factory=dict)  # index -> id of questions left out on purpose
    notes: Sequence[str] = ()

    def score(self, answers: Sequence[Answer]) -> Scores:
        check_complete(self.requests, answers)
        scores = self.rule(self.requests, answers)
        counts = {
            **scores.counts,
            "truncated": sum(answer.finish == "length" for answer in answers),
            "unreadable": sum(bool(answer.error) for answer in answers),
        }
        return dataclasses.replace(scores, counts=counts, notes=[*self.notes, *scores.notes])

    def write_submission(self, answers: Sequence[Answer], folder: epath.PathLike) -> Sequence[epath.Path]:
        check_complete(self.requests, answers)
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return self.submission.write(self.requests, answers, folder)

    def read_submission(self, path: epath.PathLike) -> Sequence[Answer]:
        return self.submission.read(self.requests, set(self.unasked.values()), epath.Path(path))

    def first(self, count: int) -> QuestionBenchmark:
        """The benchmark with its first questions only. Raises UserError for a count below 1."""
        if count < 1:
            raise UserError(f"--limit={count}: expected at least 1 question")
        if count >= len(self.requests):
            return self
        return self._only(self.requests[:count], f"First {count} questions: not comparable with other figures.")

    def only(self, ids: Collection[str]) -> QuestionBenchmark:
        """The benchmark with some of its questions. Raises UserError for ids that it does not have."""
        ids = set(ids)
        unknown = sorted(ids - {question.id for question in self.requests})
        if unknown:
            raise UserError(f"--samples: {self.name} has no questions {first_ten(unknown)}")
        chosen = [question for question in self.requests if question.id in ids]
        return self._only(chosen, f"{len(chosen)} chosen questions: not comparable with other figures.")

    def missing_images(self) -> list[str]:
        """Paths of image files that the questions name and that do not exist; images inside tables count as there."""
        images: set[FileImage] = set()
        for question in self.requests:
            images.update(image for image in question.images if isinstance(image, FileImage))
        return sorted(f"{image.root}/{image.path}" for image in images if not image.exists())

    def _only(self, requests: Sequence[Question], note: str) -> QuestionBenchmark:
        kept = {question.index for question in requests}
        left = {question.index: question.id for question in self.requests if question.index not in kept}
        return dataclasses.replace(self, requests=requests, unasked={**self.unasked, **left}, notes=[*self.notes, note])


def check_complete(questions: Sequence[Question], answers: Sequence[Answer]) -> None:
    """Raises UserError unless there is one answer per question, in their order."""
    asked, answered = [question.index for question in questions], [answer.index for answer in answers]
    if asked == answered:
        return
    missing, extra = sorted(set(asked) - set(answered)), sorted(set(answered) - set(asked))
    repeated = sorted(index for index, count in collections.Counter(answered).items() if count > 1)
    raise UserError(
        f"answers do not match the questions: indices missing {first_ten(missing)}, extra {first_ten(extra)}, "
        f"repeated {first_ten(repeated)}"
    )
