"""preprocessor_config.json of any layout: how understanding images are resized, padded and normalised.

Our code computes one rule (`data.images.understanding_pixels`) with any mean and deviation. A folder that asks for
another rule is refused by field, since it would silently get other pixels. Sizes are truncated, as the original and
transformers 4.5x do; transformers 5 rounds them, which no field tells, and no folder can ask for.
"""

import json
import math
from typing import Any

from absl import logging
from etils import epath

from janus_jax.data.images import JANUS_NORMALIZATION, MIN_SIZE, Normalization
from janus_jax.models.config import FamilyConfig
from janus_jax.weights.json_fields import Fields, read_fields

FILE_NAME = "preprocessor_config.json"
_BICUBIC = 3  # of Pillow
_RESCALE = 1 / 255
_RESCALE_TOLERANCE = 1e-6  # relative: a factor that was written with fewer digits


def read_preprocessor(folder: epath.PathLike, config: FamilyConfig) -> Normalization:
    """How a folder of any layout wants its understanding images normalised.

    Without mean and standard deviation both references fall back to CLIP's, which are wrong for Janus; we use 0.5 and
    log a warning.

    Raises:
        UserError: another image size than the architecture's, a rule that our code does not compute, a number that is
            none, a damaged file.
    """
    fields, size = _read(epath.Path(folder)), config.siglip.image_size
    fields.only(image_size=size)  # DeepSeek
    if isinstance(fields.values.get("size"), dict):  # transformers
        fields.object("size").only(height=size, width=size)
    else:
        fields.only(size=size)
    fields.only(**dict.fromkeys(("do_resize", "do_pad", "do_rescale", "do_normalize"), True))
    fields.only(resample=_BICUBIC, min_size=MIN_SIZE)
    factor = fields.filled({"rescale_factor": _RESCALE}).number("rescale_factor")
    if not math.isclose(factor, _RESCALE, rel_tol=_RESCALE_TOLERANCE):
        raise fields.wrong("rescale_factor", f"{_RESCALE}, the only value that fits here")
    normalization = Normalization(_channels(fields, "image_mean"), _channels(fields, "image_std"))
    fields.only(background_color=list(normalization.pad_colour))
    return normalization


def write_preprocessor(folder: epath.PathLike, normalization: Normalization, **more: Any) -> None:
    """Writes preprocessor_config.json: what all layouts share, and `more`."""
    content = {
        "image_mean": list(normalization.mean),
        "image_std": list(normalization.std),
        "background_color": list(normalization.pad_colour),
        "do_normalize": True,
        "min_size": MIN_SIZE,
        "rescale_factor": _RESCALE,
        **more,
    }
    (epath.Path(folder) / FILE_NAME).write_text(json.dumps(content, indent=2) + "\n")


def hf_fields(size: int) -> dict[str, Any]:
    """What transformers' JanusImageProcessor needs besides."""
    return {
        "image_processor_type": "JanusImageProcessor",
        "processor_class": "JanusProcessor",
        "size": {"height": size, "width": size},
        "resample": _BICUBIC,
        "do_resize": True,
        "do_rescale": True,
        "do_pad": True,
    }


def _read(folder: epath.Path) -> Fields:
    """The image processor's fields, where transformers looks for them: 5.x nests them in processor_config.json."""
    if (folder / "processor_config.json").exists():
        processor = read_fields(folder / "processor_config.json")
        if "image_processor" in processor.values:
            return processor.object("image_processor")
    path = folder / FILE_NAME
    return read_fields(path) if path.exists() else Fields(path, "", {})


def _channels(fields: Fields, name: str) -> tuple[float, ...]:
    """Three numbers, or one for all channels."""
    value: Any = fields.values.get(name)
    if value is None:
        logging.warning("%s: %s%s is missing; using 0.5, as Janus was trained", fields.path, fields.prefix, name)
        return JANUS_NORMALIZATION.mean
    values = [value] * 3 if isinstance(value, int | float) else value
    numbers = isinstance(values, list) and len(values) == 3 and all(type(x) in (int, float) for x in values)
    if not numbers or not all(0 <= x <= 1 for x in values) or (name == "image_std" and 0 in values):
        raise fields.wrong(name, "a number from 0 to 1, of a deviation not 0, for each of 3 channels")
    return tuple(map(float, values))
