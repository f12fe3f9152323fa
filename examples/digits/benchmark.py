"""The quickstart's benchmark: does the model read held-out digits, and does it generate the digit it is asked for?

The judge of generated images is a classifier that was never trained on one: a support vector machine fitted to the real
training images, reduced to their original 8 x 8 pixels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from examples.digits.data import CAPTIONS, NAMES, QUESTIONS, Digits, to_image
from janus_jax.inference.janus import JanusPipeline
from janus_jax.inference.janusflow import JanusFlowPipeline

BATCH = 120  # Number of questions in a batch.


class Understanding(NamedTuple):
    """Answers to questions about images."""

    accuracy: float
    questions: list[str]
    answers: list[str]
    labels: np.ndarray  # [n] digit in each image


class Generation(NamedTuple):
    """Generated images and what the judge reads in them."""

    accuracy: float  # share of images in which the judge reads the digit of their prompt
    accuracy_permuted: float  # the same with shuffled prompts: the score of a model that ignores its prompt
    diversity: float  # mean pairwise distance within a class, of generated images divided by that of real ones
    images: list[PIL.Image.Image]
    labels: np.ndarray  # [n] digit that was asked for
    confusion: np.ndarray  # [10, 10] number of images by digit asked for and digit that the judge reads


class Judge:
    """Reads the digit in an image. It is fitted to real training images only."""

    def __init__(self, digits: Digits):
        from sklearn.svm import SVC  # an optional dependency

        images = [to_image(intensities) for intensities in digits.intensities]
        self._classifier = SVC(gamma=0.5, C=10).fit(_features(images), digits.labels)

    def __call__(self, images: Sequence[PIL.Image.Image]) -> np.ndarray:
        """Labels [n]."""
        return self._classifier.predict(_features(images))


def evaluate_understanding(model: JanusPipeline | JanusFlowPipeline, digits: Digits) -> Understanding:
    """Asks one question about every image. An answer is right only if it is exactly the digit's name."""
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
    """Generates `images_per_class` images of each digit and lets the judge read them.

    Args:
        digits: real digits, whose diversity is the measure.
        sampling: options of `generate_images`, for example `cfg_weight`.
    """
    images: list[PIL.Image.Image] = []
    size = to_image(digits.intensities[0]).size  # the size of the images that the judge was fitted to
    for label, name in enumerate(NAMES):
        prompts, numbers = [CAPTIONS[0].format(name)], [label]
        generated = model.generate_images(prompts, images_per_class, seed=seed, prompt_numbers=numbers, **sampling)
        images += [image.resize(size, PIL.Image.Resampling.BICUBIC) for image in generated]
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
        of_class = pixels[labels == label]
        squares = np.sum(of_class**2, axis=1)
        distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * of_class @ of_class.T, 0))
        means.append(distances.sum() / (len(of_class) * (len(of_class) - 1)))
    return float(np.mean(means))


def reconstruction_psnr(originals: np.ndarray, reconstructions: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of uint8 images [n, H, W, 3]."""
    error = np.mean((originals.astype(np.float64) - reconstructions.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error))


def _features(images: Sequence[PIL.Image.Image]) -> np.ndarray:
    """[n, 64] grey values in [0, 1]: box means on the 8 x 8 grid of the original scans."""
    small = [np.asarray(image.convert("L").resize((8, 8), PIL.Image.Resampling.BOX), np.float64) for image in images]
    return np.stack(small).reshape(len(images), -1) / 255
