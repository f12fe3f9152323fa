import jax
import numpy as np
import pytest

from janus_jax.models.execution import Execution
from janus_jax.models.siglip import Siglip
from tests.helpers.small_models import SMALL, random_array, random_params

PARAMS = random_params(SMALL)["siglip"]
SIGLIP = Siglip(SMALL.siglip, Execution())


@pytest.mark.parametrize("shape", [(2, 24, 16, 3), (2, 16, 16, 1), (2, 3, 16, 16), (2, 1, 16, 16, 3)])
def test_wrong_pixel_shape_is_an_error_with_both_shapes(shape):
    with pytest.raises(ValueError, match=r"SigLIP got pixels of shape .*expected \[B, \*\(16, 16, 3\)\]"):
        jax.eval_shape(SIGLIP.apply, {"params": PARAMS}, random_array(*shape))


def test_every_patch_sees_every_patch_of_its_own_image_only():
    pixels = random_array(2, 16, 16, 3)
    changed = pixels.at[0, 15, 15].add(3.0)  # inside the last patch
    run = jax.jit(SIGLIP.apply)
    difference = np.abs(np.asarray(run({"params": PARAMS}, changed) - run({"params": PARAMS}, pixels))).max(-1)
    assert (difference[0] > 1e-3).all()
    assert (difference[1] == 0).all()
