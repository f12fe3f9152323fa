"""Flags of the commands that load a model: in which precision, over which devices, and which lengths are compiled."""

from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from janus_jax.errors import UserError
from janus_jax.inference.padding import BUCKETS as DEFAULT_BUCKETS
from janus_jax.inference.padding import Buckets, check_buckets
from janus_jax.sharding import MESH_AXES, make_mesh
from janus_jax.weights.quantization import QUANTIZATIONS

DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "default: float32 on CPU, bfloat16 on accelerators")
QUANTIZE = flags.DEFINE_enum("quantize", None, QUANTIZATIONS, "hold what every decoding step reads in 8 bits")
MESH = flags.DEFINE_list("mesh", None, "sizes data,fsdp,tensor, -1: the rest; default: the first device alone")
BUCKETS = flags.DEFINE_list(
    "buckets", None, "prompt,answer: lengths are rounded up to multiples of these tokens; default: 32,64"
)
ALL = (DTYPE, QUANTIZE, MESH, BUCKETS)


def load_options() -> dict[str, Any]:
    """Arguments of `inference.loading.load`.

    Raises UserError for a mesh that is not one of all devices, or buckets that are not two whole numbers from 1.
    """
    sizes = mesh_sizes()
    if sizes is not None and jax.process_count() > 1:
        raise UserError("--mesh: decoding takes the devices of one process, there are several")
    mesh = None if sizes is None else make_mesh(sizes)
    dtype = jnp.dtype(DTYPE.value) if DTYPE.value else None
    return {"dtype": dtype, "mesh": mesh, "quantization": QUANTIZE.value, "buckets": _buckets()}


def mesh_sizes() -> dict[str, int] | None:
    """By axis, as --mesh says."""
    if MESH.value is None:
        return None
    try:
        return dict(zip(MESH_AXES, map(int, MESH.value), strict=True))
    except ValueError as error:
        given = ",".join(MESH.value)
        raise UserError(f"--mesh={given}, expected three whole numbers data,fsdp,tensor") from error


def _buckets() -> Buckets:
    if BUCKETS.value is None:
        return DEFAULT_BUCKETS
    given = ",".join(BUCKETS.value)
    try:
        buckets = Buckets(*map(int, BUCKETS.value)) if len(BUCKETS.value) == len(Buckets._fields) else None
    except ValueError:
        buckets = None
    if buckets is None:
        raise UserError(f"--buckets={given}, expected two whole numbers prompt,answer")
    try:
        check_buckets(buckets)
    except UserError as error:
        raise UserError(f"--buckets={given}: {error}") from error
    return buckets
