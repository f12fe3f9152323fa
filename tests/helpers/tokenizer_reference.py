"""Arrays that LlamaGen's own code computed (tests/data_files/tokenizers/README.md), in our axes."""

import zlib

import jax.numpy as jnp
import numpy as np

from janus_jax.models.config import LPIPSConfig, PatchDiscriminatorConfig, VQConfig
from janus_jax.models.params import abstract_params, flatten, unflatten
from janus_jax.weights import lpips
from janus_jax.weights.discriminator import from_llamagen
from tests.helpers import REPOSITORY

FOLDER = REPOSITORY / "tests" / "data_files" / "tokenizers"
LPIPS_NARROW = LPIPSConfig(widths=(8, 16, 16, 24, 24))
# The image tokenizer of the reference steps, of a size that LlamaGen's own classes can have.
VQ_SMALL = VQConfig(
    image_size=32,
    base_channels=64,
    channel_multipliers=(1, 2, 2),
    num_res_blocks=1,
    z_channels=16,
    code_dim=4,
    num_codes=32,
    norm_groups=32,
    norm_eps=1e-6,
    commitment=0.25,
)


def load(name):
    """The arrays of a file of the reference."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def below(arrays, prefix):
    """The arrays whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def nhwc(x):
    return jnp.asarray(np.asarray(x).transpose(0, 2, 3, 1))


def discriminator(tensors, base_channels, num_layers):
    """Config, parameters and running statistics of a discriminator of the reference."""
    config = PatchDiscriminatorConfig(base_channels=int(base_channels), num_layers=int(num_layers), norm_eps=1e-5)
    return config, *from_llamagen(tensors, config, "the reference")


def lpips_params(tensors, config):
    """Parameters of LPIPS from tensors by their original names."""
    flat = {}
    for path, leaf in flatten(abstract_params(config)).items():
        values = np.asarray(tensors[lpips.their_name(path)], np.float32)
        flat[path] = jnp.asarray(values.transpose(2, 3, 1, 0) if len(leaf.shape) == 4 else values.reshape(leaf.shape))
    return unflatten(flat)


def narrow_lpips():
    return lpips_params(below(load("lpips_narrow"), "weights/"), LPIPS_NARROW)


def rule_value(name, shape):
    """The value that the rule of the reference gives to a tensor."""
    n = np.random.Generator(np.random.PCG64(zlib.crc32(f"tok.shared/{name}".encode()))).standard_normal(shape)
    fan_in = np.prod(shape[1:])
    if name.endswith("running_var"):
        value = 0.5 + abs(n)
    elif name.endswith("quantize.embedding.weight"):
        value = n
    elif "/lin" in name:
        value = abs(n) / shape[1]
    elif "features." in name:
        value = 0.3 * abs(n) if len(shape) == 1 else n * np.sqrt(2 / fan_in)
    elif len(shape) == 1:
        value = 1 + 0.1 * n if name.endswith("weight") else 0.1 * n
    else:
        value = n / np.sqrt(fan_in)
    return np.float32(value)


def probe(key, shape):
    """Random numbers by which a summary of the reference multiplies a tensor."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(f"tok.shared/probe/{key}".encode()))).standard_normal(shape)


def shapes_of(arrays):
    """Name -> shape of the tensors that follow from the rule."""
    return {
        str(key): tuple(map(int, str(shape).split("x")))
        for key, shape in zip(arrays["weights/key"], arrays["weights/shape"], strict=True)
    }
