"""The image tokenizer of a model alone, which turns pixels into the codes that are stored with training data.

Letters: B images, N codes per image.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from janus_jax.data.images import to_images
from janus_jax.errors import UserError
from janus_jax.models.config import CodeModelConfig, FamilyConfig, ModelConfig, VQConfig
from janus_jax.models.params import Params, bind, build, fingerprint
from janus_jax.ops.pixels import normalize
from janus_jax.weights.load import load_params
from janus_jax.weights.locations import existing_path
from janus_jax.weights.native import ARCHITECTURE_FILE, open_params, read_architecture
from janus_jax.weights.open_model import open_model


class ImageTokenizer:
    """Computes VQ codes in float32, as the training step does, with one compiled program per batch shape."""

    def __init__(self, config: VQConfig, params: Params):
        self.config = config
        self.params = params
        apply = bind(build(config), params)
        self._encode = jax.jit(lambda pixels: apply(normalize(pixels, jnp.float32), method="encode"))

        def decode(codes: jax.Array, grid: tuple[int, int]) -> jax.Array:
            return apply(codes, grid, method="decode").astype(jnp.float32)

        self._decode = jax.jit(decode, static_argnums=1)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [B, size, size, 3] -> int32 [B, N]."""
        return np.asarray(self._encode(pixels))

    def reconstruct(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, 3] -> the images that their codes decode to, in the same form."""
        height, width = (side // self.config.downsampling for side in pixels.shape[1:3])
        return np.stack([np.asarray(image) for image in to_images(self._decode(self._encode(pixels), (height, width)))])

    @property
    def sha256(self) -> str:
        """A hash of the parameters; tokenizers with the same one give the same codes."""
        return fingerprint(self.config, self.params)


def load_image_tokenizer(folder: epath.PathLike) -> ImageTokenizer:
    """Loads the image tokenizer of a Janus model in any layout, or one that was trained here, in float32.

    Raises:
        UserError: neither is there, or it is damaged.
    """
    folder = existing_path(folder)
    config = _architecture(folder)
    if isinstance(config, VQConfig):
        return ImageTokenizer(config, load_params(open_params(folder, config), jnp.float32))
    reader = open_model(folder)
    vq = reader.config.vq if isinstance(reader.config, CodeModelConfig) else None
    if vq is None:
        raise UserError(f"{folder}: holds a {type(reader.config).__name__} without an image tokenizer")
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
    config = _architecture(folder)
    if config is not None and not isinstance(config, FamilyConfig):
        return None
    model = open_model(folder).config
    return model.understanding.num_tokens, model.image_tokens


def _architecture(folder: epath.Path) -> ModelConfig | None:
    """The architecture of a folder in our layout, None for other folders."""
    return read_architecture(folder) if (folder / ARCHITECTURE_FILE).exists() else None
