"""Detects objects in images with Mask2Former, as mmdet's test pipeline does for GenEval.

An image is resized to at most 1333 x 800 pixels (its ratio is kept), normalised, and padded to multiples of 32.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import PIL.Image
from etils import epath
from jax.sharding import Mesh

from janus_jax.evaluation.replicated_network import Progress, ReplicatedNetwork
from janus_jax.evaluation.resize import resize_bilinear
from janus_jax.evaluation.scores.instances import Instance, Sizes, find_instances
from janus_jax.models.mask2former import SIZE_MULTIPLE
from janus_jax.weights.mask2former import OFFICIAL, LoadedDetector, load_mask2former

LONG_SIDE, SHORT_SIDE = 1333, 800
ROWS_PER_DEVICE = 2
_MEAN = np.array((123.675, 116.28, 103.53), np.float32)  # of ImageNet
_STD = np.array((58.395, 57.12, 57.375), np.float32)


class Detector:
    """Finds the objects of COCO's 80 classes.

    Attributes:
        is_official: whether the weights are mmdet's, with which GenEval's published figures were made.
        weights: short hash of the weights.
    """

    def __init__(self, loaded: LoadedDetector, mesh: Mesh | None = None, scale: tuple[int, int] | None = None):
        """Puts the weights on every device.

        Args:
            mesh: devices of this process; None takes all of them.
            scale: largest long and short side of a resized image; None is 1333 and 800.
        """
        self._network = ReplicatedNetwork(loaded.config, loaded.params, mesh)
        self._scale = scale or (LONG_SIDE, SHORT_SIDE)
        self.is_official, self.weights = loaded.layout == OFFICIAL, self._network.weights
        self.num_classes = loaded.config.num_classes

    @classmethod
    def from_path(cls, path: epath.PathLike, mesh: Mesh | None = None) -> "Detector":
        """Reads mmdet's file or a transformers folder. Raises UserError as `load_mask2former` does."""
        return cls(load_mask2former(path), mesh)

    def __call__(
        self, images: Sequence[PIL.Image.Image], threshold: float, progress: Progress | None = None
    ) -> Iterator[list[Instance]]:
        """The objects of each RGB image whose confidence is above a threshold; all images have the same size."""
        sizes = [self.sizes(image) for image in images]
        row = 0
        for classes, masks in self._network.batches(_segments, images, self._input, progress, ROWS_PER_DEVICE):
            for class_logits, mask_logits in zip(classes, masks, strict=True):
                yield find_instances(class_logits, mask_logits, sizes[row], threshold)
                row += 1

    def sizes(self, image: PIL.Image.Image) -> Sizes:
        """Rows and columns of an image and of what the network reads."""
        long_side, short_side = self._scale
        factor = min(long_side / max(image.size), short_side / min(image.size))
        columns, rows = (int(side * factor + 0.5) for side in image.size)
        padded = (rows + -rows % SIZE_MULTIPLE, columns + -columns % SIZE_MULTIPLE)
        return Sizes((image.height, image.width), (rows, columns), padded)

    def _input(self, image: PIL.Image.Image) -> tuple[np.ndarray]:
        sizes = self.sizes(image)
        pixels = np.rint(resize_bilinear(np.asarray(image, np.float32), *sizes.resized))
        padded = np.zeros((*sizes.padded, 3), np.float32)
        padded[: sizes.resized[0], : sizes.resized[1]] = (pixels - _MEAN) / _STD
        return (padded,)


def _segments(apply: Callable[..., Any], pixels: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(apply(pixels))
