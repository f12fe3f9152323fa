"""preprocessor_config.json of any layout: how images to understand are resized, padded and normalised.

Our code resizes and pads by one rule (`data.images.understanding_pixels`) and normalises with any mean and standard
deviation. A folder that asks for another rule is refused by the name of the field, since its images would silently get
other pixels. Our rule rounds sizes down, as the original and transformers 4.5x do. transformers 5 rounds them to the
nearest, but no field says so, and no folder can ask for it.
"""

import math
from typing import Any

from absl import logging
from etils import epath

from janus_jax.data.images import JANUS_NORMALIZATION, MIN_SIZE, Normalization
from janus_jax.models.config import FamilyConfig
from janus_jax.storage import write_json
from janus_jax.weights.json_fields import Fields, read_fields, read_optional_fields

FILE_NAME = "preprocessor_config.json"
BICUBIC = 3  # Pillow's number of this filter
_RESCALE = 1 / 255
_RESCALE_TOLERANCE = 1e-6  # relative; accepts a factor that was written with fewer digits


def read_preprocessor(folder: epath.PathLike, config: FamilyConfig) -> Normalization:
    """How a folder of any layout normalises its images to understand.

    Where mean and standard deviation are missing, both references use CLIP's, which are wrong for Janus. We use 0.5 and
    log a warning.

    Raises:
        UserError: another image size than the architecture's, a rule that our code does not compute, a value that is
            not a number, or a damaged file.
    """
    fields, size = _read(epath.Path(folder)), config.understanding.image_size
    fields.only(image_size=size)  # DeepSeek
    if isinstance(fields.values.get("size"), dict):  # transformers
        fields.object("size").only(height=size, width=size)
    else:
        fields.only(size=size)
    fields.only(**dict.fromkeys(("do_resize", "do_pad", "do_rescale", "do_normalize"), True))
    fields.only(resample=BICUBIC, min_size=MIN_SIZE)
    factor = fields.filled({"rescale_factor": _RESCALE}).number("rescale_factor")
    if not math.isclose(factor, _RESCALE, rel_tol=_RESCALE_TOLERANCE):
        raise fields.wrong("rescale_factor", f"{_RESCALE}, the only value that fits here")
    normalization = Normalization(channels(fields, "image_mean"), channels(fields, "image_std"))
    fields.only(background_color=list(normalization.pad_colour))
    return normalization


def write_preprocessor(folder: epath.PathLike, normalization: Normalization, **more: Any) -> None:
    """Writes preprocessor_config.json: the fields that all layouts share, and `more`."""
    content = {
        "image_mean": list(normalization.mean),
        "image_std": list(normalization.std),
        "background_color": list(normalization.pad_colour),
        "do_normalize": True,
        "min_size": MIN_SIZE,
        "rescale_factor": _RESCALE,
        **more,
    }
    write_json(epath.Path(folder) / FILE_NAME, content)


def hf_fields(size: int) -> dict[str, Any]:
    """The fields that only transformers' JanusImageProcessor needs."""
    return {
        "image_processor_type": "JanusImageProcessor",
        "processor_class": "JanusProcessor",
        "size": {"height": size, "width": size},
        "resample": BICUBIC,
        "do_resize": True,
        "do_rescale": True,
        "do_pad": True,
    }


def _read(folder: epath.Path) -> Fields:
    """The fields of the image processor, where transformers looks for them: 5.x nests them in processor_config.json."""
    if (folder / "processor_config.json").exists():
        processor = read_fields(folder / "processor_config.json")
        if "image_processor" in processor.values:
            return processor.object("image_processor")
    return read_optional_fields(folder / FILE_NAME)


def channels(fields: Fields, name: str) -> tuple[float, ...]:
    """A value per channel; the file has three numbers, or one for all channels."""
    value: Any = fields.values.get(name)
    if value is None:
        logging.warning("%s: %s%s is missing; using 0.5, as Janus was trained", fields.path, fields.prefix, name)
        return JANUS_NORMALIZATION.mean
    values = [value] * 3 if isinstance(value, int | float) else value
    numbers = isinstance(values, list) and len(values) == 3 and all(type(x) in (int, float) for x in values)
    if not numbers or not all(0 <= x <= 1 for x in values) or (name == "image_std" and 0 in values):
        raise fields.wrong(name, "a number from 0 to 1 for each of 3 channels, and not 0 in image_std")
    return tuple(map(float, values))
