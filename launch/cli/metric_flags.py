"""Flags of what scores of images need besides the images."""

from absl import flags
from etils import epath

from janus_jax.evaluation.image_benchmarks.options import MetricOptions
from janus_jax.evaluation.scores.dpg import RULES

_INCEPTION = flags.DEFINE_string(
    "inception",
    None,
    "Weights of Inception for Fréchet distance and Inception score: pytorch-fid's "
    "pt_inception-2015-12-05-6726825d.pth, or the same as safetensors.",
)
_CLIP = flags.DEFINE_string("clip", None, "CLIP for the CLIP score: a folder of transformers, such as ViT-L/14.")
_REFERENCE = flags.DEFINE_string(
    "reference",
    None,
    "Real images for the Fréchet distance: a folder, a .zip archive, or a .npz file of their moments. The default lies "
    "beside the benchmark's file.",
)
_FID_INTERVAL = flags.DEFINE_bool(
    "fid_interval",
    False,
    "Whether coco_fid and mjhq_fid have an interval: a jackknife over ten parts of the generated images, ten more "
    "distances.",
)
_DETECTIONS = flags.DEFINE_string(
    "detections", None, "GenEval: detections as JSON Lines, or the results file of its own script."
)
_DETECTOR = flags.DEFINE_string(
    "detector",
    None,
    "GenEval: weights of Mask2Former, with which the detections are made here; needs --clip. The official ones are "
    "mmdet's mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.pth; a folder of transformers works too.",
)
_ANSWERS = flags.DEFINE_string("answers", None, "DPG-Bench: answers to its questions as JSON Lines.")
_RULE = flags.DEFINE_enum(
    "rule", RULES[0], RULES, "DPG-Bench: official repeats two mistakes of the official script, all_rows does not."
)

_LPIPS_TRUNK = flags.DEFINE_string(
    "lpips_trunk", None, "Reconstruction: VGG-16 for LPIPS, torchvision's vgg16-397923af.pth or timm/vgg16.tv_in1k."
)
_LPIPS_HEADS = flags.DEFINE_string(
    "lpips_heads", None, "Reconstruction: lpips/weights/v0.1/vgg.pth of the package lpips."
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    None,
    "Reconstruction: pixels per side of the images that the tokenizer reads. The default is its own size.",
    lower_bound=1,
)
_EVAL_SIZE = flags.DEFINE_integer(
    "eval_size",
    None,
    "Reconstruction: pixels per side to which images and reconstructions are resized before they are compared. The "
    "default is --image_size. LlamaGen's figures at 384 pixels are measured at 256.",
    lower_bound=7,
)


def metric_options() -> MetricOptions:
    """The options of the flags. Raises UserError for a file that does not exist."""
    output = flags.FLAGS["output"].value
    return MetricOptions(
        inception=_path(_INCEPTION.value),
        clip=_path(_CLIP.value),
        reference=_path(_REFERENCE.value),
        fid_interval=_FID_INTERVAL.value,
        detections=_path(_DETECTIONS.value),
        detector=_path(_DETECTOR.value),
        answers=_path(_ANSWERS.value),
        lpips_trunk=_path(_LPIPS_TRUNK.value),
        lpips_heads=_path(_LPIPS_HEADS.value),
        image_size=_IMAGE_SIZE.value,
        eval_size=_EVAL_SIZE.value,
        dpg_rule=_RULE.value,
        store=_path(output),
    ).checked()


def _path(value: str | None) -> epath.Path | None:
    return epath.Path(value) if value else None
