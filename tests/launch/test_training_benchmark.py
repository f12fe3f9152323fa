"""Both sides of the suite `training` do the same steps, so that the times compare the same work."""

from unittest import mock

import pytest

from benchmarks import training
from janus_jax.models.presets import PRESETS


@pytest.mark.slow
def test_both_sides_have_the_same_losses_and_every_case_has_its_rows(monkeypatch):
    monkeypatch.setattr(training, "ROUNDS", 1)
    monkeypatch.setattr(training, "SECONDS", 0.1)
    with mock.patch.dict(PRESETS, {"tiny": training.tiny()}):
        agreement, speed = training.compare("tiny", training.config_of("tiny"))
    assert agreement.passed and agreement.value > 0  # two programs
    assert speed.value > 0 and speed.passed is None
