"""Pairs of digits to learn from: the same digit upside down or mirrored, and the judge of what a model makes of them.

The image tokenizer of the quickstart knows light digits on black alone, also upside down and mirrored (the judge reads
98 % of their reconstructions), but no inverted ones (9 %).
"""

import numpy as np
import PIL.Image
import PIL.ImageOps

from examples.digits import data as digits
from janus_jax.data.formats.memory import Memory
from janus_jax.data.preparation.job import make_job
from janus_jax.data.preparation.record import RecordSettings
from janus_jax.data.preparation.writer import prepare
from janus_jax.data.prompts import IMAGE_MARKER, Message
from janus_jax.data.records import Record
from janus_jax.inference.image_tokenizer import load_image_tokenizer

# Caption -> the edit, which is its own inverse. Short captions, since the tokenizer of the digits does not know them.
EDITS = {
    "turned": lambda image: image.transpose(PIL.Image.Transpose.ROTATE_180),
    "mirrored": PIL.ImageOps.mirror,
}
COPIES = 3


def edit_records(training):
    """Each training digit, also jittered, with each edit."""
    rng = np.random.default_rng(0)
    records = []
    for i, intensities in enumerate(training.intensities):
        for copy in range(1 + COPIES):
            image = digits.to_image(intensities)
            shown = digits.jitter(image, rng) if copy else image
            for number, (caption, edit) in enumerate(EDITS.items()):
                messages = (Message("user", IMAGE_MARKER + caption), Message("assistant", IMAGE_MARKER))
                images = (digits.encode(shown), digits.encode(edit(shown)))
                key = f"edits/{i}/{copy}/{number}"
                records.append(Record(task="generate", messages=messages, images=images, key=key))
    return records


def write_edits(folder, training, image_tokenizer):
    """Files of `edit_records` with the codes of both images; returns the pattern of their names."""
    encode = load_image_tokenizer(image_tokenizer)
    settings = RecordSettings(code_size=encode.config.image_size, code_batch=128)
    dataset = Memory(name="edits", records=tuple(edit_records(training)))
    prepare(make_job(dataset, folder, settings, num_output_files=1, image_tokenizer=encode.sha256), encode)
    return f"{folder}/generate-*.array_record"


def edit_accuracy(model, judge, held_out, with_image, **options):
    """Share of held-out digits that the judge reads in the edited image, once the edit is undone."""
    images = [digits.to_image(intensities) for intensities in held_out.intensities]
    right = []
    for caption, edit in EDITS.items():
        conditions = [[image] for image in images] if with_image else None
        codes = model.generate_codes([caption] * len(images), 1, condition_images=conditions, **options)
        made = [edit(image) for image in model.decode_codes(codes)]
        right.append(np.mean(judge(made) == held_out.labels))
    return [float(share) for share in right]
