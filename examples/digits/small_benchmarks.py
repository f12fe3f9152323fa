"""Digits in the official formats of POPE, MMBench, VQAv2 and GenEval."""

import base64
import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from etils import epath

from examples.digits import data as digits
from examples.digits.benchmark import Judge
from janus_jax.evaluation.image_files import images_below

ROTATION = 1_000_000  # MMBench adds this to the index of a question whose options are rotated by one.


def write_benchmarks(folder: Path, chosen: digits.Digits) -> None:
    """Writes the benchmarks of some digits: three that ask about their images, and one that asks for images."""
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    images = list(map(digits.to_image, chosen.intensities))
    for number, image in enumerate(images):
        image.save(photos / _photo(number), "JPEG", quality=95)
    _write_vqav2(folder, chosen.labels)
    _write_pope(folder, chosen.labels)
    _write_mmbench(folder / "MMBench_DEV_EN.tsv", images, chosen.labels)
    lines = []
    for i, name in enumerate(digits.NAMES):
        prompt = digits.CAPTIONS[i % len(digits.CAPTIONS)].format(name)
        lines.append({"tag": "single_object", "include": [{"class": name, "count": 1}], "prompt": prompt})
    _write_lines(folder / "evaluation_metadata.jsonl", lines)


def detect(images: Path, judge: Judge, path: Path) -> None:
    """Writes what a classifier reads in each image as detections of GenEval: one object that fills the image."""
    lines = []
    for image in images_below(epath.Path(images)):
        with PIL.Image.open(io.BytesIO(image.read())) as opened:
            picture = opened.convert("RGB")
        (label,) = judge([picture])
        box = [0, 0, *picture.size, 1.0]
        lines.append({"file": os.path.relpath(image.name, images), "detections": {digits.NAMES[label]: [box]}})
    _write_lines(path, lines)


def _write_vqav2(folder: Path, labels: np.ndarray) -> None:
    """Free answers of ten annotators. They write a figure, since the official rule turns the word into it."""
    questions, annotations = [], []
    for number, label in enumerate(labels):
        name = str(label)
        identity = {"question_id": number, "image_id": number}
        questions.append({**identity, "question": digits.QUESTIONS[number % len(digits.QUESTIONS)]})
        answers = [{"answer": name, "answer_id": i, "answer_confidence": "yes"} for i in range(1, 11)]
        kinds = {"question_type": "which digit", "answer_type": "other", "multiple_choice_answer": name}
        annotations.append({**identity, **kinds, "answers": answers})
    questions_file = folder / "v2_OpenEnded_mscoco_val2014_questions.json"
    questions_file.write_text(json.dumps({"data_subtype": "val2014", "questions": questions}))
    annotations_file = folder / "v2_mscoco_val2014_annotations.json"
    annotations_file.write_text(json.dumps({"data_subtype": "val2014", "annotations": annotations}))


def _write_pope(folder: Path, labels: np.ndarray) -> None:
    """Yes or no: the digit itself, then another one."""
    lines: list[dict[str, object]] = []
    for number, label in enumerate(labels):
        for asked in (label, (label + 1 + number % 9) % 10):
            text = f"Is there a {digits.NAMES[asked]} in the image?"
            answer = "yes" if asked == label else "no"
            lines.append({"question_id": len(lines) + 1, "image": _photo(number), "text": text, "label": answer})
    _write_lines(folder / "coco_pope_random.json", lines)


def _write_mmbench(path: Path, images: Sequence[PIL.Image.Image], labels: np.ndarray) -> None:
    """Multiple choice of four digits, in each rotation of the options; rotated rows name the row of the image."""
    columns = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "l2-category", "split"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t")
        writer.writeheader()
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            options = [digits.NAMES[(label + step) % 10] for step in (0, 3, 5, 8)]
            for rotation in range(4):
                turned = options[rotation:] + options[:rotation]
                buffer = io.BytesIO()
                image.save(buffer, "PNG")
                row = {
                    "index": number + rotation * ROTATION,
                    "question": digits.QUESTIONS[0],
                    "answer": "ABCD"[turned.index(options[0])],
                    "category": "digits",
                    "l2-category": "reading",
                    "split": "dev",
                    "image": number if rotation else base64.b64encode(buffer.getvalue()).decode(),
                }
                writer.writerow(row | dict(zip("ABCD", turned, strict=True)))


def _photo(number: int) -> str:
    return f"COCO_val2014_{number:012d}.jpg"


def _write_lines(path: Path, lines: Sequence[object]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
