"""GenEval's detections from images alone: Mask2Former finds the objects, CLIP tells their colours."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import PIL.Image

from janus_jax.data.images import decode_image
from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import ImageRequest
from janus_jax.evaluation.detector import Detector
from janus_jax.evaluation.image_features import ClipNetwork
from janus_jax.evaluation.image_files import ImageFile
from janus_jax.evaluation.scores.geneval import CLASSES, COLORS, THRESHOLD
from janus_jax.evaluation.scores.instances import Instance

_BATCH = 64  # images that are in memory
_BACKGROUND = (153, 153, 153)  # "#999", what hides the surroundings of an object from CLIP
_TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")


class GenEvalDetector:
    """Makes the detections of images, in the form that `geneval.read_verdicts` reads."""

    def __init__(self, detector: Detector, clip: ClipNetwork):
        """Raises UserError when the detector knows other classes than COCO's 80."""
        if detector.num_classes != len(CLASSES):
            raise UserError(f"the detector knows {detector.num_classes} classes, expected the {len(CLASSES)} of COCO")
        self._detector, self._clip = detector, clip
        self._classifiers: dict[str, np.ndarray] = {}

    def detect(
        self, requests: Sequence[ImageRequest], images: Sequence[Sequence[ImageFile]]
    ) -> Iterator[dict[str, Any]]:
        """One object per image, in order of the requests. Raises UserError for an unreadable image."""
        pairs = [
            (request, number, file)
            for request, files in zip(requests, images, strict=True)
            for number, file in enumerate(files)
        ]
        for start in range(0, len(pairs), _BATCH):
            batch = [(r, n, decode_image(file.read(), file.name)) for r, n, file in pairs[start : start + _BATCH]]
            for _, group in itertools.groupby(batch, key=lambda entry: entry[2].size):
                same_size = list(group)
                found = self._detector([image for _, _, image in same_size], THRESHOLD)
                for (request, number, image), instances in zip(same_size, found, strict=True):
                    yield self._describe(request, number, image, instances)

    def _describe(
        self, request: ImageRequest, number: int, image: PIL.Image.Image, instances: Sequence[Instance]
    ) -> dict[str, Any]:
        by_class: dict[str, list[Instance]] = {}
        for instance in instances:
            by_class.setdefault(CLASSES[instance.label], []).append(instance)
        colored = {entry["class"] for entry in request.fields.get("include", ()) if "color" in entry}
        return {
            "file": f"{request.index:05d}/{number:05d}.png",
            "detections": {
                name: [[*instance.box, instance.confidence] for instance in found] for name, found in by_class.items()
            },
            "colors": {name: self.colors(image, name, by_class[name]) for name in by_class if name in colored},
        }

    def colors(self, image: PIL.Image.Image, name: str, instances: Sequence[Instance]) -> list[str]:
        """The colour of each object of a class: CLIP sees its box, with everything but its mask hidden."""
        if name not in self._classifiers:
            texts = [[form.format(color=color, name=name) for form in _TEMPLATES] for color in COLORS]
            self._classifiers[name] = self._clip.classifier(texts)
        crops = [_crop(image, instance) for instance in instances]
        return [COLORS[best] for best in self._clip.classify(crops, self._classifiers[name])]


def _crop(image: PIL.Image.Image, instance: Instance) -> PIL.Image.Image:
    background = PIL.Image.new("RGB", image.size, _BACKGROUND)
    return PIL.Image.composite(image, background, PIL.Image.fromarray(instance.mask)).crop(instance.box)
