"""Inception v3 (Szegedy et al., 2016) in the variant of the Fréchet distance: TensorFlow's network of 2015-12-05.

It differs from torchvision's Inception v3: average pools do not count their padding, the last block has a max pool, the
classifier has 1,008 classes and there is no auxiliary head (pytorch-fid, `inception.py`). Names of blocks and branches
are torchvision's. Convolutions with stride 1 keep the size except in the stem, those with stride 2 have no padding.

Letters: B images, H W rows and columns, C channels, D features, K classes.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from janus_jax.models.execution import Execution
from janus_jax.models.initializers import Constant, TorchDefault, declare
from janus_jax.models.layers import Linear
from janus_jax.models.metric_config import InceptionConfig

SMALLEST_IMAGE = 75  # rows and columns that leave one position for the last block


class InceptionOutput(NamedTuple):
    """What the Fréchet distance and the Inception score are computed from."""

    features: jax.Array  # [B, D], the mean over all positions after the last block
    logits: jax.Array  # [B, K] without the classifier's bias, as the Inception score takes them


class Norm(nn.Module):
    """Batch norm with stored statistics."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        zeros, ones, shape = declare(Constant(0.0), (None,)), declare(Constant(1.0), (None,)), (x.shape[-1],)
        mean, variance = self.param("mean", zeros, shape), self.param("variance", ones, shape)
        scale, bias = self.param("scale", ones, shape), self.param("bias", zeros, shape)
        factor = scale * jax.lax.rsqrt(variance + self.eps)
        return x * factor.astype(x.dtype) + (bias - mean * factor).astype(x.dtype)


class Filter(nn.Module):
    """Convolution without a bias; the filter "kernel" is [h, w, in, out] (HWIO)."""

    features: int
    size: tuple[int, int]
    stride: int
    padding: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.size, x.shape[-1], self.features)
        init = declare(TorchDefault(self.size[0] * self.size[1] * x.shape[-1]), (None,) * 4)
        kernel = self.param("kernel", init, shape).astype(x.dtype)
        return jax.lax.conv_general_dilated(
            x, kernel, (self.stride,) * 2, self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


class ConvUnit(nn.Module):
    """Convolution, batch norm, ReLU. `features` is the width in the published network."""

    config: InceptionConfig
    features: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = self.features // self.config.width_divisor
        x = Filter(width, self.size, self.stride, self.padding, name="conv")(x)
        return nn.relu(Norm(self.config.norm_eps, name="norm")(x))


class Block(nn.Module):
    """Parallel branches whose channels are concatenated: the base of all `Mixed` blocks."""

    config: InceptionConfig

    def conv(self, name: str, features: int, *size: int, stride: int = 1) -> ConvUnit:
        """A convolution of this block. Without `size` it is 1x1; with stride 2 it has no padding."""
        padding = "SAME" if stride == 1 else "VALID"
        return ConvUnit(self.config, features, (size[0], size[-1]) if size else (1, 1), stride, padding, name=name)


class Mixed5(Block):
    """Blocks 5b, 5c and 5d (torchvision's InceptionA)."""

    pool_features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = self.conv
        small = conv("branch1x1", 64)(x)
        large = conv("branch5x5_2", 64, 5)(conv("branch5x5_1", 48)(x))
        double = conv("branch3x3dbl_2", 96, 3)(conv("branch3x3dbl_1", 64)(x))
        double = conv("branch3x3dbl_3", 96, 3)(double)
        pooled = conv("branch_pool", self.pool_features)(_average_pool(x))
        return jnp.concatenate([small, large, double, pooled], axis=-1)


class Mixed6a(Block):
    """Block 6a, which halves the size (InceptionB)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = self.conv
        single = conv("branch3x3", 384, 3, stride=2)(x)
        double = conv("branch3x3dbl_2", 96, 3)(conv("branch3x3dbl_1", 64)(x))
        double = conv("branch3x3dbl_3", 96, 3, stride=2)(double)
        return jnp.concatenate([single, double, _halving_pool(x)], axis=-1)


class Mixed6(Block):
    """Blocks 6b to 6e, which factorise 7x7 convolutions (InceptionC)."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, width = self.conv, self.width
        small = conv("branch1x1", 192)(x)
        single = conv("branch7x7_2", width, 1, 7)(conv("branch7x7_1", width)(x))
        single = conv("branch7x7_3", 192, 7, 1)(single)
        double = conv("branch7x7dbl_2", width, 7, 1)(conv("branch7x7dbl_1", width)(x))
        double = conv("branch7x7dbl_4", width, 7, 1)(conv("branch7x7dbl_3", width, 1, 7)(double))
        double = conv("branch7x7dbl_5", 192, 1, 7)(double)
        pooled = conv("branch_pool", 192)(_average_pool(x))
        return jnp.concatenate([small, single, double, pooled], axis=-1)


class Mixed7a(Block):
    """Block 7a, which halves the size (InceptionD)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = self.conv
        single = conv("branch3x3_2", 320, 3, stride=2)(conv("branch3x3_1", 192)(x))
        large = conv("branch7x7x3_2", 192, 1, 7)(conv("branch7x7x3_1", 192)(x))
        large = conv("branch7x7x3_4", 192, 3, stride=2)(conv("branch7x7x3_3", 192, 7, 1)(large))
        return jnp.concatenate([single, large, _halving_pool(x)], axis=-1)


class Mixed7(Block):
    """Blocks 7b and 7c, whose branches split once more (InceptionE)."""

    max_pool: bool  # the pool of 7c, which is an average in torchvision

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = self.conv
        small = conv("branch1x1", 320)(x)
        single = conv("branch3x3_1", 384)(x)
        double = conv("branch3x3dbl_2", 384, 3)(conv("branch3x3dbl_1", 448)(x))
        pool = nn.max_pool(x, (3, 3), padding="SAME") if self.max_pool else _average_pool(x)
        branches = [
            small,
            conv("branch3x3_2a", 384, 1, 3)(single),
            conv("branch3x3_2b", 384, 3, 1)(single),
            conv("branch3x3dbl_3a", 384, 1, 3)(double),
            conv("branch3x3dbl_3b", 384, 3, 1)(double),
            conv("branch_pool", 192)(pool),
        ]
        return jnp.concatenate(branches, axis=-1)


class Inception(nn.Module):
    """Pixels [B, 299, 299, 3], about -1 to 1, -> `InceptionOutput`. Other sizes from `SMALLEST_IMAGE` work too."""

    config: InceptionConfig
    execution: Execution

    @nn.compact
    def __call__(self, pixels: jax.Array) -> InceptionOutput:
        c = self.config
        if pixels.ndim != 4 or min(pixels.shape[1:3]) < SMALLEST_IMAGE or pixels.shape[3] != 3:
            raise ValueError(f"Inception got pixels {pixels.shape}, expected [B, H, W, 3] from {SMALLEST_IMAGE} up")
        x = ConvUnit(c, 32, (3, 3), 2, "VALID", name="conv_1a_3x3")(pixels.astype(self.execution.dtype))
        x = ConvUnit(c, 32, (3, 3), padding="VALID", name="conv_2a_3x3")(x)
        x = _halving_pool(ConvUnit(c, 64, (3, 3), name="conv_2b_3x3")(x))
        x = ConvUnit(c, 80, name="conv_3b_1x1")(x)
        x = _halving_pool(ConvUnit(c, 192, (3, 3), padding="VALID", name="conv_4a_3x3")(x))
        for letter, pool_features in (("b", 32), ("c", 64), ("d", 64)):
            x = Mixed5(c, pool_features, name=f"mixed_5{letter}")(x)
        x = Mixed6a(c, name="mixed_6a")(x)
        for letter, width in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
            x = Mixed6(c, width, name=f"mixed_6{letter}")(x)
        x = Mixed7a(c, name="mixed_7a")(x)
        for letter, max_pool in (("b", False), ("c", True)):
            x = Mixed7(c, max_pool, name=f"mixed_7{letter}")(x)
        features = x.mean(axis=(1, 2))
        logits = Linear(c.num_classes, (None, None), self.execution.dtype, use_bias=False, name="fc")(features)
        return InceptionOutput(features, logits)

    def init_all(self) -> None:
        """Runs every submodule, on the smallest image."""
        self(jnp.zeros((1, SMALLEST_IMAGE, SMALLEST_IMAGE, 3)))


def _average_pool(x: jax.Array) -> jax.Array:
    """The mean over 3x3 positions, of which those outside the image are not counted."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _halving_pool(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), strides=(2, 2))
