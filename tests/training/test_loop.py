"""When the loop writes, saves, stops and fails. The training step is replaced by one that only counts.

This file is long because all ways in which a run may end share one fixture.
"""

import contextlib
import itertools
import resource
import shutil
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from orbax.checkpoint._src.serialization import jax_array_handlers

from janus_jax.data.stream import Stream
from janus_jax.errors import UserError
from janus_jax.models.params import init_params
from janus_jax.training import loop, plan
from janus_jax.training.actions import every
from janus_jax.training.checkpointing import Checkpoints, read_data_state
from janus_jax.training.metrics_log import MetricsLog, read_metrics
from janus_jax.training.plan import Plan
from janus_jax.training.prefetch import DevicePrefetch
from janus_jax.training.resilience.preemption import DataStalled
from janus_jax.training.resilience.watchdog import Watchdog
from janus_jax.training.setup import open_stream
from janus_jax.weights.native import save_params
from tests.helpers.tiny_runs import MICRO_VQ, vq_experiment


class CountingStep:
    """Takes the losses of the steps, and optionally their gradient norms, from a table. Only counts the steps.

    The token weight of step n is n.
    """

    def __init__(self, losses, before_step=None, grad_norms=None):
        self._losses, self._before_step, self._grad_norms = losses, before_step or {}, grad_norms

    def __call__(self, state, batch):
        step = int(state.step) + 1
        self._before_step.get(step, lambda: None)()
        loss, one = jnp.float32(self._losses[step - 1]), jnp.ones(())
        tokens = jnp.float32(step)
        metrics = {"loss": (loss, one), "loss/text": (loss * tokens, tokens), "images": (one, one)}
        if self._grad_norms:
            absent = jnp.zeros(())
            metrics |= {"grad_norm": (jnp.float32(self._grad_norms[step - 1]), one), "loss/generate": (absent, absent)}
        return state._replace(step=jnp.int32(step)), metrics


class Later:
    """A result of a step that is ready on the device at a given time."""

    def __init__(self, value, ready):
        self._value, self._ready = value, ready

    def block_until_ready(self):
        time.sleep(max(self._ready - time.monotonic(), 0))

    def __array__(self, *_, **__):
        self.block_until_ready()
        return np.asarray(self._value)

    def __float__(self):
        return float(self.__array__())


class DispatchedStep(CountingStep):
    """Returns at once, while the device computes the steps one after the other."""

    def __init__(self, losses, seconds):
        super().__init__(losses)
        self._seconds, self._free = seconds, 0.0

    def __call__(self, state, batch):
        state, metrics = super().__call__(state, batch)
        self._free = max(self._free, time.monotonic()) + self._seconds
        return state, jax.tree.map(lambda value: Later(value, self._free), metrics)


@pytest.fixture
def run(data_folder, tmp_path, monkeypatch):
    """Trains with a CountingStep; returns what `train` returns."""

    def train(
        losses,
        log_every=1,
        every_steps=2,
        keep=10,
        step_fn=None,
        profile=(0, 0),
        watchdog=None,
        actions=(),
        validate=None,
        **options,
    ):
        config = vq_experiment(data_folder, num_steps=len(losses))
        config.trainable = (("codebook", True), (".*", False))  # two moments instead of two hundred to save
        config.train.update(schedule="cosine", warmup_steps=0)
        config.log_every = log_every
        config.profile.update(first_step=profile[0], steps=profile[1])
        config.checkpoint.update(every_steps=every_steps, keep=keep)
        if validate:
            config.data.held_out = 4
            config.validate.update(validate)
        monkeypatch.setattr(plan, "make_train_step", lambda *_: step_fn or CountingStep(losses, **options))
        return loop.train(config, tmp_path, watchdog, actions)

    return train


def saved_steps(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def logged(folder):
    return {line["step"]: line for line in read_metrics(folder)}


def test_writes_and_saves_at_their_intervals_and_always_at_the_end(run, tmp_path):
    last = run([5.0, 1.0, 3.0, 7.0, 2.0], log_every=2, every_steps=3)
    lines = logged(tmp_path)
    assert list(lines) == [2, 4, 5]
    assert saved_steps(tmp_path) == [3, 5]
    assert [lines[step]["loss"] for step in (2, 4, 5)] == [3.0, 5.0, 2.0]
    # Weights 1, 2 and 3, 4: the tokens of each step.
    expected = [(5 * 1 + 1 * 2) / 3, (3 * 3 + 7 * 4) / 7, 2.0]
    assert [lines[step]["loss/text"] for step in (2, 4, 5)] == pytest.approx(expected, rel=1e-6)
    # The cosine's rate at step n is that of n - 1 steps done: 1e-2 * cos^2(pi / 2 * (n - 1) / 5).
    rates = [1e-2 * np.cos(np.pi / 2 * (step - 1) / 5) ** 2 for step in (2, 4, 5)]
    assert [lines[step]["learning_rate"] for step in (2, 4, 5)] == pytest.approx(rates, rel=1e-5)
    assert last["loss"] == 2.0


def test_only_the_newest_checkpoints_are_kept(run, tmp_path):
    run([1.0] * 3, every_steps=1, keep=2)
    assert saved_steps(tmp_path) == [2, 3]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(run, tmp_path):
    with pytest.raises(FloatingPointError, match=r"^step 3: loss is nan, loss/text is nan\. "):
        run([1.0, 1.0, float("nan"), 1.0])
    assert saved_steps(tmp_path) == [2]


def test_a_gradient_that_is_not_finite_blames_no_task_but_names_those_of_the_step(run):
    expected = r"^step 2: grad_norm is inf; losses are finite: loss/text 4\.5\. Its batch "
    with pytest.raises(FloatingPointError, match=expected):
        run([1.0, 4.5], grad_norms=[1.0, float("inf")])


def test_no_checkpoint_follows_a_loss_that_is_not_finite(run, tmp_path):
    """Even if the loss is logged less often than checkpoints are saved, the last good checkpoint must stay."""
    with pytest.raises(FloatingPointError):
        run([1.0, float("inf"), 1.0, float("nan")], log_every=4, every_steps=1, keep=1)
    assert saved_steps(tmp_path) == [1]


def test_a_real_step_on_broken_parameters_stops_at_once(data_folder, tmp_path):
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, init_params(MICRO_VQ, seed=0))
    save_params(tmp_path / "broken", MICRO_VQ, broken)
    config = vq_experiment(data_folder)
    config.init.checkpoint = str(tmp_path / "broken")
    config.trainable = (("codebook", True), (".*", False))  # compiles faster
    with pytest.raises(FloatingPointError, match=r"^step 1: grad_norm is nan, .*, loss is nan, loss/codebook is nan, "):
        loop.train(config, tmp_path / "run")
    assert saved_steps(tmp_path / "run") == []
    (file,) = (tmp_path / "run" / "not_finite").iterdir()
    config.data.workers = 0
    stream = open_stream(config, MICRO_VQ, None)
    with np.load(file, allow_pickle=False) as kept:
        np.testing.assert_array_equal(kept["pixels"], next(stream).pixels)
    stream.close()


def test_damaged_checkpoints_are_moved_aside_with_a_message_for_the_newest_whole_one(run, tmp_path, caplog):
    run([1.0] * 6, keep=3)
    for step, item in ((6, "data"), (4, "params")):
        files = [path for path in (tmp_path / "checkpoints" / str(step) / item).rglob("*") if path.is_file()]
        for file in files:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    run([1.0] * 8, keep=3)
    assert "CHECKPOINT DAMAGED" in caplog.text and "checkpoint 6 cannot be restored" in caplog.text
    assert saved_steps(tmp_path) == [4, 6, 8]  # made anew
    assert {path.name.partition("-")[0] for path in (tmp_path / "damaged_checkpoints").iterdir()} == {"4", "6"}
    assert list(logged(tmp_path)) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_save_reports_what_it_holds_on_the_host(run, tmp_path):
    """All parameters, and two moments of the trained ones."""
    run([1.0] * 4, log_every=2, every_steps=1)
    params = init_params(MICRO_VQ, seed=0)
    expected = sum(leaf.nbytes for leaf in jax.tree.leaves((params, 2 * [params["codebook"]])))
    assert logged(tmp_path)[4]["memory/save_gib"] * 2**30 == pytest.approx(expected, abs=16)  # plus the step counters


def test_when_no_checkpoint_can_be_read_nothing_is_moved(run, tmp_path):
    run([1.0] * 4)
    for step in (2, 4):
        shutil.rmtree(tmp_path / "checkpoints" / str(step) / "params")
    with pytest.raises(UserError, match=r"checkpoint 4 cannot be restored"):
        run([1.0] * 6)
    assert saved_steps(tmp_path) == [2, 4] and not (tmp_path / "damaged_checkpoints").exists()


def test_an_error_that_is_not_in_the_files_moves_no_checkpoint_aside(run, tmp_path, monkeypatch):
    run([1.0] * 4)

    def restore(*_, **__):
        raise TimeoutError("storage does not answer")

    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.Checkpointer.restore", restore)
        with pytest.raises(TimeoutError):
            run([1.0] * 6)
    assert saved_steps(tmp_path) == [2, 4] and not (tmp_path / "damaged_checkpoints").exists()


def test_a_signal_while_the_last_checkpoint_is_written_does_not_cost_it(run, tmp_path, monkeypatch):
    close = Checkpoints.close

    def interrupted(checkpoints):
        signal.raise_signal(signal.SIGTERM)
        close(checkpoints)

    monkeypatch.setattr(Checkpoints, "close", interrupted)
    run([1.0] * 3)
    assert saved_steps(tmp_path)[-1] == 3


def test_steps_go_on_while_a_checkpoint_is_written(run, tmp_path, monkeypatch):
    """The first array to be written waits until step 7 begins, two steps after the save of step 4."""
    write = jax_array_handlers._async_serialize_replica_slices
    begun, released = threading.Event(), threading.Event()

    async def held_back(*args, **kwargs):
        begun.set()
        released.wait(60)
        return await write(*args, **kwargs)

    def look():
        assert begun.wait(60) and saved_steps(tmp_path) == []
        released.set()

    monkeypatch.setattr(jax_array_handlers, "_async_serialize_replica_slices", held_back)
    run([1.0] * 7, every_steps=4, before_step={7: look})
    assert saved_steps(tmp_path) == [4, 7]


def test_only_data_that_the_devices_wait_for_counts_as_waited_for(run, tmp_path, monkeypatch):
    """Of 0.5 s between two batches, the devices wait 0.1 s and the loop nearly all of it."""
    read = Stream.__next__

    def slow(stream):
        time.sleep(0.5)
        return read(stream)

    monkeypatch.setattr(Stream, "__next__", slow)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    losses = [1.0] * 8
    run(losses, log_every=4, every_steps=8, step_fn=DispatchedStep(losses, seconds=0.4))
    line = logged(tmp_path)[8]
    assert 0.02 < line["data_wait_share"] < 0.5
    assert not any("step-end" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("part", ["save", "close"])
def test_a_last_save_that_hangs_is_ended(run, monkeypatch, part, stopped):
    ended = threading.Event()
    reasons = []
    original = getattr(Checkpoints, part)

    def end(_, reason):
        reasons.append(reason)
        ended.set()

    def hang(checkpoints, *arguments):
        if not arguments or arguments[0].step == 3:
            assert ended.wait(10)
        return original(checkpoints, *arguments)

    monkeypatch.setattr(Watchdog, "end", end)
    monkeypatch.setattr(Checkpoints, part, hang)
    watchdog = Watchdog(0.2, 1800, lambda: False, 1800)
    watchdog.step_ended(0)  # so that the start has as long as it needs
    interruption = {3: lambda: signal.raise_signal(signal.SIGTERM)} if stopped else {}
    with pytest.raises(KeyboardInterrupt) if stopped else contextlib.nullcontext():
        run([1.0] * (4 if stopped else 3), every_steps=10, before_step=interruption, watchdog=watchdog)
    assert set(reasons) == {"no end of saving 0.2 s after step 3 (--start_timeout)"}


def test_metrics_that_cannot_be_written_stop_the_run(run, tmp_path, capsys):
    """Not only `metrics.jsonl`: the thread of tensorboardX would end, and then the run would wait for it."""
    del capsys  # prints go to memory
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))

    try:
        with pytest.raises(OSError, match=rf"{tmp_path}: metrics cannot be written \(File too large\)"):
            run([1.0] * 60, log_every=1, every_steps=100, before_step={3: fill_disk})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's tasks that failed
def test_a_checkpoint_that_cannot_be_written_stops_the_run_and_spares_the_earlier_ones(run, tmp_path, capsys):
    """As on a full disk: from step 5 on no file may grow beyond 1 KiB."""
    del capsys  # prints go to memory
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk():
        while 4 not in saved_steps(tmp_path):
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))

    try:
        with pytest.raises(OSError, match=r"a checkpoint could not be written, the last complete one is 4: "):
            run([1.0] * 6, log_every=7, before_step={5: fill_disk})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved_steps(tmp_path) == [2, 4]
    wait_until_unchanged(tmp_path / "checkpoints")  # a real next run is another process, without these threads
    run([1.0] * 6)
    assert saved_steps(tmp_path) == [2, 4, 6]


def wait_until_unchanged(folder, seconds=1.0):
    """Waits for threads of a failed save that still write into a folder."""
    before, now, end = None, sorted(folder.rglob("*")), time.monotonic() + 60
    while before != now:
        assert time.monotonic() < end
        time.sleep(seconds)
        before, now = now, sorted(folder.rglob("*"))


@contextlib.contextmanager
def full_disk():
    """No file may grow beyond 16 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_start_on_a_full_disk_leaves_the_workdir_as_it_was(run, tmp_path, capsys):
    del capsys  # prints go to memory
    run([1.0] * 3, every_steps=2)
    (tmp_path / "checkpoints" / "3").rename(tmp_path / "lost")  # so that a line of metrics.jsonl is one too many
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert {"model.json", "config.json", "metrics.jsonl"} <= before.keys()
    with full_disk(), pytest.raises(OSError, match="File too large"):
        run([1.0] * 4)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    (tmp_path / "model.json").unlink()
    with full_disk(), pytest.raises(OSError, match="File too large"):
        run([1.0] * 4)
    assert not (tmp_path / "model.json").exists()
    run([1.0] * 4)
    assert list(logged(tmp_path)) == [1, 2, 3, 4]


def test_a_full_disk_does_not_hide_that_a_loss_is_not_finite(run, tmp_path, capsys):
    del capsys
    disk = contextlib.ExitStack()
    with disk, pytest.raises(FloatingPointError, match=r"^step 2: loss is nan, .* could not be written .*too large"):
        run([1.0, float("nan")], log_every=2, before_step={2: lambda: disk.enter_context(full_disk())})


def test_chosen_steps_are_profiled(run, tmp_path):
    run([1.0] * 4, profile=(2, 2))
    assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_is_saved(run, tmp_path, number):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match=r"after step 3, which is saved"):
        run([1.0] * 4, log_every=4, before_step={3: lambda: signal.raise_signal(number)})
    assert saved_steps(tmp_path) == [2, 3]
    assert list(logged(tmp_path)) == [3]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


@pytest.mark.parametrize("step", [2, 4])
def test_a_signal_while_validating_ends_it_after_its_batch_and_the_run_after_one_step(
    run, tmp_path, monkeypatch, capsys, step
):
    """The last step of a run is saved as always."""
    batches = []

    def is_asked(state, *_):
        batches.append(int(state.step))
        if batches.count(step) == 2:
            signal.raise_signal(signal.SIGTERM)
        return {"loss": (1.0, 1.0)}

    monkeypatch.setattr(Plan, "make_validation_step", lambda _: is_asked)
    with pytest.raises(KeyboardInterrupt) if step == 2 else contextlib.nullcontext():
        run([1.0] * 4, every_steps=100, validate={"every_steps": 2, "num_rows": 12})
    assert batches == ([2] * 2 if step == 2 else [2] * 3 + [4] * 2)  # of three each
    assert f"validation after step {step}: stopped by a signal" in capsys.readouterr().out
    assert saved_steps(tmp_path) == [min(step + 1, 4)]
    assert {number for number, line in logged(tmp_path).items() if "validation/loss" in line} == {2} - {step}


def test_a_signal_whose_checkpoint_fails_does_not_call_the_step_saved(run, monkeypatch):
    close = Checkpoints.close

    def fail(checkpoints):
        close(checkpoints)
        raise OSError("the disk is gone")

    monkeypatch.setattr(Checkpoints, "close", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        run([1.0] * 4, before_step={3: lambda: signal.raise_signal(signal.SIGTERM)})


@pytest.fixture
def stall(monkeypatch):
    """Makes the data stall before a batch, and sends SIGTERM while the loop waits for that batch."""
    released = threading.Event()
    read, take = Stream.__next__, DevicePrefetch.__next__

    def stall(before):
        reads, takes = itertools.count(1), itertools.count(1)

        def stalling(stream):
            if next(reads) == before:
                released.wait()
            return read(stream)

        def interrupted(batches):
            if next(takes) == before:
                signal.raise_signal(signal.SIGTERM)
            return take(batches)

        monkeypatch.setattr(Stream, "__next__", stalling)
        monkeypatch.setattr(DevicePrefetch, "__next__", interrupted)

    yield stall
    released.set()


def test_a_signal_while_no_data_comes_saves_the_last_step_with_the_batches_it_has_seen(
    run, stall, data_folder, tmp_path
):
    stall(before=4)
    with pytest.raises(DataStalled, match=r"no data came after step 3, which is saved"):
        run([1.0, 2.0, 6.0, 0.0, 0.0], log_every=5)
    assert saved_steps(tmp_path) == [2, 3]
    assert {step: line["loss"] for step, line in logged(tmp_path).items()} == {3: 3.0}
    stream = open_stream(vq_experiment(data_folder), MICRO_VQ, None)
    for _ in range(3):
        next(stream)
    assert read_data_state(tmp_path, 3) == stream.get_state()
    stream.close()
    run([1.0] * 5, log_every=5)
    assert saved_steps(tmp_path) == [2, 3, 4, 5]


def test_a_signal_before_any_data_came_saves_nothing(run, stall, tmp_path):
    stall(before=1)
    with pytest.raises(DataStalled, match="before any step"):
        run([1.0] * 3)
    assert saved_steps(tmp_path) == [] and not (tmp_path / "metrics.jsonl").exists()


def test_a_second_ctrl_c_does_not_wait_for_the_step(run, tmp_path):
    def press_twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run([1.0] * 4, before_step={3: press_twice})
    assert saved_steps(tmp_path) == [2]


def test_a_finished_run_is_not_repeated_but_says_so_and_what_was_changed(run, tmp_path, capsys):
    run([1.0, 2.0], log_every=1)
    before = logged(tmp_path)
    capsys.readouterr()
    run([9.0, 9.0], log_every=2)
    assert logged(tmp_path) == before
    assert saved_steps(tmp_path) == [2]
    output = capsys.readouterr().out
    assert "all 2 steps are done" in output and "train.num_steps" in output
    assert "log_every 1 -> 2" in output and output.count(" -> ") == 1


class SampleAction:
    """An action of another package: due at every second step, and slow."""

    def __init__(self, run, samples, events):
        self._run, self._samples, self._events = run, samples, events

    def is_due(self, moment):
        return every(2, moment)

    def __call__(self, moment):
        params = moment.params()
        assert params.keys() == init_params(self._run.plan.architecture, seed=0).keys()
        assert saved_steps(self._run.workdir) or moment.step == 2  # a save of this step was started before
        self._samples.image(moment.step, "flat", PIL.Image.new("RGB", (4, 4), (moment.step, 0, 0)))
        self._samples.text(moment.step, "answer", f"step {moment.step}")
        self._events.append(moment.step)
        time.sleep(0.1)

    def close(self):
        self._events.append("closed")


@pytest.mark.parametrize("stopped", [False, True])
def test_an_action_of_another_package_runs_at_its_steps_and_its_time_counts_in_no_rate(
    run, tmp_path, monkeypatch, stopped
):
    """Also after the last step of the run, but not when a signal stops it. Samples go to files and TensorBoard."""
    events, left_out = [], []
    monkeypatch.setattr(MetricsLog, "leave_out", lambda log, seconds: left_out.append(seconds))
    interruption = {4: lambda: signal.raise_signal(signal.SIGTERM)} if stopped else {}
    with pytest.raises(KeyboardInterrupt) if stopped else contextlib.nullcontext():
        run(
            [1.0] * 5,
            before_step=interruption,
            log_every=5,
            actions=[lambda run, samples: SampleAction(run, samples, events)],
        )
    steps = [2] if stopped else [2, 4, 5]
    assert events == [*steps, "closed"]
    for step in steps:
        folder = tmp_path / "samples" / f"step-{step:06}"
        assert (folder / "answer.txt").read_text() == f"step {step}"
        assert PIL.Image.open(folder / "flat.png").getpixel((0, 0)) == (step, 0, 0)
    (file,) = (tmp_path / "tensorboard").glob("events*")
    assert b"samples/flat" in file.read_bytes() and b"samples/answer" in file.read_bytes()
    assert len(left_out) == len(steps) and min(left_out) >= 0.1


def test_an_action_that_fails_ends_the_run_with_its_error_and_everything_is_closed(run, tmp_path):
    class Failing(SampleAction):
        def __call__(self, moment):
            raise RuntimeError("no samples")

        def close(self):
            super().close()
            raise OSError("a second error, which may follow from the first")

    events = []
    with pytest.raises(RuntimeError, match="no samples"):
        run([1.0] * 5, actions=[lambda run, samples: Failing(run, samples, events)])
    assert events == ["closed"] and saved_steps(tmp_path) == [2]
    assert not any("prefetch" in thread.name or "step-end" in thread.name for thread in threading.enumerate())
