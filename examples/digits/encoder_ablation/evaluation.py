"""What is measured of an arm: answers about held-out mosaics, generated mosaics, and a linear probe of features."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from examples.digits.benchmark import Judge
from examples.digits.data import IMAGE_SIZE
from examples.digits.encoder_ablation.mosaics import KINDS, PLACES, Mosaic, Question, ask, caption, quadrants
from janus_jax.inference.janus import JanusPipeline

CFG_WEIGHT = 2.5  # of all arms that generate
BATCH = 120  # number of questions in a batch


class Asked(NamedTuple):
    """Held-out mosaics, each with one question of each kind."""

    mosaics: list[Mosaic]
    questions: list[list[Question]]


def make_questions(mosaics: list[Mosaic], seed: int) -> Asked:
    rng = np.random.default_rng(seed)
    return Asked(mosaics, [[ask(mosaic, kind, rng) for kind in KINDS] for mosaic in mosaics])


def understanding(model: JanusPipeline, asked: Asked) -> dict[str, float]:
    """Share of right answers for each kind of question, and over all."""
    pairs = [
        (mosaic.image, question)
        for mosaic, questions in zip(asked.mosaics, asked.questions, strict=True)
        for question in questions
    ]
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        answers = model.chat([[image] for image, _ in batch], [q.text for _, q in batch], max_new_tokens=4)
        for answer, (_, question) in zip(answers, batch, strict=True):
            right[question.kind].append(answer == question.answer)
    return {kind: float(np.mean(values)) for kind, values in right.items()} | {
        "all": float(np.mean(list(right.values())))
    }


def most_common_answer(asked: Asked) -> float:
    """Accuracy of the most common answer to each kind of question, which needs no image."""
    shares = []
    for kind in range(len(KINDS)):
        _, counts = np.unique([questions[kind].answer for questions in asked.questions], return_counts=True)
        shares.append(counts.max() / counts.sum())
    return float(np.mean(shares))


def generation(model: JanusPipeline, judge: Judge, asked: Asked, seed: int) -> float:
    """Share of the digits of generated mosaics that the judge reads as their captions name them."""
    captions = [caption(mosaic.labels) for mosaic in asked.mosaics]
    images = model.generate_images(captions, 1, cfg_weight=CFG_WEIGHT, seed=seed)
    return read_digits(judge, images, asked.mosaics)


def read_digits(judge: Judge, images: list[PIL.Image.Image], mosaics: list[Mosaic]) -> float:
    """Share of the digits in images that the judge reads as the labels of the mosaics."""
    size = (IMAGE_SIZE, IMAGE_SIZE)  # of the images to which the judge was fitted
    parts = [part.resize(size, PIL.Image.Resampling.BICUBIC) for part in quadrants(images)]
    return float(np.mean(judge(parts) == np.concatenate([mosaic.labels for mosaic in mosaics])))


def linear_probe(
    training: np.ndarray, training_labels: np.ndarray, held_out: np.ndarray, held_out_labels: np.ndarray
) -> float:
    """Accuracy of a linear classifier of the digit at a place, from the features of the tokens that show it.

    It is ridge regression to one-hot labels in closed form, one for all places.

    Args:
        training, held_out: [n, 16, E] features of the 4 x 4 tokens of each image.
        training_labels, held_out_labels: [n, 4] digit at each place.
    """
    x, y = (jnp.asarray(by_place(features), jnp.float32) for features in (training, held_out))
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-6
    x, y = ((z - mean) / std for z in (x, y))
    x, y = (jnp.concatenate([z, jnp.ones((len(z), 1))], axis=1) for z in (x, y))
    targets = jax.nn.one_hot(training_labels.ravel(), 10)
    weights = jnp.linalg.solve(x.T @ x + 1e-2 * len(x) * jnp.eye(x.shape[1]), x.T @ targets)
    return float(np.mean(np.asarray(jnp.argmax(y @ weights, axis=1)) == held_out_labels.ravel()))


def by_place(features: np.ndarray) -> np.ndarray:
    """[n, 16, E] -> [n * 4, 4 * E]: the features of the 2 x 2 tokens at each of PLACES."""
    n, tokens, width = features.shape
    half = int(tokens**0.5) // 2
    grid = np.asarray(features).reshape(n, 2, half, 2, half, width)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(n * len(PLACES), half * half * width)
