"""How many image codes a pass makes (`janus_jax.inference.code_windows`), with a model of 144 codes per image.

    python -m examples.digits.code_windows --output=windows     # trains it, about 15 minutes on two cores, and measures
    python -m examples.digits.code_windows --checkpoint=windows/runs/generation --windows=16 --temperatures=0.7,1

The model is the quickstart's with 12 x 12 codes in an image of 48 pixels, trained to generate images alone. The number
of passes does not depend on the machine.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags
from etils import epath

from configs import quickstart
from examples.digits import data as digits
from examples.digits import preparation
from janus_jax.data.formats.memory import Memory
from janus_jax.data.preparation.job import make_job
from janus_jax.data.preparation.record import RecordSettings
from janus_jax.data.preparation.writer import prepare
from janus_jax.data.prompts import IMAGE_MARKER, Message
from janus_jax.data.records import Record
from janus_jax.data.tokenizer import FILE_NAME
from janus_jax.inference.janus import JanusPipeline
from janus_jax.inference.loading import from_pretrained
from janus_jax.models.presets import JANUS_PRO_DIGITS_LARGE
from janus_jax.training.loop import train
from launch.cli import errors

OUTPUT = flags.DEFINE_string("output", None, "Folder in which the model is trained, unless it has one.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A trained model to measure instead.")
WINDOWS = flags.DEFINE_list("windows", ["2", "4", "8", "16", "32", "64"], "Windows to measure.")
CFG_WEIGHTS = flags.DEFINE_list("cfg_weights", ["1", "1.5", "3", "5"], "Weights of the guidance to measure.")
TEMPERATURES = flags.DEFINE_list("temperatures", ["1", "0.7"], "Temperatures of sampling to measure.")
HELD_OUT = 60
IMAGES = 16


def main() -> None:
    checkpoint = CHECKPOINT.value
    if checkpoint is None:
        errors.require("output")
        checkpoint = epath.Path(OUTPUT.value or "") / "checkpoint"
        if not checkpoint.exists():
            _train(checkpoint.parent)
    model = from_pretrained(checkpoint)
    assert isinstance(model, JanusPipeline)
    for line in measure(model):
        print(json.dumps(line), flush=True)


def measure(model: JanusPipeline) -> Iterator[dict[str, Any]]:
    """Passes of sixteen images one by one and in one batch, and the share of them that equal those of window 1."""
    prompts = [caption.format(name) for caption in digits.CAPTIONS for name in digits.NAMES][:IMAGES]
    for temperature in map(float, TEMPERATURES.value):
        for weight in map(float, CFG_WEIGHTS.value):
            options = {"cfg_weight": weight, "temperature": temperature}
            expected, _ = _generate(model, prompts, range(IMAGES), window=1, **options)
            for window in map(int, WINDOWS.value):
                options["window"] = window
                single = [_generate(model, [prompts[i]], [i], **options) for i in range(IMAGES)]
                alone = np.concatenate([codes for codes, _ in single])
                together, passes = _generate(model, prompts, range(IMAGES), **options)
                yield options | {
                    "passes_alone": round(float(np.mean([count for _, count in single])), 1),
                    "most_passes_alone": max(count for _, count in single),
                    "passes_together": passes,
                    "same_alone": float(np.mean((alone == expected).all(axis=1))),
                    "same_together": float(np.mean((together == expected).all(axis=1))),
                }


def _generate(model: JanusPipeline, prompts: list[str], numbers: Any, **options: Any) -> tuple[np.ndarray, int]:
    """Codes [images, N], one image of each prompt, and the number of passes."""
    passes: list[int] = []
    requests, decoding = model.engine.reader.codes(prompts, 1, prompt_numbers=list(numbers), **options)
    codes = model.engine.generate(requests, 1, on_passes=passes.append, **decoding)
    return codes[:, 0], passes[0]


def _train(output: epath.Path) -> None:
    """Trains the image tokenizer, then the model on the codes that it gives the images."""
    folder, (training, held_out) = output / "data", digits.load_digits()
    folder.mkdir(parents=True, exist_ok=True)
    captions = digits.all_records(digits.Digits(training.intensities[:300], training.labels[:300]))
    style = JANUS_PRO_DIGITS_LARGE.prompt_style
    digits.build_tokenizer(captions, JANUS_PRO_DIGITS_LARGE.llama.vocab_size, style).save(folder / FILE_NAME)
    records = (*_records(training), *_records(held_out)[:HELD_OUT])
    dataset = Memory(name="digits", records=records)
    prepare(make_job(dataset, folder / preparation.RECORDS, RecordSettings(), num_output_files=preparation.NUM_FILES))
    tokenizer = _config("tokenizer", output)
    tokenizer.loss.update(entropy_weight=0.1, entropy_temperature=0.1)
    tokenizer.train.batch_size = 8
    train(tokenizer, output / "runs" / "tokenizer")
    preparation.write_codes(folder, output / "runs" / "tokenizer")
    generation = _config("stage1", output)
    generation.init.vq = str(output / "runs" / "tokenizer")
    generation.data.ratio.update(understand=0.0, text=0.0, generate=1.0)
    generation.data.update(und_slots=0, row_length=512)
    generation.train.update(batch_size=4, num_steps=900, schedule="cosine", warmup_steps=30)
    generation.checkpoint.every_steps = 900
    train(generation, output / "runs" / "generation")
    from_pretrained(output / "runs" / "generation").save_pretrained(output / "checkpoint")


def _records(split: digits.Digits) -> list[Record]:
    """Every image and a jittered copy of it, each with one of the captions."""
    rng, records = np.random.default_rng(0), []
    for i, (intensities, label) in enumerate(zip(split.intensities, split.labels, strict=True)):
        picture = digits.to_image(intensities, JANUS_PRO_DIGITS_LARGE.vq.image_size)
        for copy in range(2):
            shown = digits.jitter(picture, rng) if copy else picture
            caption = digits.CAPTIONS[rng.integers(3)].format(digits.NAMES[label])
            messages = (Message("user", caption), Message("assistant", IMAGE_MARKER))
            key = f"digits/{i}/copy{copy}"
            records.append(Record(task="generate", messages=messages, images=(digits.encode(shown),), key=key))
    return records


def _config(phase: str, output: epath.Path) -> Any:
    """The quickstart's config of a phase for the larger images, with images to generate alone."""
    config = quickstart.get_config(phase)
    config.model = "vq_digits_large" if phase == "tokenizer" else "janus_pro_digits_large"
    config.data.tokenizer = str(output / "data" / FILE_NAME)
    stored = config.data.stored_codes
    config.data.sources.update(preparation.sources(output / "data", ["generate"], stored_codes=stored))
    config.data.held_out = HELD_OUT
    config.validate.every_steps = config.sample.every_steps = 0
    return config


if __name__ == "__main__":
    errors.run(main)
