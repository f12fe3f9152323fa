"""Several local processes train as one: same losses, and a checkpoint that any number of processes continues."""

import socket

import pytest
from tiny_runs import cache_folder, start_command, write_digit_files

from janus_jax.training.loop import read_metrics


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Trains `steps` steps in `count` processes of one device each; returns the losses by step."""
    cache = cache_folder(tmp_path_factory)
    data = write_digit_files(tmp_path_factory.mktemp("data"))

    def run(workdir, count, steps):
        command = [
            "launch.train",
            f"--config=tests/launch/micro_experiment.py:{data}",
            f"--workdir={workdir}",
            f"--config.train.num_steps={steps}",
            "--config.data.num_shards=4",
            "--config.mesh.fsdp=-1",
        ]
        port = free_port()
        processes = [
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
