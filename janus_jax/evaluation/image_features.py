"""Measures images with networks, on all devices of this process: features of Inception, agreement with texts by CLIP.

Threads of the host decode and resize the images of the next batch while the devices compute. The batches follow the
order of the images, so that sums over them are the same in every run. Networks compute in float32 with exact products:
bfloat16 ones, which TPUs use by default, move the features by half a per cent.

Letters: N images, B images of a batch, D features, K classes.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from janus_jax.data.images import Normalization, decode_image
from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import ImageReference
from janus_jax.evaluation.resize import MODES, clip_pixels, inception_pixels
from janus_jax.evaluation.scores.frechet import Moments, Origin, moments
from janus_jax.models.config import AnyConfig, ClipConfig, InceptionConfig
from janus_jax.models.params import Params, bind, build, fingerprint
from janus_jax.ops.codebook import l2_normalize
from janus_jax.weights.clip import ClipTokenizer, load_clip, read_clip_preprocessor, read_clip_tokenizer
from janus_jax.weights.inception import load_inception

ROWS_PER_DEVICE = 32
Progress = Callable[[int, int], None]  # called with the number of images that are done, and of all
Item = TypeVar("Item")


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
        self.origin = Origin(mode, fingerprint(config, jax.device_get(params))[:12])
        self._program = _OnDevices(config, params, _features, mesh)

    @classmethod
    def from_file(cls, path: epath.PathLike, mode: str = "clean", mesh: Mesh | None = None) -> "InceptionNetwork":
        """Reads the file of weights. Raises UserError as `weights.inception.load_inception` does."""
        return cls(*load_inception(path), mode, mesh)

    def __call__(self, images: Sequence[ImageReference], progress: Progress | None = None) -> InceptionFeatures:
        """The features of images. Raises UserError for an empty list, and for the first unreadable image."""
        if not images:
            raise UserError("no images to compute features of")
        prepare = functools.partial(_inception_input, mode=self.origin.mode)
        total, logits = None, []
        for features, batch_logits in self._program.batches(images, prepare, progress):
            part = moments(features)
            total = part if total is None else total + part
            logits.append(batch_logits)
        assert total is not None
        return InceptionFeatures(total, np.concatenate(logits))


class ClipNetwork:
    """Scores how well images agree with texts."""

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
        self.weights = fingerprint(config, jax.device_get(params))[:12]
        self._program = _OnDevices(config, params, _cosines, mesh)

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
            pixels = clip_pixels(_read(pair[0]), self._config.image_size)
            return self._normalization(pixels), pair[1]

        pairs = list(zip(images, ids, strict=True))
        cosines = [cosine for (cosine,) in self._program.batches(pairs, prepare, progress)]
        return 100 * np.maximum(np.concatenate(cosines).astype(np.float64), 0), num_cut


class _OnDevices:
    """A function of batches, with the weights of a network on every device and the rows divided over all devices."""

    def __init__(self, config: AnyConfig, params: Params, function: Callable[..., Any], mesh: Mesh | None):
        devices = np.array(jax.local_devices()) if mesh is None else mesh.devices.flatten()
        rows = Mesh(devices, ("rows",))
        self._num_devices, self._rows = len(devices), NamedSharding(rows, PartitionSpec("rows"))
        self._params = jax.device_put(params, NamedSharding(rows, PartitionSpec()))
        self._run = functools.partial(_run, function=function, config=config)

    def batches(
        self, items: Sequence[Item], prepare: Callable[[Item], tuple[np.ndarray, ...]], progress: Progress | None
    ) -> Iterator[tuple[np.ndarray, ...]]:
        """The results of each batch in turn, without those of padding rows."""
        share = min(ROWS_PER_DEVICE, -(-len(items) // self._num_devices))
        size = share * self._num_devices
        parts = [items[start : start + size] for start in range(0, len(items), size)]
        with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
            waiting = [pool.submit(prepare, item) for item in parts[0]] if parts else []
            for number, part in enumerate(parts):
                prepared = [future.result() for future in waiting]
                following = parts[number + 1] if number + 1 < len(parts) else ()
                waiting = [pool.submit(prepare, item) for item in following]
                padded = [*prepared, *prepared[-1:] * (size - len(part))]
                inputs = [jax.device_put(np.stack(values), self._rows) for values in zip(*padded, strict=True)]
                yield tuple(np.asarray(values)[: len(part)] for values in self._run(self._params, *inputs))
                if progress is not None:
                    progress(number * size + len(part), len(items))


def _inception_input(image: ImageReference, mode: str) -> tuple[np.ndarray]:
    return (inception_pixels(_read(image), mode),)


@functools.partial(jax.jit, static_argnames=("function", "config"))
def _run(params: Params, *inputs: jax.Array, function: Callable[..., Any], config: AnyConfig) -> tuple[jax.Array, ...]:
    with jax.default_matmul_precision("float32"):
        return function(bind(build(config), params), *inputs)


def _features(apply: Callable[..., Any], pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
    return tuple(apply(pixels))


def _cosines(apply: Callable[..., Any], pixels: jax.Array, ids: jax.Array) -> tuple[jax.Array]:
    images, texts = apply(pixels, method="encode_images"), apply(ids, method="encode_texts")
    return (jnp.sum(l2_normalize(images) * l2_normalize(texts), axis=-1),)


def _read(image: ImageReference) -> PIL.Image.Image:
    return decode_image(image.read(), image.name)
