import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from janus_jax.ops.cpu.depthwise_conv import shifted_gradients, shifted_products
from janus_jax.ops.depthwise_conv import depthwise_conv, grouped_convolution, grouped_gradients

PLATFORMS = {
    "chosen": (depthwise_conv, lambda x, k, g: jax.vjp(depthwise_conv, x, k)[1](g)),
    "cpu": (shifted_products, shifted_gradients),
    "others": (grouped_convolution, grouped_gradients),
}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_value_and_gradients_equal_pytorch_on_every_platform(platform):
    convolve, differentiate = PLATFORMS[platform]
    rng = np.random.default_rng(0)
    x, kernel, weights = (rng.standard_normal(shape) for shape in ((2, 6, 3, 4), (5, 5, 1, 4), (2, 6, 3, 4)))

    @jax.jit
    def run(x, kernel, weights):
        return convolve(x, kernel), *differentiate(x, kernel, weights)

    torch_x, torch_kernel = (torch.tensor(value, requires_grad=True) for value in (x, kernel))
    expected = torch.nn.functional.conv2d(
        torch_x.permute(0, 3, 1, 2), torch_kernel.permute(3, 2, 0, 1), padding=2, groups=4
    ).permute(0, 2, 3, 1)
    (expected * torch.tensor(weights)).sum().backward()
    ours = run(*map(jnp.float32, (x, kernel, weights)))
    for value, theirs in zip(ours, (expected.detach(), torch_x.grad, torch_kernel.grad), strict=True):
        np.testing.assert_allclose(value, theirs.numpy(), rtol=0, atol=1e-5)
