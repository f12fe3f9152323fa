"""What turns an image into few numbers and back, for the benchmark of reconstructions: an image tokenizer or a VAE.

It computes in float32. Letters: B images, H W rows and columns, S those after resizing, N codes of an image.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from janus_jax.errors import UserError
from janus_jax.inference.image_tokenizer import load_image_tokenizer
from janus_jax.models.config import JanusFlowConfig, VAEConfig, VQConfig
from janus_jax.models.params import Params, bind, build, fingerprint
from janus_jax.ops.image_metrics import resize_bicubic, to_levels
from janus_jax.ops.pixels import normalize
from janus_jax.weights.json_fields import CONFIG_FILE, read_fields
from janus_jax.weights.llamagen import is_image_tokenizer
from janus_jax.weights.native import ARCHITECTURE_FILE, read_architecture
from janus_jax.weights.open_model import open_model
from janus_jax.weights.vae import VAE_FOLDER, load_vae


class Reconstructed(NamedTuple):
    """Images after they were encoded and decoded."""

    levels: np.ndarray  # uint8 [B, S, S, 3]
    codes: np.ndarray | None  # int32 [B, N]; None for a VAE


class Autoencoder:
    """An image tokenizer or a VAE on one device, with one compiled program per shape.

    Attributes:
        image_size: the size that it was made for in pixels; None for a VAE on its own, which does not tell it.
    """

    def __init__(self, config: VQConfig | VAEConfig, params: Params, image_size: int | None):
        self.config, self.image_size = config, image_size
        self._params = params

    @property
    def num_codes(self) -> int | None:
        """Number of entries of the codebook; None for a VAE."""
        return self.config.num_codes if isinstance(self.config, VQConfig) else None

    @property
    def sha256(self) -> str:
        """A hash of the parameters."""
        return fingerprint(self.config, self._params)

    def check_size(self, size: int | None) -> int:
        """The size of the images that it reads, `image_size` unless a user gave another.

        Raises UserError for a size that it cannot have.
        """
        size = size or self.image_size
        if size is None:
            raise UserError("--image_size is missing: a VAE does not tell the size of its images, JanusFlow's has 384")
        if size % self.config.downsampling:
            raise UserError(f"--image_size={size} is not a multiple of {self.config.downsampling}")
        return size

    def __call__(self, pixels: np.ndarray, size: int) -> Reconstructed:
        """Reconstructs images as LlamaGen's evaluation does.

        Args:
            pixels: uint8 [B, H, W, 3].
            size: rows and columns of the result, to which the decoder's float32 output is resized before it is rounded.
        """
        levels, codes = _reconstruct(self._params, pixels, config=self.config, size=size)
        return Reconstructed(np.asarray(levels), None if codes is None else np.asarray(codes))


def open_autoencoder(location: epath.PathLike, ema: bool = False) -> Autoencoder:
    """Loads the image tokenizer or the VAE of a location.

    Args:
        location: LlamaGen's file, a tokenizer's folder or workdir, a Janus model, a VAE of diffusers or ours, or a
            JanusFlow model with its VAE.
        ema: take the average of a tokenizer's parameters over the steps of its training.

    Raises:
        UserError: there is none of these, or it is damaged.
    """
    folder = epath.Path(location)
    if not is_image_tokenizer(folder) and folder.is_dir():
        if _is_vae(folder):
            return Autoencoder(*load_vae(folder, jnp.float32), None)
        if isinstance(model := open_model(folder).config, JanusFlowConfig):
            if not (folder / VAE_FOLDER).exists():
                raise UserError(f"{folder}: this JanusFlow model has no folder {VAE_FOLDER!r} with its VAE")
            return Autoencoder(*load_vae(folder / VAE_FOLDER, jnp.float32), model.siglip.image_size)
    tokenizer = load_image_tokenizer(folder, ema)
    return Autoencoder(tokenizer.config, tokenizer.params, tokenizer.config.image_size)


def _is_vae(folder: epath.Path) -> bool:
    if (folder / ARCHITECTURE_FILE).exists():
        return isinstance(read_architecture(folder), VAEConfig)
    if not (folder / CONFIG_FILE).exists():
        return False
    return read_fields(folder / CONFIG_FILE).values.get("_class_name") == "AutoencoderKL"


@functools.partial(jax.jit, static_argnames=("config", "size"))
def _reconstruct(
    params: Params, pixels: jax.Array, config: VQConfig | VAEConfig, size: int
) -> tuple[jax.Array, jax.Array | None]:
    """([B, size, size, 3] uint8, codes [B, N] or None)."""
    model = bind(build(config), params)
    grid = tuple(side // config.downsampling for side in pixels.shape[1:3])
    with jax.default_matmul_precision("float32"):  # TPUs would otherwise multiply in bfloat16
        encoded = model(normalize(pixels, jnp.float32), method="encode")
        images = model(encoded, *([grid] if isinstance(config, VQConfig) else []), method="decode")
    if images.shape[1] != size:
        images = resize_bicubic(images, size, size)
    return to_levels(images), encoded if isinstance(config, VQConfig) else None
