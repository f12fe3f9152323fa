"""The section of a config.json for the language model <-> `LlamaConfig`, as transformers 4 and 5 write it."""

from typing import Any

from janus_jax.models.config import LlamaConfig
from janus_jax.weights.json_fields import Fields

# Our names -> theirs.
_SIZES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp_dim": "intermediate_size",
    "max_length": "max_position_embeddings",
}
_NUMBERS = {"norm_eps": "rms_norm_eps", "init_std": "initializer_range"}
# The only values that our code computes.
_FIXED = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
# Defaults of transformers' LlamaConfig. The original file of Janus-Pro-7B leaves most fields out and relies on them.
LLAMA_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
}
_ROPE_THETA = 10000.0


def read_llama(fields: Fields) -> LlamaConfig:
    """The architecture in an object that has `LLAMA_DEFAULTS` for what it lacks.

    Raises UserError for a damaged field and for an architecture that our code does not compute.
    """
    fields.only(**_FIXED)
    width, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if "head_dim" not in fields.values and width % heads:
        raise fields.wrong("num_attention_heads", f"a divisor of hidden_size={width}, as there is no head_dim")
    sizes = fields.filled({"num_key_value_heads": heads, "head_dim": width // heads}).integers(_SIZES)
    numbers: dict[str, Any] = {ours: fields.number(theirs) for ours, theirs in _NUMBERS.items()}
    return LlamaConfig(**sizes, **numbers, rope_theta=_read_rope_theta(fields))


def llama_fields(config: LlamaConfig) -> dict[str, Any]:
    """All fields except the ids of tokens. RoPE's theta stands where transformers 4 and where 5 looks for it."""
    return {
        **_FIXED,
        **{theirs: getattr(config, ours) for ours, theirs in (_SIZES | _NUMBERS).items()},
        "rope_theta": config.rope_theta,  # transformers 4
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},  # transformers 5
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
    }


def _read_rope_theta(fields: Fields) -> float:
    """RoPE's theta, at the top level (transformers 4) or in `rope_parameters` (5). Refuses scaled and partial RoPE."""
    places = [fields, fields.object("rope_parameters"), fields.object("rope_scaling")]
    for place in places:
        place.only(rope_type="default", type="default", partial_rotary_factor=1.0)
    found = [place for place in places if "rope_theta" in place.values]
    for place in found[1:]:
        place.only(rope_theta=found[0].number("rope_theta"))
    return found[0].number("rope_theta") if found else _ROPE_THETA
