"""Which seconds count as waiting for data, with a step whose end on the device the test decides."""

import threading
import time

import pytest

from janus_jax.training.input_stall import InputStall


class Step:
    """The output of a step; `end` ends it, with an error if one is given."""

    def __init__(self):
        self._ended, self._error = threading.Event(), None

    def block_until_ready(self):
        self._ended.wait(60)
        if self._error is not None:
            raise self._error

    def end(self, error=None):
        self._error = error
        self._ended.set()
        time.sleep(0.3)


@pytest.fixture
def idle():
    idle = InputStall()
    yield idle
    idle.close()


def test_only_the_time_after_the_end_of_the_step_counts(idle):
    idle.waited(50.0)
    assert idle.take() == 0.0  # there was no step yet
    step = Step()
    idle.step_started(step)
    idle.waited(10.0)
    assert idle.take() == 0.0  # it still runs
    step.end()
    idle.waited(10.0)
    assert 0.2 < idle.take() < 5  # it ended 0.3 s before, during the wait; more on a busy machine
    idle.waited(0.125)
    idle.waited(0.125)
    assert idle.take() == 0.25  # it had ended before
    following = Step()
    idle.step_started(following)
    idle.waited(10.0)
    assert idle.take() == 0.0
    following.end()


def test_an_error_of_the_step_reaches_the_loop(idle):
    step = Step()
    idle.step_started(step)
    step.end(RuntimeError("out of order"))
    with pytest.raises(RuntimeError, match="out of order"):
        idle.waited(1.0)


def test_no_thread_is_left(idle):
    before = threading.active_count()
    step = Step()
    idle.step_started(step)
    assert threading.active_count() == before + 1
    step.end()
    idle.close()
    assert threading.active_count() == before
