"""The number of a process that evaluates alone, and the variables with which it takes the chips of its host."""

import pytest

from janus_jax.errors import UserError
from janus_jax.evaluation.runner import Worker
from launch.cli import worker
from launch.cli.worker import take_own_chips, this_worker

TPU = {"TPU_WORKER_ID": "3", "TPU_WORKER_HOSTNAMES": "a,b,c,d"}
SLURM = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, (0, 1)), (TPU, (3, 4)), (SLURM, (1, 2)), ({**TPU, **SLURM}, (3, 4)), ({"TPU_WORKER_ID": "0"}, (0, 1))],
)
def test_the_number_is_what_the_environment_says(environment, expected):
    assert this_worker(None, None, environment) == Worker(*expected)


def test_flags_come_first():
    assert this_worker(1, 8, TPU) == Worker(1, 8)


@pytest.mark.parametrize(
    ("flags", "environment", "named"),
    [
        ((0, None), {}, "--num_processes"),
        ((None, 2), {}, "--process_id"),
        ((2, 2), {}, "--process_id=2"),
        ((None, None), {"TPU_WORKER_ID": "x"}, "TPU_WORKER_ID=x"),
        ((None, None), {"SLURM_PROCID": "2", "SLURM_NTASKS": "2"}, "SLURM_PROCID=2"),
    ],
)
def test_numbers_that_do_not_go_together_are_named(flags, environment, named):
    with pytest.raises(UserError, match=named):
        this_worker(*flags, environment)


@pytest.fixture
def devices(tmp_path, monkeypatch):
    """The folder of device files."""
    monkeypatch.setattr(worker, "DEVICES", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("names", "bounds", "chips"),
    [
        (["accel0", "accel1", "accel2", "accel3"], "2,2,1", "0,1,2,3"),
        ([f"vfio/{number}" for number in range(8)] + ["vfio/vfio"], "2,4,1", "0,1,2,3,4,5,6,7"),
    ],
)
def test_a_host_of_a_slice_takes_its_own_chips(devices, names, bounds, chips):
    for name in names:
        (devices / name).parent.mkdir(exist_ok=True)
        (devices / name).touch()
    environment = {}
    take_own_chips(Worker(0, 1), environment)
    assert environment == {}
    environment["TPU_PROCESS_BOUNDS"] = "2,1,1"
    take_own_chips(Worker(1, 4), environment)
    assert environment == {
        "TPU_PROCESS_BOUNDS": "2,1,1",  # what the user set stays
        "TPU_CHIPS_PER_PROCESS_BOUNDS": bounds,
        "TPU_VISIBLE_CHIPS": chips,
    }


def test_a_machine_without_tpus_is_left_as_it_is(devices):
    environment = {}
    take_own_chips(Worker(1, 4), environment)
    assert environment == {}
