"""The sizes of SigLIP and of the VQ in a DeepSeek folder, inferred from the shapes of its tensors.

The original config.json only names both; the code behind the names has their sizes. The shapes tell all of them except
the number of SigLIP's heads.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from janus_jax.errors import UserError
from janus_jax.models.config import SiglipConfig
from janus_jax.weights.json_fields import Fields
from janus_jax.weights.layout_limits import check_fields
from janus_jax.weights.name_map import Shape

SIGLIP_LARGE = "siglip_large_patch16_384"
# Defaults of the original CLIPVisionTower.
TOWER_DEFAULTS = {"model_name": SIGLIP_LARGE, "image_size": 336, "select_layer": -2}
SIGLIP_NORM_EPS = 1e-6  # built into the original code


class Tower(NamedTuple):
    """A SigLIP whose sizes are built into the original code; any image size goes with it."""

    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int


# The towers that the original code knows by name (janus/models/siglip_vit.py).
TOWERS = {
    SIGLIP_LARGE: Tower(16, 1024, 24, 16, 4096),
    "siglip_so400m_patch14_384": Tower(14, 1152, 27, 16, 4304),
    "siglip_so400m_patch14_224": Tower(14, 1152, 27, 16, 4304),
}
_HEAD_FIELDS = ("heads", "num_heads", "num_attention_heads")
_TOWER = "vision_model.vision_tower."
_VQ = "gen_vision_model."


def measure_siglip(params: Fields, shapes: Mapping[str, Shape], tower: str = _TOWER) -> SiglipConfig:
    """The architecture of the understanding encoder.

    The number of heads is the field `heads` (or `num_heads`, as timm calls it). Without it, it is the number
    that the original code has for the tower's name, provided that the tower has the width that belongs to that name.

    Args:
        params: `vision_config.params`, with `TOWER_DEFAULTS` for what it lacks.
        shapes: name -> shape of all tensors.
        tower: the prefix of the encoder's tensors.

    Raises:
        UserError: a tensor is missing or disagrees with image_size, or the tower is not a SigLIP.
    """
    name = params.values["model_name"]
    if not isinstance(name, str) or not name.startswith("siglip"):
        raise params.wrong("model_name", f"a SigLIP tower such as {SIGLIP_LARGE!r}")
    # `select_feature` has no effect on a SigLIP tower. A mean and std would normalise pixels inside the model.
    params.only(select_layers=None, pixel_mean=None, pixel_std=None)
    width, patch_size = (_size(params, shapes, f"{tower}patch_embed.proj.weight", axis) for axis in (0, 2))
    depth = _count(shapes, f"{tower}blocks.")
    if name in TOWERS:
        depth = min(depth, selected_depth(params, TOWERS[name].depth))
    head_fields = [field for field in _HEAD_FIELDS if field in params.values]
    if not head_fields:
        if name not in TOWERS or width != TOWERS[name].width:
            raise params.wrong("heads", f"the number of heads, which is unknown for a tower {name!r} of width {width}")
        params, head_fields = params.filled({"heads": TOWERS[name].num_heads}), ["heads"]
    siglip = SiglipConfig(
        image_size=params.integer("image_size"),
        patch_size=patch_size,
        width=width,
        depth=depth,
        num_heads=params.integer(head_fields[0]),
        mlp_dim=_size(params, shapes, f"{tower}blocks.0.mlp.fc1.weight", 0),
        norm_eps=SIGLIP_NORM_EPS,
    )
    tokens = _size(params, shapes, f"{tower}pos_embed", 1)
    if tokens != siglip.num_tokens:
        raise params.wrong(
            "image_size", f"the size of {tokens} patches of {patch_size} x {patch_size}, as pos_embed has"
        )
    return siglip


def tower_fields(siglip: SiglipConfig) -> dict[str, Any]:
    """The `params` with which the original code builds this encoder, of which it can leave out the last blocks.

    Raises:
        UserError: the original code has no such tower; names the first field that differs from its nearest one.
    """
    name = next((name for name, tower in TOWERS.items() if tower.width == siglip.width), SIGLIP_LARGE)
    tower = TOWERS[name]
    check_fields(
        "deepseek",
        {
            "siglip.norm_eps": (siglip.norm_eps, SIGLIP_NORM_EPS),
            **{
                f"siglip.{field}": (getattr(siglip, field), value)
                for field, value in tower._replace(depth=min(siglip.depth, tower.depth))._asdict().items()
            },
        },
    )
    layers = {"select_feature": "same", "select_layer": -1 if siglip.depth == tower.depth else siglip.depth}
    return {"model_name": name, "image_size": siglip.image_size, **layers}


def measure_vq(fields: Fields, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The sizes in `VQConfig`. Raises UserError when a tensor is missing or the levels do not share a base width."""
    base = _size(fields, shapes, f"{_VQ}encoder.conv_in.weight", 0)
    levels = range(_count(shapes, f"{_VQ}encoder.conv_blocks."))
    widths = [_size(fields, shapes, f"{_VQ}encoder.conv_blocks.{i}.res.0.conv1.weight", 0) for i in levels]
    if any(width % base for width in widths):
        raise UserError(
            f"{fields.path.parent}: {_VQ}encoder has levels of {widths} channels, expected multiples of {base}"
        )
    num_codes, code_dim = (_size(fields, shapes, f"{_VQ}quantize.embedding.weight", axis) for axis in (0, 1))
    return {
        "base_channels": base,
        "channel_multipliers": tuple(width // base for width in widths),
        "num_res_blocks": _count(shapes, f"{_VQ}encoder.conv_blocks.0.res."),
        "z_channels": _size(fields, shapes, f"{_VQ}encoder.conv_out.weight", 0),
        "code_dim": code_dim,
        "num_codes": num_codes,
    }


def selected_depth(params: Fields, depth: int) -> int:
    """The number of blocks that the original builds of `depth`; the final norm always follows the last of them."""
    layer = params.integer("select_layer", least=-depth)
    return min(depth, layer if layer > 0 else depth + layer + 1)


def _size(fields: Fields, shapes: Mapping[str, Shape], name: str, axis: int) -> int:
    shape = shapes.get(name, ())
    if len(shape) <= axis or shape[axis] < 1:
        found = f"has the shape {list(shape)}" if name in shapes else "is missing"
        raise UserError(f"{fields.path.parent}: tensor {name}, which tells a size of the model, {found}")
    return shape[axis]


def _count(shapes: Mapping[str, Shape], prefix: str) -> int:
    """The number of modules `prefix`0, `prefix`1, ..."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in shapes if name.startswith(prefix)})
