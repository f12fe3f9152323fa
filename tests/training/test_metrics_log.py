"""What metrics.jsonl holds: exact means between two writes, and no step twice."""

import json
import struct

import jax.numpy as jnp
import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event, SessionLog

from janus_jax.errors import UserError
from janus_jax.training import metrics_log
from janus_jax.training.metrics_log import MetricsLog


def log_in(folder, first_step=0, ideal_seconds=None):
    return MetricsLog(epath.Path(folder), "test", 100, first_step, ideal_seconds)


def step_metrics(loss, text, text_tokens):
    pairs = {"loss": (loss, 1), "loss/text": (text * text_tokens, text_tokens), "images": (2, 1)}
    return {name: (jnp.float32(total), jnp.float32(weight)) for name, (total, weight) in pairs.items()}


def lines(folder):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_means_weigh_each_step_by_its_tokens_and_start_anew_after_a_write(tmp_path):
    log = log_in(tmp_path)
    log.add(step_metrics(loss=1.0, text=2.0, text_tokens=30))
    log.add(step_metrics(loss=4.0, text=6.0, text_tokens=10))
    first = log.write(2, 0.0, 0.0, {"learning_rate": 0.5})
    log.add(step_metrics(loss=8.0, text=1.0, text_tokens=5))
    log.write(3, 0.0, 0.0, {"learning_rate": 0.25})
    log.close()
    written = lines(tmp_path)
    assert [line["step"] for line in written] == [2, 3]
    assert (written[0]["loss"], written[0]["loss/text"], written[0]["learning_rate"]) == (2.5, 3.0, 0.5)
    assert (written[1]["loss"], written[1]["loss/text"], written[1]["learning_rate"]) == (8.0, 1.0, 0.25)
    assert {"step": 2, **first} == written[0]
    # Four images and two steps in the same time.
    assert written[0]["images_per_second"] == pytest.approx(2 * written[0]["steps_per_second"])


def test_a_task_without_tokens_has_no_mean_and_does_not_dilute_the_others(tmp_path):
    log = log_in(tmp_path)
    log.add(step_metrics(loss=1.0, text=0.0, text_tokens=0))
    log.write(1, 0.0, 0.0, {})
    log.add(step_metrics(loss=1.0, text=0.0, text_tokens=0))
    log.add(step_metrics(loss=1.0, text=3.0, text_tokens=7))
    log.write(3, 0.0, 0.0, {})
    log.close()
    without, with_text = lines(tmp_path)
    assert "loss/text" not in without
    assert with_text["loss/text"] == 3.0


def test_every_line_is_json_even_when_a_metric_overflows(tmp_path):
    log = log_in(tmp_path)
    log.add(step_metrics(loss=1.0, text=float("inf"), text_tokens=1))
    log.write(1, 0.0, 0.0, {})
    log.close()
    assert lines(tmp_path)[0]["loss"] == 1.0


@pytest.mark.parametrize(("resumed_at", "kept"), [(0, []), (2, [1, 2]), (4, [1, 2, 3, 4])])
def test_lines_after_the_resumed_step_are_dropped(tmp_path, resumed_at, kept):
    log = log_in(tmp_path)
    for step in range(1, 5):
        log.add(step_metrics(loss=float(step), text=1.0, text_tokens=1))
        log.write(step, 0.0, 0.0, {})
    log.close()
    before = lines(tmp_path)
    log_in(tmp_path, first_step=resumed_at).close()
    assert lines(tmp_path) == [line for line in before if line["step"] in kept]


def events(file):
    """Of a TensorBoard file: length (8 bytes), checksum (4), Event, checksum (4), ..."""
    data, place = file.read_bytes(), 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        yield Event.FromString(data[place + 12 : place + 12 + length])
        place += length + 16


def test_tensorboard_shows_no_step_that_a_crash_lost(tmp_path):
    """TensorBoard drops events of earlier files from the step of a START on. This test applies that rule."""
    for first_step, steps in ((0, range(1, 7)), (3, range(4, 6))):
        log = log_in(tmp_path, first_step)
        for step in steps:
            log.add(step_metrics(loss=10.0 * first_step + step, text=1.0, text_tokens=1))
            log.write(step, 0.0, 0.0, {})
        log.close()
        (file,) = (tmp_path / "tensorboard").glob("events*")
        file.rename(tmp_path / "tensorboard" / f"run {first_step}")  # in the same second the name would be the same
    shown = {}
    for name in ("run 0", "run 3"):
        for event in events(tmp_path / "tensorboard" / name):
            if event.session_log.status == SessionLog.START:
                shown = {step: loss for step, loss in shown.items() if step < event.step}
            shown.update((event.step, value.simple_value) for value in event.summary.value if value.tag == "loss")
    assert shown == {1: 1.0, 2: 2.0, 3: 3.0, 4: 34.0, 5: 35.0}


class Clock:
    """Replaces `time`. Both clocks stand still until the test moves them."""

    def __init__(self):
        self.now = 1000.0

    def time(self):
        return self.now

    monotonic = time


def test_step_times_and_goodput_go_on_through_a_restart_and_leave_out_what_was_lost(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(metrics_log, "time", clock)

    def steps(log, seconds):
        for duration in seconds:
            clock.now += duration
            log.add(step_metrics(loss=1.0, text=1.0, text_tokens=1) | {"tokens": (jnp.float32(50), jnp.ones(()))})

    log = log_in(tmp_path)
    steps(log, [30.0, 1.0, 2.0, 3.0])  # the first compiles
    log.write(4, waited=1.5, saving=0.5, others={})  # 36 s, of which 4 were productive
    steps(log, [2.0, 2.0])
    log.write(6, waited=0.0, saving=0.0, others={})  # 40 s and 8
    steps(log, [10.0])
    log.write(7, waited=0.0, saving=0.0, others={})  # lost
    log.close()
    first, second, third = lines(tmp_path)
    assert (first["wall_seconds"], first["goodput"]) == (36.0, pytest.approx(4 / 36))
    assert (second["wall_seconds"], second["goodput"]) == (40.0, pytest.approx(8 / 40))
    assert [first["step_seconds/median"], first["step_seconds/max"]] == [2.0, 3.0]
    assert first["step_seconds/p90"] == pytest.approx(2.8)
    assert (first["data_wait_share"], first["save_wait_share"]) == (pytest.approx(1.5 / 36), pytest.approx(0.5 / 36))
    assert second["tokens_per_second"] == pytest.approx(100 / 4)
    clock.now += 50.0  # a crash, and a while until somebody saw it
    log = log_in(tmp_path, first_step=6)
    steps(log, [5.0, 5.0])
    log.write(8, waited=0.0, saving=0.0, others={})
    log.close()
    assert (third["wall_seconds"], lines(tmp_path)[-1]["wall_seconds"]) == (50.0, 110.0)
    assert lines(tmp_path)[-1]["goodput"] == pytest.approx((8 + 5) / 110)


def test_other_work_counts_in_no_rate_and_reports_join_the_next_line(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(metrics_log, "time", clock)
    log = log_in(tmp_path)
    for duration in (30.0, 1.0, 1.0):
        clock.now += duration
        log.add(step_metrics(loss=1.0, text=1.0, text_tokens=1))
    clock.now += 100.0  # an evaluation
    log.leave_out(100.0)
    log.report({"validation/loss": 3.0})
    clock.now += 1.0
    log.add(step_metrics(loss=1.0, text=1.0, text_tokens=1))
    log.write(4, 0.0, 0.0, {})
    clock.now += 1.0
    log.add(step_metrics(loss=1.0, text=1.0, text_tokens=1))
    log.write(5, 0.0, 0.0, {})
    log.close()
    first, second = lines(tmp_path)
    assert (first["step_seconds/max"], first["steps_per_second"]) == (1.0, pytest.approx(4 / 33))
    assert first["goodput"] == pytest.approx(3 / 133)
    assert first["validation/loss"] == 3.0 and "validation/loss" not in second


def test_mfu_is_that_of_the_steps_after_compilation(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(metrics_log, "time", clock)
    for name, ideal_seconds in (("known", 1.2), ("unknown", None)):
        log = log_in(tmp_path / name, ideal_seconds=ideal_seconds)
        for duration in (30.0, 2.0, 4.0):
            clock.now += duration
            log.add(step_metrics(loss=1.0, text=1.0, text_tokens=1))
        log.write(3, 0.0, 0.0, {})
        log.close()
    assert lines(tmp_path / "known")[0]["mfu"] == pytest.approx(1.2 / 3.0)
    assert "mfu" not in lines(tmp_path / "unknown")[0]


def test_a_last_line_that_a_crash_cut_short_does_not_block_the_next_run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    log_in(tmp_path, first_step=2).close()
    assert lines(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("no JSON\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: damaged"):
        MetricsLog(tmp_path, "run", num_steps=2, first_step=1)
