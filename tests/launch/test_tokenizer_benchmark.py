"""Both sides of the suite `tokenizer` do the same steps, so that the times compare the same work."""

import dataclasses

import pytest

from benchmarks import tokenizer, training
from janus_jax.models.config import LPIPSConfig
from janus_jax.models.presets import VQ_TINY


@pytest.mark.slow
def test_both_sides_have_the_same_losses_and_gradients_and_every_case_has_its_rows(monkeypatch):
    monkeypatch.setattr(training, "ROUNDS", 1)
    monkeypatch.setattr(training, "SECONDS", 0.1)
    vq = dataclasses.replace(VQ_TINY, base_channels=32, channel_multipliers=(1, 1, 1), norm_groups=32)
    loss, gradients, speed = tokenizer.compare("small", vq, LPIPSConfig(widths=(4, 4, 8, 8, 8)), channels=4, images=2)
    assert loss.passed and gradients.passed
    assert speed.value > 0 and speed.passed is None
