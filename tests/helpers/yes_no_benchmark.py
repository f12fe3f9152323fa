"""A benchmark of yes/no questions about images of one colour, and models that need no weights to answer it."""

import dataclasses
import io
import os
import time
from collections.abc import Sequence

import PIL.Image
from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import ImageRequest, Metric, Question, SampleScore, Scores
from janus_jax.evaluation.question_benchmark import QuestionBenchmark
from janus_jax.evaluation.records import AnswerRecord
from janus_jax.evaluation.submissions import JsonRecords

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


def score_yes_no(questions, answers):
    """Accuracy in percent, with a made up standard error of 2."""
    samples, table = [], {"yes": [0, 0, 0], "no": [0, 0, 0]}
    for question, answer in zip(questions, answers, strict=True):
        word = answer.text.strip(".").lower()
        parsed = word if word in table else None
        samples.append(SampleScore(question.index, parsed, float(parsed == question.gold)))
        table[question.gold][("yes", "no", None).index(parsed)] += 1
    accuracy = 100 * sum(sample.score for sample in samples) / len(samples)
    counts = {"undecided": sum(sample.parsed is None for sample in samples)}
    rows = [["gold", "yes", "no", "undecided"], *([gold, *row] for gold, row in table.items())]
    metric = Metric(accuracy, len(samples), 2.0, (accuracy - 4, accuracy + 4))
    return Scores("accuracy", {"accuracy": metric}, samples, counts, {"answers": rows})


def yes_no(files, questions):
    """Is this image red? A benchmark of questions."""
    submission = JsonRecords("predictions.jsonl", "id", "text", lines=True)
    return QuestionBenchmark("yes_no", files, questions, score_yes_no, submission)


def open_yes_no(path, count=None):
    """The benchmark of a file with a colour and a gold answer per line.

    `count` first writes a file of that many questions, of which every third is a repetition.
    """
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
    return yes_no((path,), questions)


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
