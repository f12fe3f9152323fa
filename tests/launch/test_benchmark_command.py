"""launch.benchmark: a suite that fails keeps what it has measured, and only its own lines are printed."""

import json

import pytest
from absl.testing import flagsaver
from transformers.utils import logging

from benchmarks import training
from benchmarks.result import Result
from launch import benchmark


def test_failing_suite_keeps_its_results(monkeypatch, tmp_path, capsys):
    def suite():
        yield Result("first", 2.0, "x", (">=", 1.5))
        yield Result("second", 3.0, "GB/s")
        raise MemoryError("the third")

    monkeypatch.setattr(training, "run", suite)
    file = tmp_path / "results.json"
    with flagsaver.flagsaver(suite="training", json=str(file)), pytest.raises(MemoryError, match="the third"):
        benchmark.main()
    measured = [(row["case"], row["value"], row["passed"]) for row in json.loads(file.read_text())["results"]]
    assert measured == [("first", 2.0, True), ("second", 3.0, None)]
    table = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split()[:3] for line in table] == [["first", "2", "x"], ["second", "3", "GB/s"]]


def test_warnings_of_transformers_are_not_printed_meanwhile(monkeypatch, caplog):
    logger = logging.get_logger("transformers.generation")

    def suite():
        logger.warning("a line for every call")
        yield Result("first", 2.0, "x")

    monkeypatch.setattr(training, "run", suite)
    with flagsaver.flagsaver(suite="training"):
        benchmark.main()
    logger.warning("afterwards")
    assert caplog.messages == ["afterwards"]
