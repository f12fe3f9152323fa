"""The PatchGAN discriminator (Isola et al., 2017) as LlamaGen trains its image tokenizer with it.

Batch normalisation keeps its running statistics outside of the module: training takes the statistics of the batch and
returns them, evaluation is given the running ones. Letters: B images, H W pixels, h w rows and columns of patches.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from janus_jax.models.config import PatchDiscriminatorConfig
from janus_jax.models.execution import Execution
from janus_jax.models.initializers import Constant, Normal, declare
from janus_jax.models.layers import Conv
from janus_jax.ops.batch_norm import Statistics, batch_statistics, fresh_statistics, normalize_channels, unbiased

NormStatistics = dict[str, Statistics]  # by the name of the norm
_FRESH = Normal(0.02)
_REPLICATED = (None, None, None, None)


class BatchNorm(nn.Module):
    """Normalises with the statistics given or, without them, with those of the batch."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array, running: Statistics | None, axes: tuple[str, ...]) -> tuple[jax.Array, Statistics]:
        """Normalised values and the statistics, whose variance is unbiased; see `ops.batch_norm`."""
        scale = self.param("scale", declare(Normal(0.02, mean=1.0), (None,)), (x.shape[-1],))
        bias = self.param("bias", declare(Constant(0.0), (None,)), (x.shape[-1],))
        if running is not None:
            return normalize_channels(x, running, scale, bias, self.eps), running
        statistics = batch_statistics(x, axes)
        count = x.size // x.shape[-1] * (jax.lax.axis_size(axes) if axes else 1)
        return normalize_channels(x, statistics, scale, bias, self.eps), unbiased(statistics, count)


class PatchDiscriminator(nn.Module):
    """Images -> one logit per patch, high where the patch looks real."""

    config: PatchDiscriminatorConfig
    execution: Execution

    @nn.compact
    def __call__(
        self, images: jax.Array, running: NormStatistics | None = None, axes: tuple[str, ...] = ()
    ) -> tuple[jax.Array, NormStatistics]:
        """[B, H, W, 3] in [-1, 1] -> logits [B, h, w] in float32, and the statistics of each norm.

        Args:
            running: running statistics to normalise with; None: those of the batch, as in training.
            axes: mesh axes over which the images are divided, for the statistics of the batch.
        """
        c, dtype = self.config, self.execution.dtype
        if min(c.grid(side) for side in images.shape[1:3]) < 1:
            raise ValueError(f"the discriminator got images {images.shape}, too small for {c.num_layers} layers")
        statistics: NormStatistics = {}
        x = Conv(c.channels[0], 4, dtype, (1, 1), 2, _REPLICATED, distribution=_FRESH, name="conv_0")(images)
        x = nn.leaky_relu(x, 0.2)
        for i, channels in enumerate(c.channels[1:], start=1):
            stride = 2 if i < c.num_layers else 1
            conv = Conv(channels, 4, dtype, (1, 1), stride, _REPLICATED, False, _FRESH, name=f"conv_{i}")
            norm = f"norm_{i}"
            of_norm = None if running is None else running[norm]
            x, statistics[norm] = BatchNorm(c.norm_eps, name=norm)(conv(x), of_norm, axes)
            x = nn.leaky_relu(x, 0.2)
        logits = Conv(1, 4, dtype, (1, 1), axes=_REPLICATED, distribution=_FRESH, name="logits")(x)
        return logits[..., 0].astype(jnp.float32), statistics

    def init_all(self) -> None:
        """Runs every submodule, on the smallest image."""
        side = 3 * 2**self.config.num_layers
        self(jnp.zeros((2, side, side, 3)))


def fresh_norm_statistics(config: PatchDiscriminatorConfig) -> NormStatistics:
    """The running statistics before the first step."""
    return {f"norm_{i}": fresh_statistics(channels) for i, channels in enumerate(config.channels[1:], start=1)}
