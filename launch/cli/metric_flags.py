"""Flags of files that scores of images need besides the images."""

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
        dpg_rule=_RULE.value,
        store=_path(output),
    ).checked()


def _path(value: str | None) -> epath.Path | None:
    return epath.Path(value) if value else None
