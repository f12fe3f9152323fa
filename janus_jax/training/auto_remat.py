"""What `remat="auto"` means on given devices: the fastest rematerialisation policy whose predicted peak fits.

Nothing is compiled. The peak of a policy is predicted from the traced gradient (`memory.predicted_peak`);
docs/compile_check.md compares it with compiled programs. The memory of a TPU is that of the table of chips, so
that a run chooses alike at every start, and alike in `launch.compile_check`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from janus_jax.free_memory import total_bytes
from janus_jax.hardware import hbm_bytes
from janus_jax.sharding import AUTO
from janus_jax.training.memory import GB, estimate_memory, predicted_peak
from janus_jax.training.plan import Plan, make_plan

USED_AT_MOST = 0.9  # share of the memory of a device
# The fastest policy first. "dots" is left out: it keeps as much as "projections" and repeats attention. An accelerator
# never takes "none": the elementwise results that it keeps take more than twice the memory of "projections", and for
# TPUs the compiler estimates that this saves no time (docs/compile_check.md). A CPU runs its layers unrolled, but only
# with "none" (`setup.execution`).
ACCELERATOR_POLICIES = ("projections", "attention", "context", "full")
CPU_POLICIES = ("none", *ACCELERATOR_POLICIES)


class RematChoice(NamedTuple):
    """Why a policy was chosen."""

    policy: str
    predicted: dict[str, int]  # policy -> predicted bytes on each device, of those that were considered
    memory: int | None  # of each device; None: unknown

    def describe(self) -> str:
        """One line."""
        if self.memory is None:
            return f"remat auto: {self.policy}, since the memory of the devices is not known here"
        others = [f"{name} {size / GB:.1f}" for name, size in self.predicted.items() if name != self.policy]
        needed = self.predicted[self.policy]
        line = f"remat auto: {self.policy}, predicted {needed / GB:.1f} of {self.memory / GB:.1f} GB on each device"
        if needed > USED_AT_MOST * self.memory:
            line += f", more than the {100 * USED_AT_MOST:.0f} % that should be used"
        return f"{line} (GB of others: {', '.join(others)})" if others else line


def plan_with_remat(
    config: ConfigDict, devices: Sequence[Any] | None = None, compare: bool = False
) -> tuple[Plan, RematChoice | None]:
    """`make_plan` with the policy that "auto" means, and why; None where the config names a policy.

    Where none fits, the policy is the one that takes the least memory.

    Args:
        compare: whether to predict the peak of the policies that take less memory, too.
    """
    plan = make_plan(config, devices)
    if config.remat != AUTO:
        return plan, None
    devices = list(plan.mesh.devices.flat)
    memory = memory_of(list(plan.mesh.local_devices) or devices)
    if memory is None:
        return plan, RematChoice(plan.execution.remat, {}, None)
    chosen, predicted = None, {}
    policies = CPU_POLICIES if devices[0].platform == "cpu" else ACCELERATOR_POLICIES
    for policy in policies:
        trial = config.copy_and_resolve_references()
        trial.remat = policy
        plan = make_plan(trial, devices)
        predicted[policy] = needed_bytes(trial, plan)
        if chosen is None and (predicted[policy] <= USED_AT_MOST * memory or policy == policies[-1]):
            chosen = plan
            if not compare:
                break
    assert chosen is not None
    return chosen, RematChoice(chosen.execution.remat, predicted, memory)


def needed_bytes(config: ConfigDict, plan: Plan) -> int:
    """Predicted bytes on each device; on a CPU with the share of what its host needs besides."""
    need = estimate_memory(config, plan)
    if need.devices_in_host:
        return need.host_total // need.devices_in_host
    return predicted_peak(config, plan)


def memory_of(devices: Sequence[Any]) -> int | None:
    """Memory of each device of this process; of several processes the smallest, so that they choose alike."""
    sizes = [hbm_bytes(device) for device in devices]
    if all(sizes):
        return min(size for size in sizes if size)
    memory = total_bytes(devices)
    if jax.process_count() == 1:
        return memory
    least = float(np.min(multihost_utils.process_allgather(np.float32(memory or 0))))
    return int(least) or None
