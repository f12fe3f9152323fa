"""The quickstart's benchmark: does the model read held-out digits, and does it draw the digit it is asked for?

The judge of drawings is a classifier that never saw a generated image: a support vector machine on the real training
images, reduced to their original 8 x 8 pixels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from examples.digits.data import CAPTIONS, NAMES, QUESTIONS, Digits, to_image
from janus_jax.inference.janus import JanusPipeline
from janus_jax.inference.janusflow import JanusFlowPipeline

BATCH = 120  # questions answered at a time


class Understanding(NamedTuple):
    accuracy: float
    questions: list[str]
    answers: list[str]
    labels: np.ndarray  # [n]


class Generation(NamedTuple):
    accuracy: float  # share of images that the judge reads as the digit of their prompt
    accuracy_permuted: float  # the same against shuffled prompts: what a model that ignores its prompt would get
    diversity: float  # mean pairwise distance within a class, generated / real
    images: list[PIL.Image.Image]
    labels: np.ndarray  # [n] digit asked for
    confusion: np.ndarray  # [10, 10] asked for, read by the judge


class Judge:
    """Reads a digit from an image; trained on real training images only."""

    def __init__(self, digits: Digits):
        from sklearn.svm import SVC  # an optional dependency

        images = [to_image(intensities) for intensities in digits.intensities]
        self._classifier = SVC(gamma=0.5, C=10).fit(_features(images), digits.labels)

    def __call__(self, images: Sequence[PIL.Image.Image]) -> np.ndarray:
        """Labels [n]."""
        return self._classifier.predict(_features(images))


def evaluate_understanding(model: JanusPipeline | JanusFlowPipeline, digits: Digits) -> Understanding:
    """Asks about every image, the questions in turn; an answer counts only if it is exactly the digit's name."""
    images = [to_image(intensities) for intensities in digits.intensities]
    questions = [QUESTIONS[i % len(QUESTIONS)] for i in range(len(images))]
    answers: list[str] = []
    for start in range(0, len(images), BATCH):
        batch = slice(start, start + BATCH)
        answers += model.chat([[image] for image in images[batch]], questions[batch], max_new_tokens=8)
    correct = [answer == NAMES[label] for answer, label in zip(answers, digits.labels, strict=True)]
    return Understanding(float(np.mean(correct)), questions, answers, digits.labels)


def evaluate_generation(
    model: JanusPipeline | JanusFlowPipeline,
    judge: Judge,
    digits: Digits,
    *,
    images_per_class: int,
    seed: int,
    **sampling: Any,
) -> Generation:
    """Draws `images_per_class` images of each digit and lets the judge read them.

    Args:
        digits: the real ones.
        sampling: options of the drawing, e.g. `cfg_weight`.
    """
    images: list[PIL.Image.Image] = []
    size = to_image(digits.intensities[0]).size  # of what the judge was fitted to
    for name in NAMES:
        caption = CAPTIONS[0].format(name)
        drawn = model.generate_images(caption, images_per_class, seed=seed, **sampling)
        images += [image.resize(size, PIL.Image.Resampling.BICUBIC) for image in drawn]
    labels = np.repeat(np.arange(len(NAMES)), images_per_class)
    read = judge(images)
    shuffled = np.random.default_rng(seed).permutation(labels)
    confusion = np.zeros((len(NAMES), len(NAMES)), int)
    np.add.at(confusion, (labels, read), 1)
    real = [to_image(intensities) for intensities in digits.intensities]
    diversity = mean_pairwise_distance(images, labels) / mean_pairwise_distance(real, digits.labels)
    accuracy, permuted = float(np.mean(read == labels)), float(np.mean(read == shuffled))
    return Generation(accuracy, permuted, diversity, images, labels, confusion)


def mean_pairwise_distance(images: Sequence[PIL.Image.Image], labels: np.ndarray) -> float:
    """Mean Euclidean distance between the pixels of two images of a class, averaged over classes."""
    pixels = np.stack([np.asarray(image, np.float64).ravel() for image in images])
    means = []
    for label in np.unique(labels):
        own = pixels[labels == label]
        squares = np.sum(own**2, axis=1)
        distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * own @ own.T, 0))
        means.append(distances.sum() / (len(own) * (len(own) - 1)))
    return float(np.mean(means))


def reconstruction_psnr(originals: np.ndarray, reconstructions: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of uint8 images [n, H, W, 3]."""
    error = np.mean((originals.astype(np.float64) - reconstructions.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error))


def _features(images: Sequence[PIL.Image.Image]) -> np.ndarray:
    """Grey box means on the 8 x 8 grid of the originals, in [0, 1]."""
    small = [np.asarray(image.convert("L").resize((8, 8), PIL.Image.Resampling.BOX), np.float64) for image in images]
    return np.stack(small).reshape(len(images), -1) / 255
