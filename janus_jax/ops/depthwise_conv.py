"""Depthwise convolution (ConvNeXt, section 2.3).

XLA's convolution with a group per channel is slow on a CPU: for 24 x 24 x 768 and a 7 x 7 kernel 13 times slower than
49 shifted products, with gradients 9 times. So there it is written as these. Gradients are written out too: deriving
them takes XLA three times as long to compile.

Letters: B images, H W rows and columns, C channels, k size of the kernel.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def depthwise_conv(x: Float[Array, "B H W C"], kernel: Float[Array, "k k 1 C"]) -> Float[Array, "B H W C"]:
    """Each channel with a k x k kernel of its own, k odd, zeros around the image; the size stays."""
    return jax.lax.platform_dependent(x, kernel, cpu=_shifted_products, default=_grouped_convolution)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_conv(x, kernel), (x, kernel)


def _backward(inputs: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    return jax.lax.platform_dependent(*inputs, gradient, cpu=_shifted_gradients, default=_grouped_gradients)


depthwise_conv.defvjp(_forward, _backward)


def _shifted_products(x: Array, kernel: Array) -> Array:
    size, (height, width) = kernel.shape[0], x.shape[1:3]
    padded = _pad(x, size)
    y = jnp.zeros_like(x)
    for i in range(size):
        for j in range(size):
            y = y + padded[:, i : i + height, j : j + width] * kernel[i, j, 0]
    return y


def _shifted_gradients(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
    """To the input flows the gradient's convolution with the kernel upside down."""
    size, (height, width) = kernel.shape[0], x.shape[1:3]
    padded = _pad(x, size)

    def kernel_row(i: Array) -> Array:
        rows = jax.lax.dynamic_slice_in_dim(padded, i, height, axis=1)
        columns = [jnp.sum(rows[:, :, j : j + width] * gradient, axis=(0, 1, 2)) for j in range(size)]
        return jnp.stack(columns)

    kernel_gradient = jax.lax.map(kernel_row, jnp.arange(size))[:, :, None]
    return _shifted_products(gradient, kernel[::-1, ::-1]), kernel_gradient


def _pad(x: Array, size: int) -> Array:
    margin = (size // 2, size // 2)
    return jnp.pad(x, ((0, 0), margin, margin, (0, 0)))


def _grouped_convolution(x: Array, kernel: Array) -> Array:
    margin = (kernel.shape[0] // 2, kernel.shape[0] // 2)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=(margin, margin),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _grouped_gradients(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
    return jax.vjp(_grouped_convolution, x, kernel)[1](gradient)
