"""Measures images with networks: features of Inception, and agreement with texts by CLIP.

Letters: N images, D features, K classes, E width of CLIP's common space.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from etils import epath
from jax.sharding import Mesh

from janus_jax.data.images import Normalization, decode_image
from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import ImageReference
from janus_jax.evaluation.replicated_network import Progress, ReplicatedNetwork
from janus_jax.evaluation.resize import MODES, clip_pixels, inception_pixels
from janus_jax.evaluation.scores.frechet import Moments, Origin, moments, total
from janus_jax.models.metric_config import ClipConfig, InceptionConfig
from janus_jax.models.params import Params
from janus_jax.ops.codebook import l2_normalize
from janus_jax.weights.clip import ClipTokenizer, load_clip, read_clip_preprocessor, read_clip_tokenizer
from janus_jax.weights.inception import load_inception

_CLASSIFIED = 16  # images of a batch of `ClipNetwork.classify`


class InceptionFeatures(NamedTuple):
    """What is kept of a set of images."""

    moments: Moments
    logits: np.ndarray  # [N, K] float32


class InceptionNetwork:
    """Computes features for the Fréchet distance.

    Attributes:
        origin: what the features depend on besides the images.
    """

    def __init__(self, config: InceptionConfig, params: Params, mode: str = "clean", mesh: Mesh | None = None):
        """Puts the weights on every device.

        Args:
            mode: how images are resized, a key of `resize.MODES`.
            mesh: devices of this process, over which images are divided; None takes all of them.
        """
        if mode not in MODES:
            raise UserError(f"mode={mode!r} is not one of {', '.join(MODES)}")
        self._network = ReplicatedNetwork(config, params, mesh)
        self.origin = Origin(mode, self._network.weights)

    @classmethod
    def from_file(cls, path: epath.PathLike, mode: str = "clean", mesh: Mesh | None = None) -> "InceptionNetwork":
        """Reads the file of weights. Raises UserError as `weights.inception.load_inception` does."""
        return cls(*load_inception(path), mode, mesh)

    def __call__(self, images: Sequence[ImageReference], progress: Progress | None = None) -> InceptionFeatures:
        """The features of images. Raises UserError for an empty list, and for the first unreadable image."""
        (moments,), logits = self.in_folds(images, 1, progress)
        return InceptionFeatures(moments, logits)

    def in_folds(
        self, images: Sequence[ImageReference], num_folds: int, progress: Progress | None = None
    ) -> tuple[list[Moments], np.ndarray]:
        """Moments of each part of the images, and logits [N, K]; image i belongs to part i modulo their number.

        Raises UserError for an empty list, and for the first unreadable image.
        """
        if not images:
            raise UserError("no images to compute features of")
        prepare = functools.partial(_inception_input, mode=self.origin.mode)
        folds: list[list[Moments]] = [[] for _ in range(num_folds)]
        logits: list[np.ndarray] = []
        first = 0
        for features, batch_logits in self._network.batches(_features, images, prepare, progress):
            for number, fold in enumerate(folds):
                fold[:] = [total([*fold, moments(features[(number - first) % num_folds :: num_folds])])]
            first += len(features)
            logits.append(batch_logits)
        return [total(fold) for fold in folds], np.concatenate(logits)


class ClipNetwork:
    """Scores how well images agree with texts, and tells which of several texts fits an image best."""

    def __init__(
        self,
        config: ClipConfig,
        params: Params,
        tokenizer: ClipTokenizer,
        normalization: Normalization,
        mesh: Mesh | None = None,
    ):
        """Puts the weights on every device; see `InceptionNetwork`."""
        self._config, self._tokenizer, self._normalization = config, tokenizer, normalization
        self._network = ReplicatedNetwork(config, params, mesh)
        self.weights = self._network.weights

    @classmethod
    def from_folder(cls, folder: epath.PathLike, mesh: Mesh | None = None) -> "ClipNetwork":
        """Reads a CLIPModel folder of transformers. Raises UserError as the readers of `weights.clip` do."""
        config, params = load_clip(folder)
        tokenizer, normalization = read_clip_tokenizer(folder, config), read_clip_preprocessor(folder, config)
        return cls(config, params, tokenizer, normalization, mesh)

    def __call__(
        self, images: Sequence[ImageReference], texts: Sequence[str], progress: Progress | None = None
    ) -> tuple[np.ndarray, int]:
        """100 max(cosine, 0) of each image and its text (torchmetrics' CLIP score).

        Returns:
            [N] float64, and the number of texts that were too long and were cut.

        Raises:
            UserError: an image is unreadable.
        """
        ids, num_cut = self._tokenizer.encode(texts)

        def prepare(pair: tuple[ImageReference, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
            return self._pixels(_read(pair[0])), pair[1]

        pairs = list(zip(images, ids, strict=True))
        cosines = [cosine for (cosine,) in self._network.batches(_cosines, pairs, prepare, progress)]
        return 100 * np.maximum(np.concatenate(cosines).astype(np.float64), 0), num_cut

    def classifier(self, texts: Sequence[Sequence[str]]) -> np.ndarray:
        """[K, E] one embedding per class: the normalised mean of those of its texts (CLIP, section 3.1.4)."""
        ids, _ = self._tokenizer.encode([text for of_class in texts for text in of_class])
        batches = self._network.batches(_text_embeddings, list(ids), lambda row: (row,))
        embeddings = iter(np.concatenate([found for (found,) in batches]))
        means = np.stack([np.mean([next(embeddings) for _ in of_class], axis=0) for of_class in texts])
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def classify(self, images: Sequence[PIL.Image.Image], classifier: np.ndarray) -> list[int]:
        """The class of each of one or more RGB images: the one whose embedding is nearest."""
        # Few sizes of batches, since each size has a program of its own.
        padded = [*images, *[images[-1]] * (-len(images) % _CLASSIFIED)]
        batches = self._network.batches(_image_embeddings, padded, lambda image: (self._pixels(image),))
        found = np.concatenate([embeddings for (embeddings,) in batches])[: len(images)]
        return np.argmax(found @ classifier.T, axis=1).tolist()

    def _pixels(self, image: PIL.Image.Image) -> np.ndarray:
        return self._normalization(clip_pixels(image, self._config.image_size))


def _inception_input(image: ImageReference, mode: str) -> tuple[np.ndarray]:
    return (inception_pixels(_read(image), mode),)


def _features(apply: Callable[..., Any], pixels: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(apply(pixels))


def _cosines(apply: Callable[..., Any], pixels: jax.Array, ids: jax.Array) -> tuple[jax.Array]:
    images, texts = _image_embeddings(apply, pixels)[0], _text_embeddings(apply, ids)[0]
    return (jnp.sum(images * texts, axis=-1),)


def _image_embeddings(apply: Callable[..., Any], pixels: jax.Array) -> tuple[jax.Array]:
    return (l2_normalize(apply(pixels, method="encode_images")),)


def _text_embeddings(apply: Callable[..., Any], ids: jax.Array) -> tuple[jax.Array]:
    return (l2_normalize(apply(ids, method="encode_texts")),)


def _read(image: ImageReference) -> PIL.Image.Image:
    return decode_image(image.read(), image.name)
