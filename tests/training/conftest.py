"""Files of real digits and the micro presets, shared by the tests of training."""

import pytest
from tiny_runs import micro_world, write_digit_files


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    return write_digit_files(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module", autouse=True)
def world(cache_folder):
    with micro_world(cache_folder):
        yield
