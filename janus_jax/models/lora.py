"""LoRA (Hu et al. 2021): which weight matrices get an adapter, and how its parameters are declared.

The adapter of a weight matrix "kernel" [in, out] is a pair of float32 matrices beside it, "lora_a" [in, rank] and
"lora_b" [rank, out], and a constant "lora_scale". `models.layers.Linear` adds x @ a @ b * scale to x @ kernel. A fresh
b is zero, so that a fresh adapter changes nothing. Stacked layers have stacked adapters.
"""

import dataclasses
import math
import re
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from janus_jax.errors import UserError
from janus_jax.models.initializers import Constant, Declared, TorchDefault
from janus_jax.models.layers import LORA_A, LORA_B, LORA_KEEP, LORA_KEY, LORA_SCALE, SCALE
from janus_jax.models.scan_layers import is_stacked

INT8 = "int8"
KERNEL = "kernel"
RANK = "lora_rank"  # logical axis


class LoraRule(NamedTuple):
    """The adapters of all weight matrices whose whole path matches a pattern."""

    pattern: str  # such as "llm/.*_proj/kernel"
    rank: int
    alpha: float


@dataclasses.dataclass(frozen=True)
class Lora:
    """The adapters of a model, and the form in which its own parameters are kept."""

    rules: tuple[LoraRule, ...]  # the first one that matches a weight matrix counts
    rslora: bool = False  # scale alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023)
    dropout: float = 0.0  # probability with which an adapter does not see an input feature in a training step
    seed: int = 0  # of dropout
    # Path of a frozen parameter -> dtype in which it is kept. A weight matrix in int8 has its scales beside it.
    frozen: tuple[tuple[str, str], ...] = ()

    def scale(self, rule: LoraRule) -> float:
        """Factor of the product of the two matrices."""
        return rule.alpha / (math.sqrt(rule.rank) if self.rslora else rule.rank)


def is_weight_matrix(path: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is the matrix of a `Linear`, stacked or not, so that it can have an adapter."""
    return path.endswith(f"/{KERNEL}") and len(shape) - is_stacked(path) == 2


def adapter_rules(shapes: Mapping[str, tuple[int, ...]], lora: Lora) -> dict[str, LoraRule]:
    """Path of a weight matrix -> the rule of its adapter.

    Args:
        shapes: path -> shape of all parameters of the model.

    Raises:
        UserError: a rule is no regular expression, or is never the first one to match a weight matrix.
    """
    for rule in lora.rules:
        try:
            re.compile(rule.pattern)
        except re.error as error:
            raise UserError(f"config.lora.rules: {rule.pattern!r} is not a regular expression ({error})") from error
    matrices = [path for path, shape in shapes.items() if is_weight_matrix(path, shape)]
    found = {path: next((rule for rule in lora.rules if re.fullmatch(rule.pattern, path)), None) for path in matrices}
    for rule in lora.rules:
        if rule not in found.values():
            raise UserError(
                f"config.lora.rules: {rule.pattern!r} is the first to match no weight matrix, expected a regular "
                f"expression for paths such as {matrices[-1]}"
            )
    return {path: rule for path, rule in found.items() if rule is not None}


def adapt(declared: Mapping[str, Declared], lora: Lora) -> dict[str, Declared]:
    """The declarations of a model's parameters, with the adapters, and with the dtypes of frozen parameters."""
    rules = adapter_rules({path: declaration.value.shape for path, declaration in declared.items()}, lora)
    dtypes = dict(lora.frozen)
    result = {}
    for path, declaration in declared.items():
        dtype = dtypes.get(path)
        result[path] = declaration if dtype is None else _with_dtype(declaration, dtype)
        if dtype == INT8:
            result[_beside(path, SCALE)] = _scales(declaration)
        if path in rules:
            result |= _adapter(path, declaration, rules[path].rank, lora.scale(rules[path]))
    return result


def is_trained_adapter(path: str) -> bool:
    """Whether a parameter is one of the two matrices of an adapter."""
    return path.rpartition("/")[2] in (LORA_A, LORA_B)


def is_beside(path: str) -> bool:
    """Whether a parameter belongs to an adapter or to an int8 matrix, so that the architecture does not have it."""
    return path.rpartition("/")[2] in (LORA_A, LORA_B, LORA_SCALE, SCALE)


def adapted_matrix(path: str) -> str:
    """Path of the weight matrix to which a part of an adapter belongs."""
    return _beside(path, KERNEL)


def adapter_path(path: str, name: str) -> str:
    """Path of the part `name` of the adapter of a weight matrix."""
    return _beside(path, name)


def with_dropout(params: Mapping[str, jax.Array], key: jax.Array, dropout: float) -> dict[str, jax.Array]:
    """Flat parameters with a random key beside each adapter, which makes its layer drop inputs.

    The text and the image head apply the same mask to each chunk of tokens.

    Args:
        key: data of a random key, uint32 [K]. Each adapter and layer gets another key from it.
    """
    result = dict(params)
    for path in params:
        if not path.endswith(f"/{LORA_A}"):
            continue
        own = jax.random.fold_in(jax.random.wrap_key_data(key), zlib.crc32(path.encode()))
        layers = params[path].shape[:1] if is_stacked(path) else ()
        result[_beside(path, LORA_KEY)] = jax.random.key_data(jax.random.split(own, layers) if layers else own)
        result[_beside(path, LORA_KEEP)] = jnp.full(layers, 1 - dropout, jnp.float32)
    return result


def _adapter(path: str, declaration: Declared, rank: int, scale: float) -> dict[str, Declared]:
    *stack, fan_in, fan_out = declaration.value.shape
    *layers, in_axis, out_axis = declaration.names

    def declared(distribution: object, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> Declared:
        value = jax.ShapeDtypeStruct((*stack, *shape), jnp.float32)
        return Declared(value, names=(*layers, *axes), distribution=distribution)

    return {
        # U(+-1 / sqrt(in)), as PEFT initialises it
        _beside(path, LORA_A): declared(TorchDefault(fan_in), (fan_in, rank), (in_axis, RANK)),
        _beside(path, LORA_B): declared(Constant(0.0), (rank, fan_out), (RANK, out_axis)),
        _beside(path, LORA_SCALE): declared(Constant(scale), (), ()),
    }


def _scales(declaration: Declared) -> Declared:
    """The scales of an int8 matrix. They are small, so every device has them whole."""
    shape = (*declaration.value.shape[:-2], declaration.value.shape[-1])
    names = (*declaration.names[:-2], None)
    return Declared(jax.ShapeDtypeStruct(shape, jnp.float32), names=names, distribution=Constant(1.0))


def _with_dtype(declaration: Declared, dtype: str) -> Declared:
    value = jax.ShapeDtypeStruct(declaration.value.shape, jnp.dtype(dtype))
    return Declared(value, names=declaration.names, distribution=declaration.distribution)


def _beside(path: str, name: str) -> str:
    return f"{path.rpartition('/')[0]}/{name}"
