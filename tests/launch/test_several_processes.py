"""Several local processes train as one: same losses, and a checkpoint that any number of processes continues."""

import signal
import socket
import time

import pytest
from tiny_runs import cache_folder, start_command, write_digit_files

from janus_jax.training.loop import read_metrics


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts `count` processes of one device each that train `steps` steps."""
    cache = cache_folder(tmp_path_factory)
    data = write_digit_files(tmp_path_factory.mktemp("data"))

    def start_all(workdir, count, steps, *flags, model=""):
        command = [
            "launch.train",
            f"--config=tests/launch/micro_experiment.py:{model}{data}",
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
                cache=cache / f"{count}-{i}",
            )
            for i in range(count)
        ]

    return start_all


@pytest.fixture(scope="module")
def train(start):
    """Trains to the end; returns the losses by step."""

    def run(workdir, count, steps, model=""):
        processes = start(workdir, count, steps, model=model)
        outputs = [process.communicate(timeout=300) for process in processes]
        assert [process.returncode for process in processes] == [0] * count, outputs
        assert all("loss" not in out for out, _ in outputs[1:])  # the first alone reports
        return {line["step"]: line["loss"] for line in read_metrics(workdir)}

    return run


@pytest.mark.parametrize(
    ("count", "steps"),
    [(2, 4), pytest.param(4, 20, marks=pytest.mark.slow), pytest.param(2, 20, marks=pytest.mark.slow)],
)
def test_several_processes_train_as_one_and_any_number_goes_on(train, tmp_path, count, steps):
    alone = train(tmp_path / "alone", 1, steps)
    half = train(tmp_path / "joined", count, steps // 2)
    assert list(half) == list(range(1, steps // 2 + 1))
    assert half == pytest.approx({step: alone[step] for step in half}, rel=1e-6)
    joined = train(tmp_path / "joined", {2: 1, 4: 2}[count], steps)
    assert joined == pytest.approx(alone, rel=1e-6)


@pytest.mark.slow
def test_janusflow_too_trains_in_several_processes_as_in_one(train, tmp_path):
    alone = train(tmp_path / "alone", 1, 4, "flow=")
    train(tmp_path / "joined", 2, 2, "flow=")
    joined = train(tmp_path / "joined", 1, 4, "flow=")
    assert joined == pytest.approx(alone, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("blow", "message"), [(signal.SIGKILL, "another host"), (signal.SIGSTOP, "heartbeat")])
def test_when_a_process_dies_or_hangs_the_others_stop_with_a_message_in_bounded_time(start, tmp_path, blow, message):
    """Well before the steps of the run could be done."""
    processes = start(tmp_path, 2, 10**6, "--peer_timeout=10", "--config.checkpoint.every_steps=1000000")
    metrics = tmp_path / "metrics.jsonl"
    try:
        while not metrics.exists() or len(read_metrics(tmp_path)) < 3:
            assert processes[0].poll() is None
            time.sleep(0.5)
        processes[1].send_signal(blow)
        _, errors = processes[0].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
    assert processes[0].returncode != 0 and message in errors
