"""GenEval's rules against its official script, and whole runs from files."""

import json

import numpy as np
import pytest
from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.image_benchmarks.geneval import open_geneval, read_verdicts
from janus_jax.evaluation.image_benchmarks.options import MetricOptions
from janus_jax.evaluation.scores.geneval import TAGS, Detection, box_iou, counted_detections, relative_position
from tests.helpers.generated_images import geneval_cases, write_run
from tests.helpers.golden_evaluation import rules

GOLDEN = rules("geneval")
CASES = list(geneval_cases())


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def tmp_path(tmp_path):
    return epath.Path(tmp_path)


@pytest.fixture
def benchmark(tmp_path):
    """One image per golden case, with the detections of the case."""
    metadata = write_lines(tmp_path / "evaluation_metadata.jsonl", [case[0] for case in CASES])
    lines = [{"file": f"{i:05d}/00000.png", **case[1]} for i, case in enumerate(CASES)]
    detections = write_lines(tmp_path / "detections.jsonl", lines)
    return open_geneval(metadata, MetricOptions(detections=detections), num_images=1)


@pytest.mark.parametrize("case", GOLDEN["relative_position"])
def test_relative_position(case):
    assert relative_position(case["a"], case["b"]) == case["a_relative_to_b"]


@pytest.mark.parametrize("case", GOLDEN["iou"])
def test_iou(case):
    assert box_iou(case["a"], case["b"]) == pytest.approx(case["iou"], abs=1e-12)


def test_verdicts_and_reasons_are_those_of_the_official_script(benchmark):
    verdicts = read_verdicts(benchmark.options.detections, benchmark.requests)
    for index, (_, _, correct, reason) in enumerate(CASES):
        assert verdicts[index] == [(correct, reason)]


def test_boxes_that_count():
    found = {"dog": [Detection((0, 0, 1, 1), c) for c in (0.3, 0.95, 0.31, 0.9)], "cat": [Detection((0, 0, 1, 1), 0.2)]}
    assert [d.confidence for d in counted_detections(found, "single_object")["dog"]] == [0.95, 0.9, 0.31]
    assert [d.confidence for d in counted_detections(found, "counting")["dog"]] == [0.95]
    assert "cat" not in counted_detections(found, "single_object")
    many = {"dog": [Detection((0, 0, 1, 1), 0.5 + i / 100) for i in range(20)]}
    assert len(counted_detections(many, "colors")["dog"]) == 16


def test_totals_are_those_of_summary_scores(tmp_path):
    """The official results file, in any order, with the published paths of images."""
    summary = GOLDEN["summary"]
    metadata, results = [], []
    for tag, verdicts in summary["per_image_correct"].items():
        for start in range(0, len(verdicts), 4):
            line = {"tag": tag, "include": [{"class": "dog", "count": 1}], "prompt": f"{tag} {start}"}
            for number, correct in enumerate(verdicts[start : start + 4]):
                name = f"out/images/{len(metadata):05d}/samples/{number:04d}.png"
                results.append({"filename": name, **line, "correct": bool(correct), "reason": "", "metadata": "{}"})
            metadata.append(line)
    path = write_lines(tmp_path / "evaluation_metadata.jsonl", metadata)
    official = write_lines(tmp_path / "results.jsonl", np.random.default_rng(0).permutation(results).tolist())
    scores = open_geneval(path, MetricOptions(detections=official)).score(tmp_path / "images elsewhere")
    assert scores.metrics["overall"].value == pytest.approx(summary["overall"], abs=1e-12)
    for tag, expected in summary["per_task"].items():
        assert scores.metrics[tag].value == pytest.approx(expected, abs=1e-12)
    assert [sample.parsed for sample in scores.samples][:3] == ["4 of 4", "2 of 4", "1 of 4"]
    # Images of a prompt are a cluster: with one prompt per kind, nothing is known of the error.
    assert scores.metrics["color_attr"].count == 8 and scores.metrics["color_attr"].stderr > 0
    assert list(scores.metrics)[1:] == list(TAGS)


def test_a_run_is_complete_or_refused(benchmark, tmp_path):
    folder = write_run(benchmark.requests, tmp_path / "images")
    assert benchmark.score(folder).metrics["overall"].count == len(CASES)
    (folder / "00003/00000.png").unlink()
    with pytest.raises(UserError, match=r"1 image\(s\) missing: 00003/00000\.png"):
        benchmark.score(folder)


def test_without_detections_the_images_are_made_ready_for_the_official_script(benchmark, tmp_path):
    folder = write_run(benchmark.requests, tmp_path / "images")
    without = open_geneval(benchmark.files[0], MetricOptions(store=tmp_path / "run"), 1)
    with pytest.raises(UserError, match=r"--detections is missing, .* are in .*run/geneval/official"):
        without.score(folder)
    assert json.loads((tmp_path / "run/geneval/official/00002/metadata.jsonl").read_text()) == CASES[2][0]
    image = tmp_path / "run/geneval/official/00002/samples/0000.png"
    assert image.read_bytes() == (folder / "00002/00000.png").read_bytes()


def damaged_detections():
    first = {"file": "00000/00000.png", **CASES[0][1]}
    yield lambda lines: lines[1:], r"missing: 00000/00000\.png \(1\)"
    yield lambda lines: [*lines, first], r"repeated: 00000/00000\.png"
    yield lambda lines: [*lines, {**first, "file": "00099/00000.png"}], r"not of the benchmark: 00099"
    yield lambda lines: [{**first, "file": "bench.png"}, *lines[1:]], r"line 1: file 'bench\.png'"
    yield lambda lines: [{**first, "detections": {"bench": [[0, 0, 1, 1]]}}, *lines[1:]], "line 1: field 'detections'"
    yield lambda lines: [{**first, "detections": [1]}, *lines[1:]], "line 1: field 'detections'"
    yield lambda lines: [{**first, "colors": {"bench": ["mauve"]}}, *lines[1:]], "line 1: field 'colors'"
    yield lambda lines: [{k: v for k, v in line.items() if k != "colors"} for line in lines], "colors lacks car"
    yield lambda lines: [{**first, "correct": True, "filename": "0/0.png", "prompt": "other"}, *lines[1:]], "'prompt'"
    yield lambda lines: [{**first, "correct": 1, "filename": "0/0.png", "prompt": "x"}, *lines[1:]], "'correct'"


@pytest.mark.parametrize(("damage", "message"), list(damaged_detections()))
def test_damaged_detections_are_one_line(benchmark, damage, message):
    path = benchmark.options.detections
    write_lines(path, damage([json.loads(line) for line in path.read_text().splitlines()]))
    with pytest.raises(UserError, match=message):
        read_verdicts(path, benchmark.requests)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tag": "shape"}, "tag"),
        ({"include": []}, "include"),
        ({"include": [{"class": "dog"}]}, "include"),
        ({"include": [{"class": "dog", "count": 0}]}, "include"),
        ({"include": [{"class": "dog", "count": 1, "color": "mauve"}]}, "include"),
        ({"include": [{"class": "dog", "count": 1, "position": ["above", 0]}]}, "include"),
        ({"exclude": [{"class": "dog", "count": 1, "size": 2}]}, "exclude"),
        ({"prompt": 3}, "prompt"),
    ],
)
def test_damaged_prompts_are_one_line(tmp_path, change, field):
    path = write_lines(tmp_path / "evaluation_metadata.jsonl", [CASES[0][0], {**CASES[0][0], **change}])
    with pytest.raises(UserError, match=rf"line 2: field '{field}'"):
        open_geneval(path, MetricOptions())
