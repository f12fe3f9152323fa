"""Training adapters on four devices equals training on one, over an int8 base; dropout depends on its key alone."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers import REPOSITORY


@pytest.fixture(scope="module")
def result():
    command = [sys.executable, "-m", "tests.helpers.sharded_lora"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["1x4x1", "1x2x2"])
def test_four_devices_equal_one(result, mesh):
    sharded = result[mesh]
    assert sharded["losses"] == pytest.approx(result["alone"], abs=1e-6)
    assert sharded["largest_difference"] <= 1e-6 < 0.1 < sharded["largest_change"]
    assert sharded["sharded_adapters"] >= 18
    assert sharded["base_unchanged"] and result["base_unchanged"]


@pytest.mark.slow
def test_dropout_changes_the_loss_and_is_the_same_again(result):
    assert result["dropped"] == result["dropped_again"]
    assert abs(result["dropped"][0] - result["alone"][0]) > 1e-4
