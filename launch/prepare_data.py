"""Turns a data set in a public format into ArrayRecord files for training, in parallel.

An interrupted run continues when the same command is repeated. Examples:

    python -m launch.prepare_data --format=llava --input=sharegpt4v.json --image_root=coco=/data/coco,sam=/data/sam \\
        --output=data/sharegpt4v --tokenizer=tokenizer.json --image_size=384
    python -m launch.prepare_data --format=webdataset --input='cc12m/*.tar' --task=generate --output=data/cc12m \\
        --tokenizer=tokenizer.json --image_size=384 --checkpoint=models/janus-pro-1b

Training reads the output by task, e.g. --config.data.sources.generate='("data/cc12m/generate-*.array_record",)'.
The file manifest.json is written last. It holds counts, tokens, dropped samples by reason, and a hash of each file.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

from absl import flags

from janus_jax.data.formats import registry
from janus_jax.data.preparation import beam_pipeline
from janus_jax.data.preparation.job import make_job
from janus_jax.data.preparation.output_folder import describe, done, finish, start
from janus_jax.data.preparation.record import ENCODINGS, EncodeCodes, LengthSettings, RecordSettings
from janus_jax.data.prompts import STYLES
from janus_jax.data.records import TASKS
from janus_jax.errors import UserError
from launch.cli import errors
from launch.cli.part_progress import shown_progress

FORMAT = flags.DEFINE_enum("format", None, list(registry.FORMATS), "Format of the input.")
INPUT = flags.DEFINE_list("input", None, "Files, folders or glob patterns to read, separated by commas.")
OUTPUT = flags.DEFINE_string("output", None, "Folder to write: a new one, or that of an interrupted run.")
TASK = flags.DEFINE_list(
    "task",
    [],
    f"Tasks to write, of {', '.join(TASKS)}. An image with a caption becomes one record for each of them, by "
    "default one to generate. Any other sample belongs to one task: it is left out if only others are named.",
)
NUM_OUTPUT_FILES = flags.DEFINE_integer("num_output_files", 64, "Largest number of files to write for each task.")
ALLOW_EMPTY = flags.DEFINE_bool("allow_empty", False, "Accept an input that gives no record.")
MAX_DROP_RATE = flags.DEFINE_float("max_drop_rate", 0.1, "Stop if a larger fraction of the samples is unusable.")

TOKENIZER = flags.DEFINE_string("tokenizer", "", "Path of a tokenizer.json, to store the length of each sample.")
PROMPT_STYLE = flags.DEFINE_enum("prompt_style", "janus_pro", list(STYLES), "Prompt template for the lengths.")
UNDERSTANDING_TOKENS = flags.DEFINE_integer(
    "understanding_tokens",
    576,
    "Number of tokens of an understanding image; a whole model in --checkpoint decides it.",
)
GENERATION_TOKENS = flags.DEFINE_integer(
    "generation_tokens", 576, "Number of tokens of a generation image; --checkpoint decides it if given."
)
CHECKPOINT = flags.DEFINE_string("checkpoint", "", "Folder of a model or image tokenizer, to store VQ codes of images.")
CODE_BATCH = flags.DEFINE_integer("code_batch", 16, "Number of images to encode at once.")
KEEP_IMAGES = flags.DEFINE_bool("keep_images", True, "Also store the images whose codes are stored.")

IMAGE_SIZE = flags.DEFINE_integer("image_size", 0, "Resize images to this size in pixels; 0 leaves them as they are.")
IMAGE_ENCODING = flags.DEFINE_enum(
    "image_encoding", "png", list(ENCODINGS), "Encoding of resized images; png keeps every pixel."
)
MAX_ASPECT = flags.DEFINE_float("max_aspect", 32.0, "Drop images whose sides have a larger ratio.")

OPTIONS = [flags.DEFINE_list(name, [], registry.option_help(name)) for name in registry.LIST_OPTIONS] + [
    flags.DEFINE_string(name, None, registry.option_help(name)) for name in registry.TEXT_OPTIONS
]

NUM_WORKERS = flags.DEFINE_integer(
    "num_workers", 0, "Number of local worker processes; 0 takes one per core, or one if --checkpoint is given."
)
RUNNER = flags.DEFINE_string("runner", "", "Beam runner such as DataflowRunner, instead of local worker processes.")
BEAM_OPTION = flags.DEFINE_multi_string(
    "beam_option", [], "Option for Beam, such as --beam_option=--region=europe-west4; may be repeated."
)


def main() -> None:
    errors.require("format", "input", "output")
    tasks, name = tuple(TASK.value), FORMAT.value or ""
    if not set(tasks) <= set(TASKS):
        raise UserError(f"--task={','.join(tasks)}: expected some of {', '.join(TASKS)}")
    registry.check_tasks(name, tasks)
    options: dict[str, Any] = {
        flag.name: tuple(flag.value) if isinstance(flag.value, list) else flag.value for flag in OPTIONS
    }
    if "tasks" in registry.option_names(name):
        options["tasks"] = tasks
    dataset = registry.open_dataset(name, INPUT.value or (), options)
    settings, image_tokenizer = _settings(tasks)
    job = make_job(
        dataset,
        OUTPUT.value,
        settings,
        num_output_files=NUM_OUTPUT_FILES.value,
        tokenizer=TOKENIZER.value,
        max_drop_rate=MAX_DROP_RATE.value,
        allow_empty=ALLOW_EMPTY.value,
        image_tokenizer=image_tokenizer,
    )
    pending = start(job)
    print(f"{OUTPUT.value}: {len(job.parts)} parts, {len(job.parts) - len(pending)} of them finished", flush=True)
    if pending:
        workers = NUM_WORKERS.value or (1 if CHECKPOINT.value else os.cpu_count() or 1)
        with shown_progress(functools.partial(done, job), len(job.parts)):
            beam_pipeline.run(job, pending, _image_tokenizer_opener(), workers, RUNNER.value, BEAM_OPTION.value)
    print(describe(finish(job)))


def _settings(tasks: tuple[str, ...]) -> tuple[RecordSettings, str]:
    """The settings that the flags ask for, and the hash of the image tokenizer. Raises UserError."""
    code_size, sha256, understanding, generation = 0, "", UNDERSTANDING_TOKENS.value, GENERATION_TOKENS.value
    if CHECKPOINT.value:
        import jax  # Only runs that compute codes need JAX.

        from janus_jax.inference import image_tokenizer

        jax.config.update("jax_platforms", "cpu")  # This process only computes a hash; workers use the accelerator.
        tokenizer = image_tokenizer.cached_image_tokenizer(CHECKPOINT.value)
        code_size, sha256, generation = tokenizer.config.image_size, tokenizer.sha256, tokenizer.config.num_tokens
        understanding, generation = image_tokenizer.image_lengths(CHECKPOINT.value) or (understanding, generation)
    lengths = LengthSettings(
        prompt_style=PROMPT_STYLE.value, understanding_tokens=understanding, generation_tokens=generation
    )
    settings = RecordSettings(
        tasks=tasks,
        image_size=IMAGE_SIZE.value,
        image_encoding=IMAGE_ENCODING.value,
        max_aspect=MAX_ASPECT.value,
        keep_images=KEEP_IMAGES.value,
        lengths=lengths if TOKENIZER.value else None,
        code_size=code_size,
        code_batch=CODE_BATCH.value,
    )
    return settings, sha256


def _image_tokenizer_opener() -> Callable[[], EncodeCodes] | None:
    """A function that opens the image tokenizer of --checkpoint in a worker. Without the flag, JAX is not imported."""
    if not CHECKPOINT.value:
        return None
    from janus_jax.inference import image_tokenizer

    return functools.partial(image_tokenizer.cached_image_tokenizer, CHECKPOINT.value)


if __name__ == "__main__":
    errors.run(main)
