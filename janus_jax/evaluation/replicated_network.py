"""Runs a network over many inputs on all devices of this process: the weights on every device, the rows divided.

Threads of the host prepare the next batch while the devices compute. The batches follow the order of the inputs, so
that sums over them are the same in every run. Networks compute in float32 with exact products: bfloat16 ones, which
TPUs use by default, move the features of Inception by half a per cent.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from janus_jax.models.config import AnyConfig
from janus_jax.models.params import Params, bind, build, fingerprint

ROWS_PER_DEVICE = 32
Progress = Callable[[int, int], None]  # called with the number of inputs that are done, and of all
Item = TypeVar("Item")
# A function of the bound network and of arrays with a row per input; it returns arrays of the same kind. It must be
# defined at the top of a module, so that its compiled programs are found again.
Function = Callable[..., tuple[jax.Array, ...]]


class ReplicatedNetwork:
    """A network with its parameters on every device.

    Attributes:
        weights: short hash of architecture and parameters.
    """

    def __init__(self, config: AnyConfig, params: Params, mesh: Mesh | None = None):
        """Puts the parameters on every device.

        Args:
            mesh: devices of this process; None takes all of them.
        """
        devices = np.array(jax.local_devices()) if mesh is None else mesh.devices.flatten()
        rows = Mesh(devices, ("rows",))
        self.weights = fingerprint(config, jax.device_get(params))[:12]
        self._config, self._num_devices = config, len(devices)
        self._rows = NamedSharding(rows, PartitionSpec("rows"))
        self._params = jax.device_put(params, NamedSharding(rows, PartitionSpec()))

    def batches(
        self,
        function: Function,
        items: Sequence[Item],
        prepare: Callable[[Item], tuple[np.ndarray, ...]],
        progress: Progress | None = None,
        rows_per_device: int = ROWS_PER_DEVICE,
    ) -> Iterator[tuple[np.ndarray, ...]]:
        """The results of each batch in turn.

        Args:
            prepare: makes the arrays of one input, in a thread. Their shapes must be the same for all inputs.
        """
        size = min(rows_per_device, -(-len(items) // self._num_devices)) * self._num_devices
        parts = [items[start : start + size] for start in range(0, len(items), size)] if items else []
        with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
            waiting = [pool.submit(prepare, item) for item in parts[0]] if parts else []
            for number, part in enumerate(parts):
                prepared = [future.result() for future in waiting]
                following = parts[number + 1] if number + 1 < len(parts) else ()
                waiting = [pool.submit(prepare, item) for item in following]
                padded = [*prepared, *prepared[-1:] * (size - len(part))]  # one program for all batches
                inputs = [jax.device_put(np.stack(values), self._rows) for values in zip(*padded, strict=True)]
                results = _run(self._params, *inputs, function=function, config=self._config)
                yield tuple(np.asarray(values)[: len(part)] for values in results)
                if progress is not None:
                    progress(number * size + len(part), len(items))


@functools.partial(jax.jit, static_argnames=("function", "config"))
def _run(params: Params, *inputs: jax.Array, function: Function, config: AnyConfig) -> tuple[jax.Array, ...]:
    with jax.default_matmul_precision("float32"):
        return function(bind(build(config), params), *inputs)
