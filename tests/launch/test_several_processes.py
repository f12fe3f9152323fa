"""Several local processes train as one: same losses, and a checkpoint that any number of processes continues.

One test runs by default. The others are slow, since each starts several processes, and most wait for a time limit.
"""

import json
import os
import re
import shutil
import signal
import socket
import time
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest
import tensorstore as ts

from examples.digits import data as digits
from janus_jax.data.records import write_records
from janus_jax.models.params import fingerprint, init_params
from janus_jax.training import loop
from janus_jax.training.metrics_log import read_metrics
from janus_jax.training.resilience.exit_codes import RESTART
from janus_jax.weights.native import save_params
from tests.helpers.tiny_runs import (
    MICRO_JANUS,
    MICRO_VQ,
    cache_folder,
    data_workers,
    janus_experiment,
    micro_world,
    start_command,
    write_digit_files,
)

# Beginnings of the names of metrics that do not depend on the number of processes.
SAME = ("loss", "accuracy", "tokens", "images", "fill", "grad_norm", "validation")
ABORTED = -signal.SIGABRT  # exit code by which JAX ends a process that misses heartbeats or process 0


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_digit_files(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def start(tmp_path_factory, data):
    """Starts `count` processes with `devices` devices each, which train `steps` steps."""
    cache = cache_folder(tmp_path_factory)

    def start_all(workdir, count, steps, *flags, model="", devices=1):
        command = [
            "launch.train",
            f"--config=tests/helpers/micro_experiment.py:{model}{data}",
            f"--workdir={workdir}",
            f"--config.train.num_steps={steps}",
            "--config.data.num_shards=4",
            "--config.mesh.fsdp=-1",
            *flags,
        ]
        port = free_port()
        return [
            start_command(
                *command,
                *(
                    [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={i}"]
                    if count > 1
                    else []
                ),
                cache=cache / f"{count}-{i}-{devices}",
                XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}",
            )
            for i in range(count)
        ]

    return start_all


@pytest.fixture(scope="module")
def train(start):
    """Trains to the end. Returns the losses, means and counts by step."""

    def run(workdir, count, steps, *flags, **options):
        processes = start(workdir, count, steps, *flags, **options)
        outputs = [process.communicate(timeout=300) for process in processes]
        assert [process.returncode for process in processes] == [0] * count, outputs
        assert all("loss" not in out for out, _ in outputs[1:])  # only the first process reports
        return comparable_metrics(workdir)

    return run


def comparable_metrics(workdir):
    """Metrics by step that do not depend on the number of processes."""
    return {
        line["step"]: {k: v for k, v in line.items() if k.startswith(SAME) and not k.endswith("_per_second")}
        for line in read_metrics(workdir)
    }


def wait_for_step(processes, workdir, step):
    end = time.monotonic() + 300
    while not (workdir / "metrics.jsonl").exists() or len(read_metrics(workdir)) < step:
        assert processes[0].poll() is None, processes[0].communicate(timeout=60)
        assert time.monotonic() < end
        time.sleep(0.5)


def assert_same(ours, expected):
    assert ours.keys() == expected.keys()
    assert {"loss/understand", "loss/text", "loss/generate", "tokens", "grad_norm"} <= set().union(*expected.values())
    for step, values in expected.items():
        for name, value in values.items():
            # Gradient norms are sums over all parameters of rounded gradients, and a perplexity is exp(loss).
            rel = 1e-4 if name.startswith("grad_norm") else 1e-5 if "perplexity" in name else 1e-6
            assert ours[step][name] == pytest.approx(value, rel=rel), (step, name)


def test_several_processes_train_as_one_and_any_number_goes_on(train, data, tmp_path, tmp_path_factory):
    """They are also validated as one. The single process is this one, which is faster than to start another."""
    config = janus_experiment(data)
    config.data.update(num_shards=4, held_out=8)
    config.validate.update(every_steps=2, num_rows=6)

    def train_here(workdir):
        with micro_world(cache_folder(tmp_path_factory)):
            loop.train(config, workdir)
        return comparable_metrics(workdir)

    alone = train_here(tmp_path / "alone")
    validated = ("--config.data.held_out=8", "--config.validate.every_steps=2", "--config.validate.num_rows=6")
    half = train(tmp_path / "joined", 2, 2, *validated)
    assert list(half) == [1, 2] and list(alone) == [1, 2, 3, 4]
    assert {"validation/loss", "validation/accuracy/text"} <= half[2].keys() and "validation/loss" not in half[1]
    assert_same(half, {step: alone[step] for step in half})
    assert_same(train_here(tmp_path / "joined"), alone)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "fewer"), [(2, 1), (4, 2), (4, 1)])
def test_their_losses_stay_those_of_one_process_of_as_many_devices(train, tmp_path, count, fewer):
    """Fewer devices would round other parts of the sums, which makes 1.4e-6 after 20 steps at this high rate."""
    alone = train(tmp_path / "alone", 1, 20, devices=count)
    assert_same(train(tmp_path / "joined", count, 20), alone)
    half = train(tmp_path / "fewer", count, 10)
    assert list(half) == list(range(1, 11))
    assert_same(train(tmp_path / "fewer", fewer, 20, devices=count // fewer), alone)


@pytest.mark.slow
def test_the_losses_of_two_processes_are_those_of_one_device_over_20_steps(train, tmp_path):
    """The number of devices does not change during the runs, since that would add its rounding."""
    assert_same(train(tmp_path / "joined", 2, 20), train(tmp_path / "alone", 1, 20))


@pytest.mark.slow
def test_janusflow_too_trains_in_several_processes_as_in_one(train, tmp_path):
    alone = train(tmp_path / "alone", 1, 4, model="flow=")
    train(tmp_path / "joined", 2, 2, model="flow=")
    joined = train(tmp_path / "joined", 1, 4, model="flow=")
    losses, expected = ({step: line["loss"] for step, line in lines.items()} for lines in (joined, alone))
    assert losses == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blow", "victim", "message", "codes"),
    [
        (signal.SIGKILL, 1, "another host of the run is gone", {RESTART}),
        (signal.SIGKILL, 0, "another host of the run is gone|another task died", {RESTART, ABORTED}),
        (signal.SIGSTOP, 1, "stopped sending heartbeats", {ABORTED}),
        (signal.SIGSTOP, 0, "CoordinationService/Heartbeat", {ABORTED}),
    ],
)
def test_when_a_process_dies_or_hangs_the_others_stop_with_a_message_in_bounded_time(
    start, tmp_path, blow, victim, message, codes
):
    """They stop long before the steps of the run could be done, with an exit code that restarts it."""
    processes = start(tmp_path, 2, 10**6, "--peer_timeout=10", "--config.checkpoint.every_steps=1000000")
    try:
        wait_for_step(processes, tmp_path, 3)
        processes[victim].send_signal(blow)
        _, errors = processes[1 - victim].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
    assert processes[1 - victim].returncode in codes and re.search(message, errors), errors


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all_after_the_same_saved_step_and_damage_is_found_by_all(start, train, tmp_path):
    """Most of the time goes into validation, so that the signal comes there."""
    validation = ("--config.data.held_out=4", "--config.validate.every_steps=3", "--config.validate.num_rows=4000")
    processes = start(tmp_path, 2, 10**6, "--config.checkpoint.every_steps=1000000", *validation)
    wait_for_step(processes, tmp_path, 2)
    time.sleep(3)
    processes[1].send_signal(signal.SIGTERM)
    ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [130, 130], ends
    assert "validation after step 3: stopped by a signal" in ends[0][0]
    (checkpoint,) = (path for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    step = int(checkpoint.name)
    assert all(f"after step {step}, which is saved" in errors for _, errors in ends)
    assert max(line["step"] for line in read_metrics(tmp_path)) == step
    train(tmp_path, 2, step + 1, validation[0])
    for file in (tmp_path / "checkpoints" / str(step + 1) / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    before = read_metrics(tmp_path)[-1]["loss"]
    after = train(tmp_path, 2, step + 1, validation[0])  # the last step again
    assert after[step + 1]["loss"] == pytest.approx(before, rel=1e-6)
    assert len(list((tmp_path / "damaged_checkpoints").iterdir())) == 1


@pytest.mark.slow
def test_damage_of_what_one_process_alone_reads_takes_all_back_to_the_checkpoint_before(start, train, tmp_path):
    before = train(tmp_path, 2, 2, "--config.checkpoint.every_steps=1")[2]["loss"]
    item = tmp_path / "checkpoints" / "2" / "params"
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{item}/"}).result()
    second_half = store.read("llm.embed_tokens/1.0").result().value
    (file,) = (path for path in item.rglob("d/*") if second_half in path.read_bytes())
    file.write_bytes(file.read_bytes().replace(second_half, bytes(len(second_half))))
    processes = start(tmp_path, 2, 2)
    ends = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert "another process cannot read checkpoint 2" in ends[0][1] and "2 cannot be restored" in ends[1][1], ends
    assert "resumed from checkpoint 1" in ends[0][0]
    assert read_metrics(tmp_path)[-1]["loss"] == pytest.approx(before, rel=1e-6)
    (aside,) = (tmp_path / "damaged_checkpoints").iterdir()
    assert aside.name.startswith("2-")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "code", "message"),
    [
        (1, 130, "no data came after step {step}, which is saved"),
        (2, RESTART, "asked to stop, but no step has ended for 5 s"),
    ],
)
def test_sigterm_while_the_data_of_a_process_stalls_ends_all(start, tmp_path, count, code, message):
    """A single process saves the last step. Of several, the first may notice the end of the other before its limit."""
    flags = (
        "--stop_timeout=5",
        "--peer_timeout=10",
        "--config.data.workers=1",
        "--config.checkpoint.every_steps=1000000",
    )
    processes = start(tmp_path, count, 10**6, *flags)
    wait_for_step(processes, tmp_path, 3)
    (worker,) = data_workers(processes[-1])
    try:
        os.kill(worker, signal.SIGSTOP)
        step, end = 0, time.monotonic() + 300
        while step < (step := len(read_metrics(tmp_path))):
            assert time.monotonic() < end
            time.sleep(10)  # batches that are already prepared are trained on
        processes[-1].send_signal(signal.SIGTERM)
        ends = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert processes[-1].returncode == code and message.format(step=step) in ends[-1][1], ends
    for process, (_, errors) in zip(processes[:-1], ends[:-1], strict=True):
        # JAX aborts it where closing its own data takes longer than it waits for heartbeats.
        assert process.returncode in (RESTART, ABORTED) and re.search("another host|another task died", errors), errors
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ([str(step)] if count == 1 else [])
    command = Path(f"/proc/{worker}/cmdline")
    assert not command.exists() or not command.read_text()  # a zombie has none


@pytest.mark.slow
def test_several_processes_know_the_tokenizer_of_stored_codes(start, train, tmp_path):
    """Its parameters are divided over the processes, and each process must compute the fingerprint of all of them."""
    training, _ = digits.load_digits()
    records = digits.generation_records(digits.Digits(training.intensities[:40], training.labels[:40]))
    rng = np.random.default_rng(0)
    coded = [record.with_codes(rng.integers(0, MICRO_VQ.num_codes, 16)) for record in records]
    write_records(tmp_path / "coded.array_record", coded)
    flags = ["--config.data.stored_codes=True", f'--config.data.sources.generate=("{tmp_path}/coded.array_record",)']
    expected = fingerprint(MICRO_VQ, init_params(MICRO_JANUS, seed=0)["vq"])
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"identity": {"image_tokenizer_sha256": expected}}))
    assert_same(train(tmp_path / "joined", 2, 2, *flags), train(tmp_path / "alone", 1, 2, *flags))
    manifest.write_text(json.dumps({"identity": {"image_tokenizer_sha256": "0123456789abcdef"}}))
    processes = start(tmp_path / "other", 2, 2, *flags)
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2 and expected[:12] in errors, errors


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_all_processes_with_their_rows(start, data, tmp_path):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, init_params(MICRO_JANUS, seed=0))
    save_params(tmp_path / "broken", MICRO_JANUS, broken)
    shutil.copy(data / "tokenizer.json", tmp_path / "broken")
    processes = start(tmp_path / "run", 2, 4, f"--config.init.checkpoint={tmp_path}/broken")
    for i, process in enumerate(processes):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2 and "error: step 1: " in errors and "loss/generate is nan" in errors, errors
        with np.load(tmp_path / "run" / "not_finite" / f"step-000001-process-{i}.npz", allow_pickle=False) as kept:
            assert kept["tokens"].shape == (2, 96)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["", "vq="])
def test_two_processes_show_the_samples_of_one(train, tmp_path, model):
    """Answers and codes exactly; pixels but for rounding."""
    flags = ["--config.sample.every_steps=2", "--config.sample.prompts=('the digit nine',)"]
    for count in (1, 2):
        train(tmp_path / str(count), count, 2, *flags, model=model)
    one, two = ({path.name: path for path in (tmp_path / n / "samples" / "step-000002").iterdir()} for n in "12")
    assert one.keys() == two.keys() and len(one) >= 1
    for name, path in one.items():
        if name.endswith(".txt"):
            assert two[name].read_text() == path.read_text()
        else:
            pixels = [np.asarray(PIL.Image.open(file)).astype(int) for file in (path, two[name])]
            np.testing.assert_allclose(pixels[1], pixels[0], rtol=0, atol=1)
