"""Flags of the commands that load a model: its precision, its devices, and the lengths that programs are compiled for.

A command calls `flags.adopt_module_key_flags(model_flags)` to show them in its --help.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags

from janus_jax.errors import UserError
from janus_jax.inference.padding import BUCKETS as DEFAULT_BUCKETS
from janus_jax.inference.padding import Buckets, check_buckets

DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16"],
    "Precision of parameters and compute. The default is float32 on a CPU and bfloat16 on accelerators.",
)
QUANTIZE = flags.DEFINE_enum(
    "quantize",
    None,
    ["int8"],
    "Store the weight matrices of the language model and its heads as int8 with one scale per output channel. The "
    "default is full precision.",
)
MESH = flags.DEFINE_list(
    "mesh",
    None,
    "Number of devices along the axes data,fsdp,tensor; one may be -1, which takes the remaining devices. The default "
    "is a single device.",
)
BUCKETS = flags.DEFINE_list(
    "buckets",
    None,
    "Numbers of tokens, prompt,answer: of a piece of text in which prompts are read, and the finest step of the "
    "lengths of caches. The default is 32,64.",
)
ADAPTER = flags.DEFINE_string(
    "adapter", None, "Folder of PEFT with an adapter of the model, to merge into its weights."
)
ALL = (DTYPE, QUANTIZE, MESH, BUCKETS, ADAPTER)


def load_options() -> dict[str, Any]:
    """Arguments of `inference.loading.load`.

    Raises UserError for a mesh that does not have all devices, or buckets that are not two whole numbers from 1.
    """
    import jax

    from janus_jax.sharding import make_mesh

    sizes = mesh_sizes()
    if sizes is not None and jax.process_count() > 1:
        raise UserError(f"--mesh: decoding takes the devices of one process, but there are {jax.process_count()}")
    mesh = None if sizes is None else make_mesh(sizes)
    dtype = jax.numpy.dtype(DTYPE.value) if DTYPE.value else None
    options = {"dtype": dtype, "mesh": mesh, "quantization": QUANTIZE.value, "buckets": _buckets()}
    return options | {"adapter": ADAPTER.value}


def refuse(meaningless: Sequence[flags.FlagHolder], kind: str) -> None:
    """Raises UserError for the first of the flags that was given, although it means nothing for this kind of model."""
    for flag in meaningless:
        if flags.FLAGS[flag.name].present:
            raise UserError(f"--{flag.name}={flag.value} means nothing for {kind}, which --checkpoint is")


def mesh_sizes() -> dict[str, int] | None:
    """Number of devices by axis, as --mesh says."""
    if MESH.value is None:
        return None
    from janus_jax.sharding import MESH_AXES

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
