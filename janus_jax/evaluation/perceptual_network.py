"""LPIPS between pairs of images, on all devices of the process.

Letters: N pairs, H W rows and columns, B pairs of a batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from janus_jax.evaluation.replicated_network import Progress, ReplicatedNetwork
from janus_jax.models.config import LPIPSConfig
from janus_jax.models.params import Params
from janus_jax.models.presets import LPIPS_VGG
from janus_jax.weights.lpips import load_lpips

_ROWS_PER_DEVICE = 8  # the features of a pair of 256 x 256 pixels take about 150 MB

Pair = Callable[[], tuple[np.ndarray, np.ndarray]]  # reads two images [H, W, 3], from 0 to 1


class PerceptualNetwork:
    """Computes LPIPS.

    Attributes:
        weights: short hash of the parameters.
    """

    def __init__(self, config: LPIPSConfig, params: Params):
        """Puts the weights on every device."""
        self._network = ReplicatedNetwork(config, params)
        self.weights = self._network.weights

    @classmethod
    def from_files(cls, trunk: epath.PathLike, heads: epath.PathLike) -> "PerceptualNetwork":
        """Reads both files. Raises UserError as `weights.lpips.load_lpips` does."""
        return cls(LPIPS_VGG, load_lpips(trunk, heads))

    def __call__(self, pairs: Sequence[Pair], progress: Progress | None = None) -> np.ndarray:
        """The distances [N] of pairs of images of one size."""
        batches = self._network.batches(_distances, pairs, lambda pair: pair(), progress, _ROWS_PER_DEVICE)
        return np.concatenate([distances for (distances,) in batches])


def _distances(apply: Callable[..., Any], a: jax.Array, b: jax.Array) -> tuple[jax.Array]:
    """[B, H, W, 3] from 0 to 1 each -> [B]."""
    return (jnp.sum(apply(2 * a - 1, 2 * b - 1), axis=0),)
