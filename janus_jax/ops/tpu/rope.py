"""Rotary position embedding as a Pallas kernel for TPUs, which reads and writes memory once.

XLA turns the rotation of half heads into float32 arrays of 64 lanes, with five times the memory traffic (read from
programs compiled for v5p). The kernel keeps the layout that the projections write. The gradient of a rotation is the
rotation back, by the same kernel.

Letters: B rows, T tokens, N heads, H head dim, R = H / 2 rotated pairs.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

TOKENS, HEADS = 512, 8  # largest block


def rotate(
    x: Float[Array, "B T N H"], angles: Float[Array, "B T R"], scale: float, interpret: bool = False
) -> Float[Array, "B T N H"]:
    """`scale` times `ops.rope.apply_rope(x, angles)`, rounded only once, for H = 128.

    `interpret` runs the kernel on a CPU, for tests.
    """
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    table = jnp.stack([jnp.concatenate([cos, cos], -1), jnp.concatenate([-sin, sin], -1)], axis=1)  # [B, 2, T, H]
    flat = _rotate(scale, interpret, x.reshape(*x.shape[:2], -1), table)
    return flat.reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rotate(scale: float, interpret: bool, x: Array, table: Array) -> Array:
    return _call(scale, interpret, x, table)


def _forward(scale: float, interpret: bool, x: Array, table: Array) -> tuple[Array, Array]:
    return _call(scale, interpret, x, table), table


def _backward(scale: float, interpret: bool, table: Array, gradient: Array) -> tuple[Array, None]:
    back = table * jnp.array([1.0, -1.0])[:, None, None]
    return _call(scale, interpret, gradient, back), None


_rotate.defvjp(_forward, _backward)


def _call(scale: float, interpret: bool, x: Array, table: Array) -> Array:
    batch, length, width = x.shape
    head_dim = table.shape[-1]
    tokens, heads = min(TOKENS, length), min(HEADS, width // head_dim)
    if length % tokens or width % (heads * head_dim):
        raise ValueError(
            f"RoPE kernel got [{batch}, {length}, {width}], expected multiples of {tokens} tokens and {heads} heads"
        )
    block = pl.BlockSpec((None, tokens, heads * head_dim), lambda b, t, h: (b, t, h))
    return pl.pallas_call(
        functools.partial(_kernel, heads=heads, scale=scale),
        grid=(batch, length // tokens, width // (heads * head_dim)),
        in_specs=[block, pl.BlockSpec((None, 2, tokens, head_dim), lambda b, t, h: (b, 0, t, 0))],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        name="rope",
        interpret=interpret,
    )(x, table)


def _kernel(x_ref: Any, table_ref: Any, out_ref: Any, *, heads: int, scale: float) -> None:
    cos, sin = table_ref[0] * scale, table_ref[1] * scale
    head_dim = cos.shape[-1]
    for head in range(heads):
        lanes = slice(head * head_dim, (head + 1) * head_dim)
        x = x_ref[:, lanes].astype(jnp.float32)
        out_ref[:, lanes] = (x * cos + pltpu.roll(x, head_dim // 2, 1) * sin).astype(out_ref.dtype)
