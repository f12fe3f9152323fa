"""Linear, convolution and norm layers, which fix the conventions of the family once: init, axes, eps, float32 norms."""

import math

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from janus_jax.models.initializers import Axes, Constant, Distribution, TorchDefault, declare
from janus_jax.ops.norms import group_norm, rms_norm
from janus_jax.ops.projection import Weight, drop_features, project, project_low_rank

# Names of parameters in forms that only inference makes (`ops.projection` says what the forms are).
SCALE = "kernel_scale"  # scales of an int8 "kernel", beside it
TRANSPOSED = "kernel_transposed"  # a row-major weight matrix, in the place of "kernel"
# Names of the adapter of a weight matrix, beside it (`models.lora`).
LORA_A, LORA_B = "lora_a", "lora_b"  # [in, rank] and [rank, out]
LORA_SCALE = "lora_scale"  # factor of their product
LORA_KEY, LORA_KEEP = "lora_key", "lora_keep"  # only in a step with dropout: random key, share of inputs that are kept
LARGE = 1 << 18  # elements of the smallest convolution filter that is sharded; 1 MB in float32


class Linear(nn.Module):
    """[..., in] -> [..., features] by `ops.projection.project`; the weight matrix "kernel" has logical `axes`."""

    features: int
    axes: Axes
    dtype: DTypeLike
    use_bias: bool = True
    distribution: Distribution | None = None  # values of a fresh weight matrix; None is torch's default

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fan_in = x.shape[-1]
        default = TorchDefault(fan_in)
        scale = self.get_variable("params", SCALE) if self.has_variable("params", SCALE) else None
        if self.has_variable("params", TRANSPOSED):
            weight = Weight(self.get_variable("params", TRANSPOSED), scale, row_major=True)
        else:
            init = declare(self.distribution or default, self.axes)
            weight = Weight(self.param("kernel", init, (fan_in, self.features)), scale)
        x = x.astype(self.dtype)
        y = project(x, weight)
        if self.has_variable("params", LORA_A):
            y = y + self._adapter(x)
        if not self.use_bias:
            return y
        return y + self.param("bias", declare(default, self.axes[1:]), (self.features,)).astype(self.dtype)

    def _adapter(self, x: jax.Array) -> jax.Array:
        """What the adapter adds to the product, [..., in] -> [..., features]."""
        pair: list[jax.Array] = [self.get_variable("params", name) for name in (LORA_A, LORA_B, LORA_SCALE)]
        if self.has_variable("params", LORA_KEY):
            x = drop_features(x, *(self.get_variable("params", name) for name in (LORA_KEY, LORA_KEEP)))
        return project_low_rank(x, *pair)


class Conv(nn.Module):
    """[B, H, W, in] -> [B, H', W', features]; the filter "kernel" is [k, k, in, features] (HWIO)."""

    features: int
    kernel_size: int
    dtype: DTypeLike
    padding: tuple[int, int] = (0, 0)  # (before, after), the same for rows and columns
    stride: int = 1
    # Logical axes of the filter. None: the larger number of channels is sharded if the filter is `LARGE`, otherwise
    # none.
    axes: Axes | None = None
    use_bias: bool = True
    distribution: Distribution | None = None  # values of a fresh filter; None is torch's default

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        default = TorchDefault(self.kernel_size**2 * x.shape[-1])
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        channels = ("conv_in", None) if x.shape[-1] > self.features else (None, "conv_out")
        axes = self.axes or (None, None, *(channels if math.prod(shape) >= LARGE else (None, None)))
        kernel = self.param("kernel", declare(self.distribution or default, axes), shape)
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(self.stride, self.stride),
            padding=(self.padding, self.padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if not self.use_bias:
            return y
        return y + self.param("bias", declare(default, (None,)), (self.features,)).astype(self.dtype)


class RMSNorm(nn.Module):
    """`ops.norms.rms_norm` with a learned scale."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.param("scale", _ONES, (x.shape[-1],)), self.eps)


def layer_norm(eps: float, dtype: DTypeLike, name: str) -> nn.LayerNorm:
    """LayerNorm with float32 statistics. Flax's default, the fast variance E[x^2] - E[x]^2, loses digits."""
    return nn.LayerNorm(
        epsilon=eps, use_fast_variance=False, dtype=dtype, scale_init=_ONES, bias_init=_ZEROS, name=name
    )


class GroupNorm(nn.Module):
    """`ops.norms.group_norm` of [B, H, W, C] with learned scale and bias."""

    groups: int
    eps: float
    dtype: DTypeLike
    swish: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale, bias = (self.param(name, init, (x.shape[-1],)) for name, init in (("scale", _ONES), ("bias", _ZEROS)))
        return group_norm(x, scale, bias, self.groups, self.eps, self.dtype, self.swish)


def gelu(x: jax.Array) -> jax.Array:
    """Exact (erf) GELU, the only one in the family; Flax and JAX default to the tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


def quick_gelu(x: jax.Array) -> jax.Array:
    """x sigmoid(1.702 x), OpenAI's approximation of GELU in CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu}  # by their names in the config.json of transformers

_ONES = declare(Constant(1.0), (None,))
_ZEROS = declare(Constant(0.0), (None,))
