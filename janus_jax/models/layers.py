"""Linear, convolution and norm layers with the family's conventions fixed once: init, axes, eps, float32 norms."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from janus_jax.models.initializers import Axes, Constant, Distribution, TorchDefault, declare
from janus_jax.ops.cpu.gemv import multiply_rows
from janus_jax.ops.norms import rms_norm

SCALE = "kernel_scale"  # beside a kernel in 8 bits (`weights.quantization`)
TRANSPOSED = "kernel_transposed"  # in the place of a kernel, [features, in] (`weights.weight_layout`)
LARGE = 1 << 18  # elements, 1 MB of float32; a larger kernel is cut over the devices


class Linear(nn.Module):
    """[..., in] -> [..., features]; kernel [in, features] with logical `axes`."""

    features: int
    axes: Axes
    dtype: DTypeLike
    use_bias: bool = True
    distribution: Distribution | None = None  # of the kernel; None is torch's default

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fan_in = x.shape[-1]
        default = TorchDefault(fan_in)
        # Rows of one matrix: with more dimensions, XLA:CPU transposes the operands of the kernel's gradient in memory.
        rows = x.astype(self.dtype).reshape(-1, fan_in)
        if self.has_variable("params", TRANSPOSED):
            y = multiply_rows(rows, self.get_variable("params", TRANSPOSED))
        else:
            kernel = self.param("kernel", declare(self.distribution or default, self.axes), (fan_in, self.features))
            y = rows @ kernel.astype(self.dtype)
        y = y.astype(self.dtype).reshape(*x.shape[:-1], self.features)
        if self.has_variable("params", SCALE):
            y = (y.astype(jnp.float32) * self.get_variable("params", SCALE)).astype(self.dtype)
        if not self.use_bias:
            return y
        return y + self.param("bias", declare(default, self.axes[1:]), (self.features,)).astype(self.dtype)


def apart(x: jax.Array, barrier: bool) -> jax.Array:
    """x, computed by itself: XLA:TPU would fuse its elementwise work into the products before and after it.

    Such a product takes up to 2.5 times as long, much more than writing and reading x. The same for its gradient.
    """
    return jax.lax.optimization_barrier(x) if barrier else x


def gradient_apart(x: jax.Array, barrier: bool) -> jax.Array:
    """x, whose gradient is computed by itself; see `apart`."""
    return _gradient_apart(x) if barrier else x


@jax.custom_vjp
def _gradient_apart(x: jax.Array) -> jax.Array:
    return x


_gradient_apart.defvjp(lambda x: (x, None), lambda _, gradient: (jax.lax.optimization_barrier(gradient),))


class Conv(nn.Module):
    """[B, H, W, in] -> [B, H', W', features]; kernel [k, k, in, features] (HWIO), explicit padding, with bias."""

    features: int
    kernel_size: int
    dtype: DTypeLike
    padding: tuple[int, int] = (0, 0)  # (before, after), the same for rows and columns
    stride: int = 1
    axes: Axes | None = None  # None: the more numerous channels of a large kernel, nothing of a small one

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        default = TorchDefault(self.kernel_size**2 * x.shape[-1])
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        cut = ("conv_in", None) if x.shape[-1] > self.features else (None, "conv_out")
        axes = self.axes or (None, None, *(cut if math.prod(shape) >= LARGE else (None, None)))
        kernel = self.param("kernel", declare(default, axes), shape)
        bias = self.param("bias", declare(default, (None,)), (self.features,))
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(self.stride, self.stride),
            padding=(self.padding, self.padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + bias.astype(self.dtype)


class RMSNorm(nn.Module):
    """`ops.norms.rms_norm` with a learned scale."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.param("scale", _ONES, (x.shape[-1],)), self.eps)


def layer_norm(eps: float, dtype: DTypeLike, name: str) -> nn.LayerNorm:
    """LayerNorm with float32 statistics; the fast variance E[x^2] - E[x]^2 of Flax's default loses digits."""
    return nn.LayerNorm(
        epsilon=eps, use_fast_variance=False, dtype=dtype, scale_init=_ONES, bias_init=_ZEROS, name=name
    )


def group_norm(groups: int, eps: float, dtype: DTypeLike, name: str) -> nn.GroupNorm:
    """GroupNorm over channel groups, float32 statistics."""
    return nn.GroupNorm(
        num_groups=groups,
        epsilon=eps,
        use_fast_variance=False,
        dtype=dtype,
        scale_init=_ONES,
        bias_init=_ZEROS,
        name=name,
    )


def gelu(x: jax.Array) -> jax.Array:
    """Exact (erf) GELU, the only one in the family; Flax and JAX default to the tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


_ONES = declare(Constant(1.0), (None,))
_ZEROS = declare(Constant(0.0), (None,))
