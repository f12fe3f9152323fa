"""The number of this process among several that share an evaluation, and its own chips of a TPU slice.

The processes do not join each other with `jax.distributed`: there, a process that is lost ends all others.
"""

import os
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from janus_jax.errors import UserError
from janus_jax.evaluation.runner import Worker

DEVICES = Path("/dev")
# Shape of the chips of a host, by their number (v5e and v6e have hosts of 1, 4 and 8 chips, v4 and v5p of 4).
_HOST_BOUNDS = {1: "1,1,1", 4: "2,2,1", 8: "2,4,1"}


def this_worker(number: int | None, count: int | None, environment: Mapping[str, str] = os.environ) -> Worker:
    """The number of this process and of all, from the flags or from what starts the processes of a slice or cluster.

    Args:
        number, count: the flags --process_id and --num_processes.

    Raises:
        UserError: the flags do not go together, or variables are not numbers.
    """
    if (number is None) != (count is None):
        raise UserError("expected --process_id and --num_processes together")
    if number is not None and count is not None:
        if number >= count:
            raise UserError(f"--process_id={number}, expected less than --num_processes={count}")
        return Worker(number, count)
    if "TPU_WORKER_ID" in environment:
        hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
        return _from_variables("TPU_WORKER_ID", environment["TPU_WORKER_ID"], "TPU_WORKER_HOSTNAMES", len(hosts))
    if "SLURM_PROCID" in environment:
        tasks = environment.get("SLURM_NTASKS", "1")
        return _from_variables("SLURM_PROCID", environment["SLURM_PROCID"], "SLURM_NTASKS", tasks)
    return Worker()


def take_own_chips(worker: Worker, environment: MutableMapping[str, str] = os.environ) -> None:
    """Lets this process use the chips of its host alone. Must be called before anything touches JAX's devices.

    Without this, the TPU runtime of a host of a slice waits until the processes of all hosts have started. Variables
    that are set already are left as they are. On a machine without TPUs, and with a single process, nothing happens.
    """
    chips = [path for path in (*DEVICES.glob("accel*"), *DEVICES.glob("vfio/*")) if re.search(r"\d$", path.name)]
    bounds = environment.get("TPU_CHIPS_PER_HOST_BOUNDS") or _HOST_BOUNDS.get(len(chips))
    if worker.total == 1 or not chips or bounds is None:
        return
    environment.setdefault("TPU_PROCESS_BOUNDS", "1,1,1")
    environment.setdefault("TPU_CHIPS_PER_PROCESS_BOUNDS", bounds)
    environment.setdefault("TPU_VISIBLE_CHIPS", ",".join(map(str, range(len(chips)))))


def _from_variables(number_name: str, number: str, count_name: str, count: str | int) -> Worker:
    try:
        worker = Worker(int(number), int(count))
    except ValueError as error:
        raise UserError(f"{number_name}={number} and {count_name}={count} in the environment: not numbers") from error
    if not 0 <= worker.number < worker.total:
        raise UserError(
            f"{number_name}={number} and {count_name}={count} in the environment do not go together; "
            "give --process_id and --num_processes"
        )
    return worker
