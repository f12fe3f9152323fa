"""What the end of a run promises of its checkpoint."""

import time

import pytest

from configs.base import base_config
from janus_jax.models.params import init_params
from janus_jax.training.checkpointing import Checkpoints
from janus_jax.training.freezing import trainable_mask
from janus_jax.training.optimizer import make_optimizer
from janus_jax.training.train_state import create_state
from janus_jax.weights.native import saved_steps
from tests.helpers.tiny_runs import MICRO_JANUS


@pytest.fixture(scope="module")
def state():
    params = init_params(MICRO_JANUS, seed=0)
    config = base_config("micro", "micro")
    return create_state(params, trainable_mask(params, config.trainable), make_optimizer(config.train), ema=True)


@pytest.mark.parametrize(
    ("moment", "lost"),
    [
        ("check", "params/manifest.ocdbt"),
        ("save", "params/manifest.ocdbt"),
        ("close", "params/manifest.ocdbt"),
        ("close", "ema/manifest.ocdbt"),
        ("close", "opt_state/manifest.ocdbt"),
        ("close", "data/metadata"),
    ],
)
def test_a_checkpoint_that_lost_a_file_while_it_was_written_is_an_error(state, tmp_path, moment, lost):
    """As after a merge of files that finds none, which Orbax 0.12.8 calls a success."""
    checkpoints = Checkpoints(tmp_path, MICRO_JANUS, keep=2)
    checkpoints.save(state, {"shards": {}})
    wait_until(lambda: saved_steps(tmp_path) == [0])
    (tmp_path / "checkpoints" / "0" / lost).unlink()

    def act():
        if moment == "save":
            checkpoints.save(state._replace(step=state.step + 1), {"shards": {}})
        else:
            getattr(checkpoints, moment)()

    with pytest.raises(OSError, match=rf"{tmp_path}/checkpoints/0: was written, but cannot be opened again"):
        wait_until(act)
    assert saved_steps(tmp_path) == [0]


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
