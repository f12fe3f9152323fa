"""Mask2Former with a Swin backbone, read from mmdet's checkpoint, which GenEval uses, or from a transformers folder.

The two have the same architecture and were trained separately, so their detections differ.
"""

from typing import NamedTuple

from etils import epath

from janus_jax.errors import UserError
from janus_jax.models.mask2former import NUM_LEVELS
from janus_jax.models.metric_config import Mask2FormerConfig, SwinConfig
from janus_jax.models.params import Params
from janus_jax.weights.foreign import ForeignTensors
from janus_jax.weights.json_fields import CONFIG_FILE, checked_sizes, read_fields
from janus_jax.weights.load import load_params
from janus_jax.weights.tensor_files import open_tensors

OFFICIAL, TRANSFORMERS = "mmdet", "mask2former"  # layouts of `name_map`
FILE_NAME = "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.pth"
# Mask2Former with Swin-S, trained on the instances of COCO: the detector of GenEval.
SWIN_SMALL = Mask2FormerConfig(
    swin=SwinConfig(
        width=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), window_size=7, mlp_ratio=4, norm_eps=1e-5
    ),
    width=256,
    encoder_depth=6,
    encoder_mlp_dim=1024,
    decoder_depth=9,
    decoder_mlp_dim=2048,
    num_heads=8,
    num_queries=100,
    num_classes=80,
)
_NORM_EPS = 1e-5
_FIXED = {"activation_function": "relu", "pre_norm": False, "common_stride": 4, "feature_strides": [4, 8, 16, 32]}
_SWIN_FIXED = {"hidden_act": "gelu", "qkv_bias": True, "use_absolute_embeddings": False, "patch_size": 4}


class LoadedDetector(NamedTuple):
    """A detector and which of the two trainings it has."""

    config: Mask2FormerConfig
    params: Params
    layout: str  # `OFFICIAL` or `TRANSFORMERS`


def load_mask2former(path: epath.PathLike) -> LoadedDetector:
    """Reads a file of mmdet or a folder of transformers, in float32.

    Raises:
        UserError: there is neither, it is damaged, or holds another network.
    """
    path = epath.Path(path)
    if path.is_dir():
        return _load(path, read_mask2former_config(path), TRANSFORMERS)
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected {FILE_NAME} of mmdet or a Mask2Former folder of transformers")
    return _load(path, SWIN_SMALL, OFFICIAL)


def read_mask2former_config(folder: epath.PathLike) -> Mask2FormerConfig:
    """The architecture of a Mask2FormerForUniversalSegmentation folder.

    Raises:
        UserError: no readable config.json, another kind of model, or one that our code cannot represent.
    """
    fields = read_fields(epath.Path(folder) / CONFIG_FILE)
    if fields.values.get("model_type") != "mask2former":
        raise fields.wrong("model_type", '"mask2former"')
    fields.only(**_FIXED)
    swin = fields.object("backbone_config", {"layer_norm_eps": _NORM_EPS, "window_size": 7, "mlp_ratio": 4.0})
    swin.only(model_type="swin", **_SWIN_FIXED)
    width = fields.integer("hidden_dim")
    fields.only(feature_size=width, mask_feature_size=width)
    labels = fields.values.get("id2label")
    if not isinstance(labels, dict) or not labels:
        raise fields.wrong("id2label", "the names of the classes")
    with checked_sizes(fields.path):
        return Mask2FormerConfig(
            swin=SwinConfig(
                width=swin.integer("embed_dim"),
                depths=tuple(swin.integer_list("depths")),
                num_heads=tuple(swin.integer_list("num_heads")),
                window_size=swin.integer("window_size"),
                mlp_ratio=round(swin.number("mlp_ratio")),
                norm_eps=swin.number("layer_norm_eps"),
            ),
            width=width,
            encoder_depth=fields.integer("encoder_layers"),
            encoder_mlp_dim=fields.integer("encoder_feedforward_dim"),
            # The number that transformers stores counts the prediction before the first layer.
            decoder_depth=fields.integer("decoder_layers", least=2) - 1,
            decoder_mlp_dim=fields.integer("dim_feedforward"),
            num_heads=fields.integer("num_attention_heads"),
            num_queries=fields.integer("num_queries"),
            num_classes=len(labels),
        )


def _load(path: epath.Path, config: Mask2FormerConfig, layout: str) -> LoadedDetector:
    if len(config.swin.depths) != NUM_LEVELS + 1:
        raise UserError(f"{path}: a backbone of {len(config.swin.depths)} stages, expected {NUM_LEVELS + 1}")
    with open_tensors(path) as files:
        stored = {name.replace("in_proj_", "in_proj."): name for name in files.tensors}
        tensors = ForeignTensors(files, config, layout, path, stored_names=stored)
        return LoadedDetector(config, load_params(tensors, "float32"), layout)
