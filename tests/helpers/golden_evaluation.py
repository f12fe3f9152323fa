"""Where the golden data of benchmarks lie. Their README says how each value was made."""

import json

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
