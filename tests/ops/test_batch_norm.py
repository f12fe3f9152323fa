import jax
import jax.numpy as jnp
import numpy as np
import torch

from janus_jax.ops.batch_norm import batch_statistics, fresh_statistics, normalize_channels, unbiased, update_running


def test_training_mode_and_running_statistics_equal_torch():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((3, 4, 5, 6)) * 3 + 2).astype(np.float32)
    scale, bias = (rng.standard_normal(6).astype(np.float32) for _ in range(2))
    layer = torch.nn.BatchNorm2d(6)
    layer.load_state_dict(layer.state_dict() | {"weight": torch.tensor(scale), "bias": torch.tensor(bias)})
    expected = layer(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)

    @jax.jit
    def ours(x):
        statistics = batch_statistics(x)
        running = update_running(fresh_statistics(6), unbiased(statistics, x.size // 6))
        return normalize_channels(x, statistics, jnp.asarray(scale), jnp.asarray(bias), 1e-5), running

    actual, running = ours(jnp.asarray(x))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(running.mean, layer.running_mean, rtol=1e-6)
    np.testing.assert_allclose(running.variance, layer.running_var, rtol=1e-6)
