"""The image tokenizer of a checkpoint alone: pixels -> codes, to store them with the training data.

Letters: B images, N codes per image.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from janus_jax.errors import UserError
from janus_jax.models.config import FamilyConfig, JanusConfig, VQConfig
from janus_jax.models.params import Params, abstract_params, bind, build, fingerprint, flatten, unflatten
from janus_jax.ops.pixels import normalize
from janus_jax.weights import native, open_model


class ImageTokenizer:
    """VQ codes as the training step computes them in float32, one compiled program per batch shape."""

    def __init__(self, config: VQConfig, params: Params):
        self.config = config
        self.params = params
        apply = bind(build(config), params)
        self._encode = jax.jit(lambda pixels: apply(normalize(pixels, jnp.float32), method="encode"))

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [B, size, size, 3] -> int32 [B, N]."""
        return np.asarray(self._encode(pixels))

    @property
    def sha256(self) -> str:
        """Two tokenizers of the same hash give the same codes."""
        return fingerprint(self.config, self.params)


def load_image_tokenizer(folder: epath.PathLike) -> ImageTokenizer:
    """Of a Janus model of any layout or an image tokenizer of ours; reads no other parameter, in float32.

    Raises:
        UserError: neither is there, or it is damaged.
    """
    folder = epath.Path(folder)
    if (folder / "model.json").exists():
        config = native.read_architecture(folder)
        if isinstance(config, VQConfig):
            return ImageTokenizer(config, native.load_params(folder, config, jnp.float32))
    source = open_model.open_folder(folder)
    if not isinstance(source.config, JanusConfig):
        raise UserError(f"{folder}: holds a JanusFlow model, which has no image tokenizer")
    paths = flatten(abstract_params(source.config.vq))
    params = {path: jnp.asarray(source.read(open_model.Piece(f"vq/{path}", None)), jnp.float32) for path in paths}
    return ImageTokenizer(source.config.vq, unflatten(params))


@functools.lru_cache(maxsize=1)
def cached_image_tokenizer(folder: str) -> ImageTokenizer:
    """`load_image_tokenizer`, once per process: for the workers of `launch.prepare_data`."""
    return load_image_tokenizer(folder)


def image_lengths(folder: epath.PathLike) -> tuple[int, int] | None:
    """(understanding, generation) tokens per image of a Janus model; None for an image tokenizer, which has no LLM."""
    folder = epath.Path(folder)
    if (folder / "model.json").exists() and not isinstance(native.read_architecture(folder), FamilyConfig):
        return None
    config = open_model.open_folder(folder).config
    return config.siglip.num_tokens, config.image_tokens
