"""LPIPS (Zhang et al., 2018): the distance of two images as a VGG-16 sees them. Its parameters are never trained here.

Letters: B images, H W pixels, C channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.models.config import VGG_CONVOLUTIONS, LPIPSConfig
from janus_jax.models.execution import Execution
from janus_jax.models.initializers import Constant, declare
from janus_jax.models.layers import Conv
from janus_jax.ops.perceptual_distance import feature_distance

# From pixels in [-1, 1] to the numbers that VGG-16 was trained on: ImageNet's mean and deviation for [0, 1], rounded as
# in the code of LPIPS.
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)


class VGG(nn.Module):
    """The convolutions of VGG-16. Returns the features of each stage, before its pooling."""

    config: LPIPSConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        stages = []
        for i, (width, convolutions) in enumerate(zip(self.config.widths, VGG_CONVOLUTIONS, strict=True)):
            if i:
                x = _largest_of_four(x)
            for j in range(convolutions):
                conv = Conv(width, 3, self.execution.dtype, (1, 1), axes=(None,) * 4, name=f"stage_{i}_conv_{j}")
                x = nn.relu(conv(x))
            stages.append(x)
        return stages


class LPIPS(nn.Module):
    """Distance of two images. Without the dropout that the original's training leaves on by mistake."""

    config: LPIPSConfig
    execution: Execution

    @nn.compact
    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """[B, H, W, 3] in [-1, 1] each -> the distance of each stage [5, B] in float32; LPIPS is their sum.

        Convolutions run in the compute dtype, all that follows in float32. The least side is 16 pixels.
        """
        trunk = VGG(self.config, self.execution, name="trunk")
        pairs = zip(*(trunk((x.astype(jnp.float32) - _SHIFT) / _SCALE) for x in (a, b)), strict=True)
        return jnp.stack([feature_distance(x, y, self._head(i, x.shape[-1])) for i, (x, y) in enumerate(pairs)])

    def init_all(self) -> None:
        """Runs every submodule, on the smallest images."""
        self(jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 16, 16, 3)))

    def _head(self, stage: int, channels: int) -> jax.Array:
        """Weights of the channels of a stage, [C]."""
        return self.param(f"head_{stage}", declare(Constant(1 / channels), (None,)), (channels,))


def _largest_of_four(x: jax.Array) -> jax.Array:
    """The largest of each 2 x 2 pixels, [B, H, W, C] -> [B, H // 2, W // 2, C]; an odd last row or column is left out.

    The gradient of `nn.max_pool` is slow on CPUs: 5 % of a step of the tiny tokenizer of `benchmarks.tokenizer`. Here
    equal values share it, of which PyTorch gives all to the first; after a ReLU these are zeros, which pass none on.
    """
    height, width = x.shape[1] // 2, x.shape[2] // 2
    windows = x[:, : 2 * height, : 2 * width].reshape(-1, height, 2, width, 2, x.shape[-1])
    return windows.max(axis=(2, 4))
