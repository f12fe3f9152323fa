"""From what Mask2Former's queries found to objects with boxes, as mmdet's `MaskFormerFusionHead` decides.

Letters: Q queries, K classes, R C rows and columns.
"""

from typing import NamedTuple

import numpy as np

from janus_jax.evaluation.resize import resize_bilinear

MAX_INSTANCES = 100  # pairs of query and class that are considered for an image


class Instance(NamedTuple):
    """An object."""

    label: int
    box: tuple[int, int, int, int]  # x0, y0, x1, y1; the last column and row of the mask are x1 - 1 and y1 - 1
    confidence: float
    mask: np.ndarray  # [R, C] bool


class Sizes(NamedTuple):
    """Rows and columns of an image on its way through the detector."""

    image: tuple[int, int]
    resized: tuple[int, int]
    padded: tuple[int, int]


def find_instances(class_logits: np.ndarray, mask_logits: np.ndarray, sizes: Sizes, threshold: float) -> list[Instance]:
    """The objects of an image whose confidence is above a threshold, the most confident first.

    The confidence is the probability of the class times the mean probability of the mask inside the mask. It is never
    above the first factor, so masks of other candidates need not be enlarged.

    Args:
        class_logits: [Q, K + 1], of which the last is "no object".
        mask_logits: [Q, R / 4, C / 4] of the padded image.
    """
    shifted = np.exp(class_logits - class_logits.max(axis=1, keepdims=True))
    probabilities = (shifted / shifted.sum(axis=1, keepdims=True))[:, :-1]
    flat = probabilities.ravel()
    candidates = np.argsort(-flat, kind="stable")[:MAX_INSTANCES]
    masks: dict[int, np.ndarray] = {}
    found = []
    for candidate in candidates[flat[candidates] > threshold]:
        query, label = divmod(int(candidate), probabilities.shape[1])
        if query not in masks:
            padded = resize_bilinear(mask_logits[query][..., None].astype(np.float32), *sizes.padded)
            masks[query] = resize_bilinear(padded[: sizes.resized[0], : sizes.resized[1]], *sizes.image)[..., 0]
        mask = masks[query] > 0
        inside = masks[query][mask]
        score = float(flat[candidate]) * float((1 / (1 + np.exp(-inside))).sum() / (len(inside) + 1e-6))
        if score > threshold:
            found.append(Instance(label, mask_box(mask), score, mask))
    return sorted(found, key=lambda instance: -instance.confidence)


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The tight box of a mask, whose far sides lie one beyond its last pixels; all zeros for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return (0, 0, 0, 0)
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
