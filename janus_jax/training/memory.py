"""Memory that a run needs, estimated before it takes any, and the refusal of a run that does not fit.

Nothing is allocated or compiled for the estimate. The state of a run, its gradients and its batches follow from shapes
and shardings. Activations are estimated from the traced gradient (`training.liveness`). What a host needs besides was
measured, see docs/training.md.

A CPU shares its memory with the host. When it runs out, Linux ends the process without a message. So a run on a CPU is
refused when the estimate is more than what is free. An accelerator reports by itself that its memory is not enough, so
there only what is certain counts: state, gradients and batches.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from janus_jax.batches import FlowBatch
from janus_jax.data.stream import PREFETCH, RING_SLOTS
from janus_jax.errors import UserError
from janus_jax.free_memory import free_bytes, free_host_bytes
from janus_jax.models.config import JanusFlowConfig, VAEConfig
from janus_jax.models.params import abstract_params
from janus_jax.sharding import AUTO, local_bytes, row_shares, rows_of_process
from janus_jax.training.adversarial_step import adversarial_gradients
from janus_jax.training.fsdp import sharded_gradient
from janus_jax.training.latents import flow_preparation
from janus_jax.training.liveness import peak_bytes
from janus_jax.training.plan import Plan, abstract_batch, make_plan
from janus_jax.training.prefetch import AHEAD
from janus_jax.training.setup import num_workers

GB = 1e9
# Measured on a CPU with jax 0.10.2 and orbax-checkpoint 0.12.8; docs/training.md has the runs.
COMPILATION_BYTES = 500_000_000  # what compiling the step takes and XLA keeps
WORKER_BYTES = 200_000_000  # a process that decodes and packs, without its blocks
SAVING_FACTOR = 1.75  # memory of a save by the size of what is saved: a copy of it, and chunks that are compressed
ACTIVATIONS, BATCHES, READING = "activations", "batches", "reading data"  # parts that depend on the number of rows


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that a run needs besides what its process has already taken, by what they are for."""

    device: dict[str, int]  # on each device
    host: dict[str, int]  # on each host, besides the memory of its devices
    devices_in_host: int  # number of devices whose memory is that of the host: CPUs of this process

    @property
    def host_total(self) -> int:
        return self.devices_in_host * sum(self.device.values()) + sum(self.host.values())

    @property
    def device_certain(self) -> int:
        """Bytes on each device without those that are only estimated."""
        return sum(size for what, size in self.device.items() if what != ACTIVATIONS)


def estimate_memory(config: ConfigDict, plan: Plan, vae: VAEConfig | None = None) -> Memory:
    """What a run of `config` needs on each device and on the host of this process.

    Args:
        vae: The VAE that encodes the images of JanusFlow, on each device all images of its rows at once.
    """
    state, batch = plan.state, abstract_batch(config, plan)
    adversary = state.adversary
    discriminator, others = (adversary.params, adversary.opt_state) if adversary else (None, None)
    gradients = local_bytes((state.trainable, discriminator))
    device = {
        "parameters": local_bytes((state.trainable, state.fixed, state.ema, discriminator)),
        "gradients": gradients,
        "optimizer": local_bytes((state.opt_state, others)),
        # The next batch is encoded between two steps, so the larger of both counts.
        ACTIVATIONS: max(_activation_bytes(plan, batch, gradients), _encoding_bytes(config, plan, vae, batch)),
        BATCHES: (AHEAD + 2) * local_bytes(batch),  # those ahead, one on its way to the device, one in its step
    }
    if vae is not None:
        device["VAE"] = _bytes(abstract_params(vae))
    saved = state._replace(loss_networks=None, frozen={} if plan.lora else state.frozen)
    mine = list(plan.mesh.local_devices)
    rows = batch.rows if isinstance(batch, FlowBatch) else batch
    processes = rows_of_process(plan.rows, config.train.batch_size)[1]
    loaded, workers = _bytes(rows) // processes, num_workers(config, processes, mine[0].platform)
    blocks = RING_SLOTS if workers else PREFETCH
    host = {
        READING: (blocks + 1) * loaded + workers * WORKER_BYTES,
        "compilation": COMPILATION_BYTES,
        "saving": int(SAVING_FACTOR * min(_bytes(saved), len(mine) * local_bytes(saved))),
    }
    return Memory(device, host, devices_in_host=len(mine) if mine[0].platform == "cpu" else 0)


def predicted_peak(config: ConfigDict, plan: Plan) -> int:
    """Most bytes that the compiled training step uses on each device at the same time, predicted from its trace."""
    state, batch = plan.state, abstract_batch(config, plan)
    trained = (state.trainable, None if state.adversary is None else state.adversary.params)
    gradients = local_bytes(trained)
    # XLA copies the rows when they are divided into micro-batches.
    rows = local_bytes(batch) * (1 if plan.micro_batches == 1 else 2)
    return local_bytes(state) + rows + gradients + _activation_bytes(plan, batch, gradients)


def check_memory(config: ConfigDict, plan: Plan, vae: VAEConfig | None = None) -> str:
    """Compares the memory that a run needs with what is free. Processes of one run decide alike.

    Returns:
        A line that says what is needed and free.

    Raises:
        UserError: It is not enough.
    """
    need = estimate_memory(config, plan, vae)
    shortages, line = [], []
    for what, needed, parts, free in _comparisons(need, plan):
        listed = ", ".join(f"{part} {size / GB:.2f}" for part, size in parts.items())
        text = f"{needed / GB:.2f} GB of {what} ({listed}), {free / GB:.2f} GB are free"
        line.append(text)
        if needed > free:
            shortages.append(text)
    if shortages:
        raise UserError(
            f"the run needs an estimated {'; '.join(shortages)}. {_advice(config, plan, vae, need)} "
            "config.check_memory=False starts the run anyway"
        )
    return f"memory, estimated: {'; '.join(line)}" if line else "memory: what is free is not known here"


def _comparisons(need: Memory, plan: Plan) -> Iterator[tuple[str, float, dict[str, int], float]]:
    """(kind of memory, bytes that are needed, their parts, bytes that are free) for each kind whose size is known."""
    host_parts = {part: need.devices_in_host * size for part, size in need.device.items() if need.devices_in_host}
    rows = [("host memory", need.host_total, host_parts | need.host, free_host_bytes())]
    if not need.devices_in_host:
        certain = {part: size for part, size in need.device.items() if part != ACTIVATIONS}
        device_free = free_bytes(list(plan.mesh.local_devices))
        rows.append(("memory on each device, without activations", need.device_certain, certain, device_free))
    for what, needed, parts, free in rows:
        pair = np.array([needed, math.inf if free is None else free], np.float64)
        if jax.process_count() > 1:
            pairs = multihost_utils.process_allgather(pair.astype(np.float32))  # [processes, 2]
            pair = pairs[np.argmax(pairs[:, 0] - pairs[:, 1])]
        if math.isfinite(pair[1]):
            yield what, float(pair[0]), parts, float(pair[1])


def _activation_bytes(plan: Plan, batch: Any, gradients: int) -> int:
    """Bytes on one device that computing the gradient takes at most, besides its arguments and its result.

    A `tensor` axis divides most of them. The program of a device does not show it, since XLA divides it later.
    """
    state = plan.state
    common: tuple[Any, ...] = (plan.shardings, plan.mesh, plan.execution.weights, plan.micro_batches)
    gradient, arguments = sharded_gradient(plan.objective, *common), [state.trainable, state.fixed, batch]
    if plan.two_networks is not None and state.adversary is not None:
        gradient = adversarial_gradients(plan.objective, *plan.two_networks, *common)
        arguments = [state.trainable, state.fixed, state.adversary.params, batch, jax.ShapeDtypeStruct((), np.float32)]
    jaxpr = jax.make_jaxpr(gradient)(*arguments).jaxpr
    of_device = next(eqn.params["jaxpr"] for eqn in jaxpr.eqns if eqn.primitive.name == "shard_map")
    return max(0, peak_bytes(of_device) - gradients) // plan.mesh.shape["tensor"]


def _encoding_bytes(config: ConfigDict, plan: Plan, vae: VAEConfig | None, batch: Any) -> int:
    """Bytes on one device that encoding the images of its rows takes at most, besides its arguments; 0 without VAE."""
    if vae is None or not isinstance(plan.architecture, JanusFlowConfig):
        return 0
    shares = row_shares(plan.mesh)
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] // shares, *x.shape[1:]), x.dtype), batch.rows)
    prepare = flow_preparation(plan.architecture, config, vae)
    return peak_bytes(jax.make_jaxpr(prepare)(abstract_params(vae), rows, np.int32(0)).jaxpr)


def _bytes(tree: Any) -> int:
    """Bytes of a tree of abstract arrays, on all devices together."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _advice(config: ConfigDict, plan: Plan, vae: VAEConfig | None, need: Memory) -> str:
    """What would fit, if anything of what is tried does."""
    nothing = (
        "Fewer rows at a time would not fit either. What would help: more devices (config.mesh.fsdp), fewer trained "
        "parameters (config.trainable), a smaller model, or for a try-out :debug at the end of --config."
    )
    of_rows = {ACTIVATIONS: 0, BATCHES: 0}
    without_rows = dataclasses.replace(need, device=need.device | of_rows, host=need.host | {READING: 0})
    if not _fits(without_rows, plan):
        return nothing
    shares = row_shares(plan.mesh)
    fewest = shares if config.data.num_shards == AUTO else math.lcm(shares, config.data.num_shards)
    for batch_size in (config.train.batch_size, fewest):
        change = {"train.batch_size": batch_size, "train.micro_batches": batch_size // shares, "remat": "full"}
        smaller = config.copy_and_resolve_references()
        smaller.update_from_flattened_dict(change)
        smaller_plan = make_plan(smaller, list(plan.mesh.devices.flat))
        need = estimate_memory(smaller, smaller_plan, vae)
        if _fits(need, smaller_plan):
            fields = ", ".join(f"config.{field}={value}" for field, value in change.items())
            total = need.host_total if need.devices_in_host else need.device_certain
            return f"With {fields} it would need {total / GB:.2f} GB."
    return nothing


def _fits(need: Memory, plan: Plan) -> bool:
    return all(needed <= free for _, needed, _, free in _comparisons(need, plan))
