"""What the config.json of both foreign layouts leaves unsaid about a Janus model, and so cannot express.

The code of both layouts has these values built in.
"""

from collections.abc import Mapping
from typing import Any

from janus_jax.errors import UserError
from janus_jax.models.config import JanusConfig, SiglipConfig, VQConfig

_VQ_FIXED: dict[str, Any] = {"norm_groups": 32, "norm_eps": 1e-6, "commitment": 0.25}


def vq_config(siglip: SiglipConfig, sizes: Mapping[str, Any]) -> VQConfig:
    """The image tokenizer of the given sizes.

    Its image size follows from SigLIP's: both layouts generate as many image tokens as SigLIP has patches.
    """
    grid = siglip.image_size // siglip.patch_size
    image_size = grid * 2 ** (len(sizes["channel_multipliers"]) - 1)
    return VQConfig(**sizes, **_VQ_FIXED, image_size=image_size)


def check_expressible(config: JanusConfig, layout: str, fixed: Mapping[str, tuple[Any, Any]]) -> None:
    """Raises UserError for the first field whose value the layout cannot express.

    Args:
        fixed: {field: (value in `config`, the only value that the layout has)}, besides what both layouts share.
    """
    tokens = {"tokens per generated image": (config.vq.num_tokens, config.siglip.num_tokens)}
    shared = {f"vq.{name}": (getattr(config.vq, name), value) for name, value in _VQ_FIXED.items()}
    check_fields(layout, shared | dict(fixed) | tokens)


def check_fields(layout: str, fields: Mapping[str, tuple[Any, Any]]) -> None:
    """Raises UserError for the first field whose value is not the one that the layout has.

    Args:
        fields: {field: (value, the only value that the layout has)}.
    """
    for name, (ours, theirs) in fields.items():
        if ours != theirs:
            raise UserError(f"{name}={ours} cannot be written in the {layout} layout, which has {theirs}")
