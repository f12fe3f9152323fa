"""The image tokenizer of a model alone, which turns pixels into the codes that are stored with training data.

Letters: B images, N codes per image.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from janus_jax.errors import UserError
from janus_jax.models.config import CodeModelConfig, VQConfig
from janus_jax.models.params import Params, bind, build, fingerprint
from janus_jax.ops.pixels import normalize
from janus_jax.weights.llamagen import is_image_tokenizer, read_tokenizer
from janus_jax.weights.load import load_params
from janus_jax.weights.locations import existing_path
from janus_jax.weights.open_model import open_model


class ImageTokenizer:
    """Computes VQ codes in float32, as the training step does, with one compiled program per batch shape."""

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
        """A hash of the parameters; tokenizers with the same one give the same codes."""
        return fingerprint(self.config, self.params)


def load_image_tokenizer(location: epath.PathLike, ema: bool = False) -> ImageTokenizer:
    """Loads the image tokenizer of a Janus model in any layout, one that was trained here, or LlamaGen's file.

    It is loaded in float32.

    Args:
        ema: take the average of the parameters over the steps of the training.

    Raises:
        UserError: none of them is there, it is damaged, or it keeps no average.
    """
    location = existing_path(location)
    if is_image_tokenizer(location):
        saved = read_tokenizer(location)
        params = saved.ema if ema else saved.params
        if params is None:
            raise UserError(f"--ema, but {location} keeps no average of its parameters")
        return ImageTokenizer(saved.config, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params))
    reader = open_model(location, ema)
    vq = reader.config.vq if isinstance(reader.config, CodeModelConfig) else None
    if vq is None:
        raise UserError(f"{location}: holds a {type(reader.config).__name__} without an image tokenizer")
    params = load_params(reader, jnp.float32, select=lambda path: path.startswith("vq/"))
    return ImageTokenizer(vq, params["vq"])


@functools.lru_cache(maxsize=1)
def cached_image_tokenizer(folder: str) -> ImageTokenizer:
    """`load_image_tokenizer`, once per process: for the workers of `launch.prepare_data`."""
    return load_image_tokenizer(folder)


def image_lengths(folder: epath.PathLike) -> tuple[int, int] | None:
    """The numbers of tokens that a Janus model has for an image to understand and for an image to generate.

    None for an image tokenizer, which has no language model.
    """
    folder = existing_path(folder)
    if is_image_tokenizer(folder):
        return None
    model = open_model(folder).config
    return model.understanding.num_tokens, model.image_tokens
