"""A benchmark of yes/no questions about images of one colour, and models that need no weights to answer it."""

import dataclasses
import io
import json
import os
import time
from collections.abc import Sequence

import PIL.Image
from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import Answer, ImageRequest, Metric, Question, SampleScore, Scores
from janus_jax.evaluation.records import AnswerRecord

COLOURS = ("red", "green", "blue", "white")


def to_png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class ColourImage:
    """An image of one colour, PNG in memory."""

    name: str
    colour: str

    def read(self):
        if self.colour == "damaged":
            raise UserError(f"{self.name}: not a readable image")
        return to_png(PIL.Image.new("RGB", (12, 10), self.colour))


@dataclasses.dataclass(frozen=True)
class YesNo:
    """Is this image red? A benchmark whose file lists a colour and a gold answer per line."""

    files: Sequence[epath.Path]
    requests: Sequence[Question]
    name: str = "yes_no"

    def score(self, answers):
        samples, table = [], {"yes": [0, 0, 0], "no": [0, 0, 0]}
        for question, answer in zip(self.requests, answers, strict=True):
            assert question.index == answer.index
            word = answer.text.strip(".").lower()
            parsed = word if word in table else None
            samples.append(SampleScore(question.index, parsed, float(parsed == question.gold)))
            table[question.gold][("yes", "no", None).index(parsed)] += 1
        accuracy = 100 * sum(sample.score for sample in samples) / max(len(samples), 1)
        undecided = sum(sample.parsed is None for sample in samples)
        counts = {"undecided": undecided, "unreadable": sum(bool(answer.error) for answer in answers)}
        rows = [["gold", "yes", "no", "undecided"], *([gold, *row] for gold, row in table.items())]
        metric = Metric(accuracy, len(samples), 2.0, (accuracy - 4, accuracy + 4))
        return Scores("accuracy", {"accuracy": metric}, samples, counts, {"answers": rows})

    def write_submission(self, answers, folder):
        path = folder / "predictions.jsonl"
        lines = (json.dumps({"id": q.id, "text": a.text}) for q, a in zip(self.requests, answers, strict=True))
        path.write_text("".join(f"{line}\n" for line in lines))
        return [path]

    def read_submission(self, path):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        by_id = {row["id"]: row["text"] for row in rows}
        missing = [question.id for question in self.requests if question.id not in by_id]
        if missing:
            raise UserError(f"{path}: no answer to {missing[:10]}")
        return [Answer(question.index, by_id[question.id]) for question in self.requests]


def open_yes_no(path, count=None):
    """The benchmark of a file; `count` writes one with that many questions first, every third a repetition."""
    path = epath.Path(path)
    if count is not None:
        lines = [f"{COLOURS[(i - (i % 3 == 2)) % 4]} {'yes' if i % 2 else 'no'}" for i in range(count)]
        path.write_text("\n".join(lines))
    questions = []
    for index, line in enumerate(path.read_text().splitlines()):
        colour, gold = line.split()
        repeated = index - (index % 3 == 2)
        prompt = f"Is image {repeated} red?" + " Think about it." * (repeated % 5)
        images = (ColourImage(f"{colour}.png", colour),) * (repeated % 7 != 6)
        questions.append(Question(index, f"q{index}", prompt, images, gold, colour))
    return YesNo((path,), questions)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A benchmark of generated images, whose score is the share of complete ones."""

    files: Sequence[epath.Path]
    requests: Sequence[ImageRequest]
    name: str = "pictures"

    def score(self, folder):
        samples = [
            SampleScore(request.index, "made", float((folder / f"{request.index:05d}").exists()))
            for request in self.requests
        ]
        return Scores("made", {"made": Metric(100.0, len(samples))}, samples, {})


class StubModel:
    """Answers by the colour of the image, after a delay; `log` is a file to which each answered batch adds a line."""

    def __init__(self, seconds=0.0, log=None, fails_at=None):
        self._seconds, self._log, self._fails_at, self._batches = seconds, log, fails_at, 0

    def answer(self, questions):
        self._batches += 1
        if self._batches == self._fails_at:
            raise RuntimeError("this worker fails")
        time.sleep(self._seconds)
        if self._log is not None:
            with open(self._log, "a") as file:
                file.write(f"{os.getpid()}\n")
        return [self._answer(question) for question in questions]

    def generate(self, requests):
        return [
            [to_png(PIL.Image.new("RGB", (4, 4), (request.index, number, 0))) for number in range(request.num_images)]
            for request in requests
        ]

    def _answer(self, question):
        try:
            hashes = tuple(f"{len(image.read()):064d}" for image in question.images)
        except UserError as error:
            return AnswerRecord(question.index, "", 0, "", str(error))
        colours = [PIL.Image.open(io.BytesIO(image.read())).getpixel((0, 0)) for image in question.images]
        text = {(255, 0, 0): "Yes.", (255, 255, 255): "Perhaps\u2028not."}.get(colours[0], "No.") if colours else "No."
        return AnswerRecord(question.index, text, 2, "stop", images=hashes)
