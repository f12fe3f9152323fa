"""Files of real digits, a packed batch of them, and the micro presets, shared by the tests of training."""

import pytest

from janus_jax.training.setup import open_stream, open_tokenizer
from tests.helpers.tiny_runs import MICRO_JANUS, cache_folder, janus_experiment, micro_world, write_digit_files


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    return write_digit_files(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    with micro_world(cache_folder(tmp_path_factory)):
        yield


@pytest.fixture(scope="session")
def batch(data_folder):
    """Packed rows of all three tasks, several samples a row."""
    config = janus_experiment(data_folder)
    stream = open_stream(config, MICRO_JANUS, open_tokenizer(config, MICRO_JANUS))
    batch = next(stream)
    stream.close()
    return batch
