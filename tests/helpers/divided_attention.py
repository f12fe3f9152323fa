"""Runs in a separate process: attention by the Pallas kernels on one device and with heads divided over two.

It prints the differences as JSON.
"""

import functools
import json
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.models.scan_layers import REMAT_POLICIES
from janus_jax.ops import attention
from janus_jax.ops.rope import rope_angles
from janus_jax.sharding import BATCH_SPEC, ROW_AXES, make_mesh

ROWS, LENGTH, HEADS, KV_HEADS, HEAD_DIM = 2, 128, 4, 2, 128


def main():
    for name in ("rotate", "flash_attend"):
        setattr(attention, name, functools.partial(getattr(attention, name), interpret=True))
    rng = np.random.default_rng(0)
    q, k, v, slope = (
        rng.standard_normal((ROWS, LENGTH, heads, HEAD_DIM), np.float32) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)
    )
    segments = jnp.asarray(np.repeat([[1, 2, 3, 3], [1, 1, 1, 2]], LENGTH // 4, axis=1))
    positions = jnp.asarray(np.tile(np.arange(LENGTH), (ROWS, 1)))

    def gradients(q, k, v, slope, positions, segments):
        """As a layer of the model under remat, in the middle of `jax.shard_map` over rows."""

        def context(q, k, v):
            angles = rope_angles(positions, HEAD_DIM, 1e4)
            return attention.attend_packed(q, k, v, angles, positions, segments, "flash")

        context, pull_back = jax.vjp(jax.checkpoint(context, policy=REMAT_POLICIES["context"]), q, k, v)
        return context, *pull_back(slope)

    arrays = (q, k, v, slope, positions, segments)
    alone = jax.jit(gradients)(*arrays)
    mesh = make_mesh({"data": 1, "fsdp": 2, "tensor": 2})
    divided = jax.jit(
        jax.shard_map(
            gradients, mesh=mesh, in_specs=BATCH_SPEC, out_specs=BATCH_SPEC, axis_names=set(ROW_AXES), check_vma=False
        )
    )
    program = divided.lower(*arrays)
    together = program.compile()(*arrays)
    result = {
        "scale": [float(jnp.abs(x).max()) for x in alone],
        "difference": [float(np.abs(np.asarray(x) - y).max()) for x, y in zip(alone, together, strict=True)],
        # Numbers of heads in the queries that the kernels get.
        "heads": [n for n in (HEADS, HEADS // 2) if f"tensor<1x{LENGTH}x{n * HEAD_DIM}xf32>" in program.as_text()],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
