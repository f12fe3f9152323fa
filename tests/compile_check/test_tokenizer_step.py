"""The training step of VQ-16 for TPUs with SparseCores, compiled by libtpu with little effort, on small images."""

import pytest

from configs import vq16
from janus_jax.compile_check.check import check
from janus_jax.compiler_options import LEAST_EFFORT

pytest.importorskip("libtpu", reason="the TPU compiler, of Linux only")


@pytest.mark.slow
def test_libtpu_compiles_the_step_that_trains_on_a_slice_with_sparse_cores():
    config = vq16.get_config()
    config.data.image_size, config.train.batch_size = 64, 4
    config.loss.perceptual_weight = config.loss.adversarial_weight = 0.0
    assert check(config, "v5p-8", 1, dict(LEAST_EFFORT)).fits
