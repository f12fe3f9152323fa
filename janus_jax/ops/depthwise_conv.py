"""Depthwise convolution (ConvNeXt, section 2.3).

Letters: B images, H W rows and columns, C channels, k size of the filter.
"""

import jax
from jaxtyping import Array, Float

from janus_jax.ops.cpu.depthwise_conv import shifted_gradients, shifted_products


@jax.custom_vjp
def depthwise_conv(x: Float[Array, "B H W C"], kernel: Float[Array, "k k 1 C"]) -> Float[Array, "B H W C"]:
    """Filters each channel with its own k x k filter, k odd. Zeros surround the image, whose size stays."""
    return jax.lax.platform_dependent(x, kernel, cpu=shifted_products, default=grouped_convolution)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_conv(x, kernel), (x, kernel)


def _backward(inputs: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    return jax.lax.platform_dependent(*inputs, gradient, cpu=shifted_gradients, default=grouped_gradients)


depthwise_conv.defvjp(_forward, _backward)


def grouped_convolution(x: Float[Array, "B H W C"], kernel: Float[Array, "k k 1 C"]) -> Float[Array, "B H W C"]:
    """`depthwise_conv` as XLA's convolution with one group per channel, for all platforms but CPUs."""
    margin = (kernel.shape[0] // 2, kernel.shape[0] // 2)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=(margin, margin),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def grouped_gradients(
    x: Float[Array, "B H W C"], kernel: Float[Array, "k k 1 C"], gradient: Float[Array, "B H W C"]
) -> tuple[Float[Array, "B H W C"], Float[Array, "k k 1 C"]]:
    """Gradients of the input and of the filter of `grouped_convolution`."""
    return jax.vjp(grouped_convolution, x, kernel)[1](gradient)
