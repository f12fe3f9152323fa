"""GenEval (Ghosh et al., 2023): whether the detected objects are those of the prompt, as its official scripts decide.

The rules are those of `evaluation/evaluate_images.py` and `summary_scores.py` of djghosh13/geneval. Their options have
the official values: boxes do not suppress each other, and colours are judged on the most confident boxes only.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
# The classes of COCO by GenEval's names, in the order of the detector.
CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote"),
    *("computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock"),
    *("vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
RELATIONS = ("left of", "right of", "above", "below")
THRESHOLD, _COUNTING_THRESHOLD = 0.3, 0.9  # a box counts when its confidence is above
_MAX_OBJECTS = 16  # boxes of a class that count
_POSITION_THRESHOLD = 0.1  # share of the sizes of two boxes by which their centres may differ without a relation
_DIRECTION_THRESHOLD = 0.5  # of the normalised offset


class Detection(NamedTuple):
    """An object that a detector found."""

    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
    confidence: float
    color: str | None = None  # one of `COLORS`; None: not classified


class Verdict(NamedTuple):
    """The judgement of one image."""

    correct: bool
    reason: str  # the official sentences, one per line; empty for a correct image


class MissingColorError(ValueError):
    """A prompt asks for a colour, and a box that decides it has none."""


def counted_detections(found: Mapping[str, Sequence[Detection]], tag: str) -> dict[str, list[Detection]]:
    """The detections that count, by class, the most confident first. Classes without any are left out."""
    threshold = _COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    counted = {}
    for name, detections in found.items():
        ordered = sorted(detections, key=lambda detection: -detection.confidence)
        kept = [detection for detection in ordered if detection.confidence > threshold][:_MAX_OBJECTS]
        if kept:
            counted[name] = kept
    return counted


def judge(found: Mapping[str, Sequence[Detection]], metadata: Mapping[str, Any]) -> Verdict:
    """Judges an image by the detections that count and the line of its prompt in `evaluation_metadata.jsonl`.

    Raises MissingColorError, which names the class.
    """
    reasons: list[str] = []
    groups: list[Sequence[Detection] | None] = []  # the boxes of each expected class that is as it should be
    for expected in metadata.get("include", ()):
        boxes, problem = _judge_expected(found, expected, groups)
        groups.append(None if problem else boxes)
        reasons += [problem] if problem else []
    for unwanted in metadata.get("exclude", ()):
        name, count = unwanted["class"], len(found.get(unwanted["class"], ()))
        if count >= unwanted["count"]:
            reasons.append(f"expected {name}<{unwanted['count']}, found {count}")
    return Verdict(not reasons, "\n".join(reasons))


def _judge_expected(
    found: Mapping[str, Sequence[Detection]],
    expected: Mapping[str, Any],
    groups: Sequence[Sequence[Detection] | None],
) -> tuple[Sequence[Detection], str]:
    """The boxes of an expected class, and what is wrong with them."""
    name, count = expected["class"], expected["count"]
    boxes = found.get(name, ())[:count]
    if len(boxes) < count:
        return boxes, f"expected {name}>={count}, found {len(boxes)}"
    if "color" in expected:
        colors = [box.color for box in boxes]
        if None in colors:
            raise MissingColorError(name)
        wanted, right = expected["color"], colors.count(expected["color"])
        if right < count:
            others = ", ".join(f"{colors.count(color)} {color}" for color in COLORS if color in colors)
            return boxes, f"expected {wanted} {name}>={count}, found {right} {wanted}; and {others}"
    if "position" in expected:
        relation, target = expected["position"]
        targets = groups[target]
        if targets is None:
            return boxes, f"no target for {name} to be {relation}"
        for box in boxes:
            for other in targets:
                relations = relative_position(box.box, other.box)
                if relation not in relations:
                    return boxes, f"expected {name} {relation} target, found {' and '.join(relations)} target"
    return boxes, ""


def relative_position(a: Sequence[float], b: Sequence[float]) -> list[str]:
    """Where box A is relative to box B: those of `RELATIONS` that hold, sorted by their names.

    The offset of the centres is reduced by a tenth of the sizes of both boxes, and then divided by the whole offset.
    """
    offsets, reduced = [], []
    for axis in (0, 1):
        offset = (a[axis] + a[axis + 2]) / 2 - (b[axis] + b[axis + 2]) / 2
        sizes = abs(a[axis + 2] - a[axis]) + abs(b[axis + 2] - b[axis])
        offsets.append(offset)
        reduced.append(math.copysign(max(abs(offset) - _POSITION_THRESHOLD * sizes, 0), offset))
    if max(map(abs, reduced)) < 1e-3:
        return []
    dx, dy = (value / math.hypot(*offsets) for value in reduced)
    limit = _DIRECTION_THRESHOLD
    holds = {"left of": dx < -limit, "right of": dx > limit, "above": dy < -limit, "below": dy > limit}
    return sorted(relation for relation in RELATIONS if holds[relation])


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes whose last pixels belong to them, as the official script counts."""

    def area(x0: float, y0: float, x1: float, y1: float) -> float:
        return max(x1 - x0 + 1, 0) * max(y1 - y0 + 1, 0)

    shared = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a[:4]) + area(*b[:4]) - shared
    return shared / union if union else 0.0
