"""GenEval: 553 prompts about objects, their number, colours and positions, four images each.

The objects are found here by Mask2Former and CLIP (`geneval_detection`), or by any detector outside of this package.
Its detections come as JSON Lines, one object per image:

    {"file": "00000/00000.png", "detections": {"bench": [[x0, y0, x1, y1, confidence], ...]}, "colors": {"bench":
    ["red", ...]}}

where `colors` has a colour per box of a class whose prompt asks for one. The results of the official script are read as
well. Files are known by the last folder with a number and the number of the image: `00000/samples/0000.png` also works.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import ImageRequest, Metric, SampleScore, Scores
from janus_jax.evaluation.detector import Detector
from janus_jax.evaluation.image_benchmarks.geneval_detection import GenEvalDetector
from janus_jax.evaluation.image_benchmarks.options import MetricOptions
from janus_jax.evaluation.image_features import ClipNetwork
from janus_jax.evaluation.image_files import ImageFile, copy_files, generated_images
from janus_jax.evaluation.readers.records import Record, first_ten, read_json_lines
from janus_jax.evaluation.scores.geneval import (
    COLORS,
    RELATIONS,
    TAGS,
    Detection,
    MissingColorError,
    Verdict,
    counted_detections,
    judge,
)
from janus_jax.evaluation.statistics import mean_metric, mean_of_metrics
from janus_jax.storage import write_whole

NUM_IMAGES = 4  # per prompt, in the paper and in the official layout
_FILE = re.compile(r"(?:.*/)?(\d{1,9})/(?:samples/)?(\d{1,9})\.png")
_MAX_COUNT = 1000  # objects of a class that a prompt may ask for
_NOTE = "GenEval's verdicts differ from people's by up to 17.7 points on strong models (arXiv 2512.16853)"


@dataclasses.dataclass(frozen=True)
class GenEval:
    """The benchmark. A request's fields are its line in `evaluation_metadata.jsonl`."""

    requests: Sequence[ImageRequest]
    files: Sequence[epath.Path]
    options: MetricOptions
    name: str = "geneval"

    def score(self, folder: epath.Path) -> Scores:
        """Judges every image by the detections, and averages the six kinds of prompts.

        Raises:
            UserError: images are missing from a folder that exists, there are no detections, they do not belong to the
                images one to one, or lack a colour that a verdict needs.
        """
        images = generated_images(self.requests, folder) if folder.exists() else None
        if self.options.detections is None and self.options.detector is not None and images is not None:
            verdicts, origin = self._detect(images)
        else:
            what = "the results file of GenEval's own script, or detections as JSON Lines"
            detections = self.options.require_judgement("detections", self, what, folder)
            verdicts, origin = read_verdicts(detections, self.requests), f"verdicts from {detections.name}"
        by_tag: dict[str, list[tuple[int, Verdict]]] = {}
        samples = []
        for request in self.requests:
            judged = verdicts[request.index]
            by_tag.setdefault(request.fields["tag"], []).extend((request.index, verdict) for verdict in judged)
            samples.append(_sample(request, judged))
        tags = {
            tag: mean_metric([verdict.correct for _, verdict in by_tag[tag]], [index for index, _ in by_tag[tag]])
            for tag in TAGS
            if tag in by_tag
        }
        missing = [tag for tag in TAGS if tag not in tags]
        notes = [_NOTE, origin]
        notes += [f"without prompts of {', '.join(missing)}, so the overall figure is not comparable"] * bool(missing)
        return Scores(
            headline="overall",
            metrics={"overall": mean_of_metrics(list(tags.values())), **tags},
            samples=samples,
            counts={},
            tables={"GenEval by kind of prompt": _table(tags)},
            notes=notes,
        )

    def _detect(self, images: Sequence[Sequence[ImageFile]]) -> tuple[dict[int, list[Verdict]], str]:
        """Verdicts from the images themselves, and what a reader must know of them.

        With `options.store` the detections are kept in `<store>/geneval/detections.jsonl`.
        """
        clip_folder = self.options.require("clip", self.name, "a CLIP folder of transformers, which tells colours")
        detector = Detector.from_path(self.options.require("detector", self.name, "weights of Mask2Former"))
        clip = ClipNetwork.from_folder(clip_folder)
        progress, total = self.options.progress(f"{self.name}: detector"), sum(map(len, images))
        lines = []
        for line in GenEvalDetector(detector, clip).detect(self.requests, images):
            lines.append(line)
            progress(len(lines), total)
        if self.options.store is not None:
            path = self.options.store / self.name / "detections.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))
        records = (Record(line, f"the detections of {line['file']}") for line in lines)
        kind = "mmdet's weights" if detector.is_official else "other weights than the published figures"
        origin = f"detected here with {kind} ({detector.weights}) and CLIP {clip.weights}"
        return verdicts_of(records, self.requests, self.name), origin

    def write_submission(self, images: epath.Path, folder: epath.Path) -> Sequence[epath.Path]:
        """Writes `<n>/metadata.jsonl` and `<n>/samples/<digits>.png`, which the official script reads."""
        written = []
        for request, files in zip(self.requests, generated_images(self.requests, images), strict=True):
            target = folder / f"{request.index:05d}"
            samples = {target / "samples" / f"{number:04d}.png": file.path for number, file in enumerate(files)}
            written += copy_files(samples)
            metadata = target / "metadata.jsonl"
            metadata.write_text(json.dumps(dict(request.fields)) + "\n")
            written.append(metadata)
        return written


def open_geneval(path: epath.PathLike, options: MetricOptions, num_images: int = NUM_IMAGES) -> GenEval:
    """Reads `evaluation_metadata.jsonl`.

    Raises:
        UserError: the file is damaged, or a line asks for what no rule of GenEval covers.
    """
    path = epath.Path(path)
    requests = []
    for index, line in enumerate(read_json_lines(path)):
        line.one_of("tag", TAGS)
        _check_expected(line, "include", ("class", "count", "color", "position"))
        _check_expected(line, "exclude", ("class", "count"))
        requests.append(ImageRequest(index, str(index), line.text("prompt"), num_images, dict(line.values)))
    if not requests:
        raise UserError(f"{path}: empty, expected one prompt per line")
    return GenEval(requests, [path], options)


def read_verdicts(path: epath.Path, requests: Sequence[ImageRequest]) -> dict[int, list[Verdict]]:
    """The verdict of each image by the index of its request, from a file of detections or of official results.

    Raises:
        UserError: a line is damaged, or images are missing, repeated or unknown. Up to ten are named.
    """
    return verdicts_of(read_json_lines(path), requests, str(path))


def verdicts_of(lines: Iterable[Record], requests: Sequence[ImageRequest], origin: str) -> dict[int, list[Verdict]]:
    """The same for lines that were read; `origin` is what messages call them all."""
    by_index = {request.index: request for request in requests}
    found: dict[tuple[int, int], Verdict] = {}
    unknown, repeated = [], []
    for line in lines:
        official = "correct" in line.values
        name = line.text("filename" if official else "file")
        match = _FILE.fullmatch(name.replace("\\", "/"))
        if match is None:
            raise UserError(f"{line.origin}: file {name!r}, expected a path that ends in <prompt>/<image>.png")
        index, number = int(match[1]), int(match[2])
        if index not in by_index or number >= by_index[index].num_images:
            unknown.append(name)
        elif (index, number) in found:
            repeated.append(name)
        else:
            metadata = by_index[index].fields
            found[index, number] = _official_verdict(line, metadata) if official else _judge(line, metadata)
    wanted = [(request.index, number) for request in requests for number in range(request.num_images)]
    missing = [f"{index:05d}/{number:05d}.png" for index, number in wanted if (index, number) not in found]
    for what, names in (("missing", missing), ("repeated", repeated), ("not of the benchmark", unknown)):
        if names:
            raise UserError(f"{origin}: images {what}: {first_ten(names)}")
    return {r.index: [found[r.index, number] for number in range(r.num_images)] for r in requests}


def _official_verdict(line: Record, metadata: Mapping[str, Any]) -> Verdict:
    """A line of the official script, whose prompt must be the one that was asked."""
    if type(line.values["correct"]) is not bool:
        raise line.error("correct", "true or false")
    if line.text("prompt") != metadata["prompt"]:
        raise line.error("prompt", f"{metadata['prompt']!r}, the prompt of this image")
    return Verdict(line.values["correct"], str(line.values.get("reason") or ""))


def _judge(line: Record, metadata: Mapping[str, Any]) -> Verdict:
    """A line of detections."""
    boxes, colors = line.values.get("detections"), line.values.get("colors", {})
    if not isinstance(boxes, dict):
        raise line.error("detections", "an object from class to boxes")
    if not isinstance(colors, dict):
        raise line.error("colors", "an object from class to one colour per box")
    found = {name: _detections(line, name, boxes[name], colors.get(name)) for name in boxes}
    try:
        return judge(counted_detections(found, metadata["tag"]), metadata)
    except MissingColorError as error:
        raise UserError(f"{line.origin}: colors lacks {error}, whose colour the prompt asks for") from error


def _detections(line: Record, name: str, boxes: Any, colors: Any) -> list[Detection]:
    if not isinstance(boxes, list) or not all(_is_box(box) for box in boxes):
        raise line.error("detections", f"lists of [x0, y0, x1, y1, confidence] for {name!r}")
    if colors is None:
        return [Detection(tuple(box[:4]), box[4]) for box in boxes]
    if not isinstance(colors, list) or len(colors) != len(boxes) or not all(color in COLORS for color in colors):
        raise line.error("colors", f"one of {', '.join(COLORS)} for each of the {len(boxes)} boxes of {name!r}")
    return [Detection(tuple(box[:4]), box[4], color) for box, color in zip(boxes, colors, strict=True)]


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 5 and all(type(x) in (int, float) and math.isfinite(x) for x in box)


def _check_expected(line: Record, key: str, known: Sequence[str]) -> None:
    """Checks the objects that a prompt asks for, or excludes."""
    entries = line.values.get(key, [])
    if not isinstance(entries, list) or (key == "include" and not entries):
        raise line.error(key, "a list of objects")
    for place, entry in enumerate(entries):
        fits = isinstance(entry, dict) and isinstance(entry.get("class"), str) and entry.keys() <= set(known)
        count = entry.get("count") if fits else None
        if type(count) is not int or not 0 < count <= _MAX_COUNT:
            raise line.error(key, f"objects with {', '.join(known)}, of which class and count are needed")
        if "color" in entry and entry["color"] not in COLORS:
            raise line.error(key, f"a color that is one of {', '.join(COLORS)}")
        if "position" in entry and not _is_position(entry["position"], place):
            raise line.error(key, f"a position [relation, number of an earlier object], with one of {RELATIONS}")


def _is_position(value: Any, place: int) -> bool:
    fits = isinstance(value, list) and len(value) == 2 and value[0] in RELATIONS
    return fits and type(value[1]) is int and 0 <= value[1] < place


def _sample(request: ImageRequest, verdicts: Sequence[Verdict]) -> SampleScore:
    right = sum(verdict.correct for verdict in verdicts)
    images = [verdict._asdict() for verdict in verdicts]
    fields = {"tag": request.fields["tag"], "images": images}
    return SampleScore(request.index, f"{right} of {len(verdicts)}", right / len(verdicts), fields)


def _table(tags: Mapping[str, Metric]) -> list[list[Any]]:
    return [["kind", "share of correct images", "images"], *([tag, m.value, m.count] for tag, m in tags.items())]
