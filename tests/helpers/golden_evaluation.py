"""Where the golden data of benchmarks lie. Their README says how each value was made."""

import json
import shutil

import pytest

from janus_jax.errors import UserError
from janus_jax.evaluation import registry
from tests.helpers import REPOSITORY

GOLDEN = REPOSITORY / "tests/data_files/evaluation"
DATA = GOLDEN / "data"


def expected(name):
    """The scores of one benchmark by the official scorers and kits."""
    return json.loads((GOLDEN / f"expected/{name}.json").read_text())


def rules(name):
    """Cases of single rules, with what the official code says to each."""
    return json.loads((GOLDEN / f"rules/{name}.json").read_text())


def predictions(name):
    """Raw answers in the order of the file, as dicts with index, id and text."""
    lines = (GOLDEN / f"predictions/{name}.jsonl").read_bytes().decode().split("\n")
    return [json.loads(line) for line in lines if line]


def copied(tmp_path, *names):
    """Copies parts of the golden data to a folder, which is returned."""
    for name in names:
        source = DATA / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, dirs_exist_ok=True)
        else:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, tmp_path / name)
    return tmp_path


def load(data, name):
    (benchmark,) = registry.load(data, [name])
    return benchmark


def refused(data, name, *named):
    """Asserts that a benchmark is refused with a message that has all of `named`."""
    with pytest.raises(UserError) as error:
        load(data, name)
    for text in named:
        assert text in str(error.value), str(error.value)
