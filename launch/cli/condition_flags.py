"""Flags of images that are generated from other images, by a model that was trained to, such as Janus-4o."""

from typing import Any

from absl import flags

from janus_jax.errors import UserError

CONDITION_IMAGE = flags.DEFINE_list(
    "condition_image",
    [],
    "Codes: image files, separated by commas, that the images of each prompt are generated from, by a model that was "
    "trained to, such as Janus-4o.",
)
CFG_WEIGHT2 = flags.DEFINE_float(
    "cfg_weight2",
    5.0,
    "Codes, with --condition_image: weight of the logits without the codes of these images; those with them have 1.",
)
ALL = (CONDITION_IMAGE, CFG_WEIGHT2)


def condition_options(num_prompts: int) -> dict[str, Any]:
    """Arguments of `RequestReader.codes`: none without --condition_image.

    Raises UserError for an image that cannot be read.
    """
    from janus_jax.data.images import load_image

    if not CONDITION_IMAGE.value:
        if flags.FLAGS[CFG_WEIGHT2.name].present:
            raise UserError(f"--cfg_weight2={CFG_WEIGHT2.value} means nothing without --condition_image")
        return {}
    images = [load_image(path) for path in CONDITION_IMAGE.value]
    return {"condition_images": [images] * num_prompts, "cfg_weight2": CFG_WEIGHT2.value}
