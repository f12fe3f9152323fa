"""The small benchmarks of the demo are read as what they are, and perfect answers are right."""

from pathlib import Path

import numpy as np
import pytest
from etils import epath

from examples.digits import data as digits
from examples.digits.small_benchmarks import ROTATION, detect, write_benchmarks
from janus_jax.evaluation import registry
from janus_jax.evaluation.benchmark import Answer
from janus_jax.evaluation.image_benchmarks.geneval import open_geneval
from janus_jax.evaluation.image_benchmarks.options import MetricOptions

NUMBER = 12


@pytest.fixture(scope="module")
def chosen():
    _, held_out = digits.load_digits()
    return digits.Digits(held_out.intensities[:NUMBER], held_out.labels[:NUMBER])


@pytest.fixture(scope="module")
def folder(chosen, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_benchmarks(folder, chosen)
    return folder


@pytest.mark.parametrize(
    ("name", "count", "answers", "expected"),
    [
        ("vqav2", NUMBER, lambda q, label: digits.NAMES[label], 100),
        ("pope", 2 * NUMBER, lambda q, label: "Yes." if digits.NAMES[label] in q.prompt else "No.", 100),
        ("mmbench", 4 * NUMBER, lambda q, label: digits.NAMES[label], 100),
        ("mmbench", 4 * NUMBER, lambda q, label: "A", 25),  # right in one of the four rotations
    ],
)
def test_answers_are_scored_as_they_deserve(folder, chosen, name, count, answers, expected):
    (benchmark,) = registry.load(folder, [name])
    assert len(benchmark.requests) == count and benchmark.missing_images() == []
    given = []
    for question in benchmark.requests:
        number = int(question.id) % ROTATION if name == "mmbench" else question.index // (count // NUMBER)
        given.append(Answer(question.index, answers(question, chosen.labels[number])))
    scores = benchmark.score(given)
    assert scores.metrics[scores.headline].value == pytest.approx(expected)


def test_what_the_classifier_reads_becomes_detections(folder, tmp_path):
    """A classifier that is right for every second prompt."""
    metadata = epath.Path(folder / "evaluation_metadata.jsonl")
    requests = open_geneval(metadata, MetricOptions(), 1).requests
    assert [request.fields["include"][0]["class"] for request in requests] == list(digits.NAMES)
    images = Path(tmp_path / "images")
    for request in requests:
        (images / f"{request.index:05d}").mkdir(parents=True)
        digits.to_image(np.full((8, 8), request.index)).save(images / f"{request.index:05d}/00000.png")
    read = iter([label if label % 2 else (label + 1) % 10 for label in range(10)])
    detect(images, lambda pictures: [next(read)], tmp_path / "detections.jsonl")
    options = MetricOptions(detections=epath.Path(tmp_path / "detections.jsonl"))
    scores = open_geneval(metadata, options, 1).score(epath.Path(images))
    assert [sample.score for sample in scores.samples] == [0.0, 1.0] * 5
