"""Turns a public data set into ArrayRecord shards for training, in parallel; an interrupted run goes on when repeated.

    python -m launch.prepare_data --format=llava --input=sharegpt4v.json --image_root=coco=/data/coco,sam=/data/sam \\
        --output=data/sharegpt4v --tokenizer=tokenizer.json --image_size=384
    python -m launch.prepare_data --format=webdataset --input='cc12m/*.tar' --task=generate --output=data/cc12m \\
        --tokenizer=tokenizer.json --image_size=384 --checkpoint=models/janus-pro-1b

Training reads the output by task, e.g. --config.data.sources.generate='("data/cc12m/generate-*.array_record",)'.
manifest.json, written last, holds counts, tokens, bad samples by reason, and a hash per shard.

An Apache Beam pipeline: local worker processes by default, any other engine by --runner and --beam_option.
"""

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tqdm
from absl import flags

from janus_jax.data.formats.registry import FORMATS, open_source, option_names
from janus_jax.data.preparation import beam_pipeline
from janus_jax.data.preparation.job import Job, done, finish, make_job, start
from janus_jax.data.preparation.record import ENCODINGS, EncodeCodes, Lengths, Settings
from janus_jax.data.prompts import STYLES
from janus_jax.data.records import TASKS
from janus_jax.errors import UserError
from launch.cli import errors

FORMAT = flags.DEFINE_enum("format", None, list(FORMATS), "format of the input")
INPUT = flags.DEFINE_list("input", None, "files, folders or glob patterns")
OUTPUT = flags.DEFINE_string("output", None, "folder to write: new, or that of an interrupted run with the same flags")
TASK = flags.DEFINE_list(
    "task",
    [],
    "tasks to write, of understand, text, generate. Pairs of image and caption give one record for each of them "
    "(default generate); other samples are of one task each, and those not named here are left out (default none is)",
)
NUM_SHARDS = flags.DEFINE_integer("num_shards", 64, "output shards; fewer when the input cannot be cut into as many")
MAX_DROP_RATE = flags.DEFINE_float("max_drop_rate", 0.1, "stop when a larger part of the samples is bad")

TOKENIZER = flags.DEFINE_string("tokenizer", "", "tokenizer.json; stores the length of each sample in tokens")
PROMPT_STYLE = flags.DEFINE_enum("prompt_style", "janus_pro", list(STYLES), "prompt template that the lengths count")
UNDERSTANDING_TOKENS = flags.DEFINE_integer(
    "understanding_tokens", 576, "tokens per understanding image; a model in --checkpoint knows better"
)
GENERATION_TOKENS = flags.DEFINE_integer(
    "generation_tokens", 576, "tokens per generation image; a --checkpoint knows better"
)
CHECKPOINT = flags.DEFINE_string("checkpoint", "", "model or image tokenizer whose VQ codes are stored")
CODE_BATCH = flags.DEFINE_integer("code_batch", 16, "images encoded at once")
KEEP_IMAGES = flags.DEFINE_bool("keep_images", True, "also store the images whose codes are stored")

IMAGE_SIZE = flags.DEFINE_integer("image_size", 0, "resize images to the training size; 0 leaves them as they are")
IMAGE_ENCODING = flags.DEFINE_enum("image_encoding", "png", list(ENCODINGS), "of resized images; png keeps every pixel")
MAX_ASPECT = flags.DEFINE_float("max_aspect", 32.0, "drop images whose sides differ by a larger factor")

IMAGE_ROOT = flags.DEFINE_list(
    "image_root", [], "llava: folders of the images, DIR or PREFIX=DIR; parquet: folder of images given as paths"
)
QUESTION = flags.DEFINE_string(
    "question", None, "webdataset, parquet, imagenet, tfds: asked about captioned images; may be empty"
)
CAPTION_KEY = flags.DEFINE_string(
    "caption_key", None, "webdataset: field of the .json member, instead of the .txt member"
)
IMAGE_COLUMN = flags.DEFINE_string("image_column", None, "parquet, tfds: default image, images or jpg")
MESSAGES_COLUMN = flags.DEFINE_string(
    "messages_column", None, "parquet: default messages, conversations or conversation"
)
TEXT_COLUMN = flags.DEFINE_string("text_column", None, "parquet, tfds: caption or text; default caption, text or label")
SPLIT = flags.DEFINE_string("split", None, "tfds: default train; slices like train[:10%] work")
CLASS_NAMES = flags.DEFINE_string("class_names", None, "imagenet, tfds: file of lines `n01440764 tench, Tinca tinca`")
LABELS = flags.DEFINE_string(
    "labels", None, "imagenet, a flat folder: file of lines `ILSVRC2012_val_00000001.JPEG n01751748`"
)
TEXT_FIELD = flags.DEFINE_string("text_field", None, "text: default text")
MESSAGES_FIELD = flags.DEFINE_string("messages_field", None, "text: default messages")

NUM_WORKERS = flags.DEFINE_integer("num_workers", 0, "local worker processes; 0: one per core, with a checkpoint one")
RUNNER = flags.DEFINE_string("runner", "", "Beam runner, e.g. DataflowRunner; default: local worker processes")
BEAM_OPTION = flags.DEFINE_multi_string(
    "beam_option", [], "passed on to Beam, e.g. --beam_option=--region=europe-west4"
)

OPTIONS = (
    *(IMAGE_ROOT, QUESTION, CAPTION_KEY, IMAGE_COLUMN, MESSAGES_COLUMN, TEXT_COLUMN),
    *(SPLIT, CLASS_NAMES, LABELS, TEXT_FIELD, MESSAGES_FIELD),
)
REPORT_SECONDS = 1.0


def main() -> None:
    errors.require("format", "input", "output")
    job = _job()
    pending = start(job)
    total = len(job.shards)
    print(f"{OUTPUT.value}: {total} shards, {total - len(pending)} of them finished", flush=True)
    if pending:
        stop = threading.Event()
        watcher = threading.Thread(target=_show_progress, args=(job, stop))
        watcher.start()
        try:
            workers = NUM_WORKERS.value or (1 if CHECKPOINT.value else os.cpu_count() or 1)
            beam_pipeline.run(job, pending, _image_tokenizer_opener(), workers, RUNNER.value, BEAM_OPTION.value)
        finally:
            stop.set()
            watcher.join()
    _print_summary(finish(job))


def _image_tokenizer_opener() -> Callable[[], EncodeCodes] | None:
    """What a worker calls to get the image tokenizer of `--checkpoint`. Without the flag JAX is never imported."""
    if not CHECKPOINT.value:
        return None
    from janus_jax.inference import image_tokenizer

    return functools.partial(image_tokenizer.cached_image_tokenizer, CHECKPOINT.value)


def _job() -> Job:
    """From the flags. Raises UserError."""
    tasks = tuple(TASK.value)
    if not set(tasks) <= set(TASKS):
        raise UserError(f"--task={','.join(tasks)}: expected some of {', '.join(TASKS)}")
    options: dict[str, Any] = {
        flag.name: tuple(flag.value) if isinstance(flag.value, list) else flag.value for flag in OPTIONS
    }
    name = FORMAT.value or ""
    if "tasks" in option_names(name):
        options["tasks"] = tasks
    source = open_source(name, INPUT.value or (), options)
    code_size, sha256, lengths = 0, "", (UNDERSTANDING_TOKENS.value, GENERATION_TOKENS.value)
    if CHECKPOINT.value:
        import jax  # only where codes are computed

        from janus_jax.inference import image_tokenizer

        jax.config.update("jax_platforms", "cpu")  # here, for the hash; an accelerator is left to the workers
        tokenizer = image_tokenizer.cached_image_tokenizer(CHECKPOINT.value)
        code_size, sha256 = tokenizer.config.image_size, tokenizer.sha256
        lengths = image_tokenizer.image_lengths(CHECKPOINT.value) or (lengths[0], tokenizer.config.num_tokens)
    settings = Settings(
        tasks=tasks,
        image_size=IMAGE_SIZE.value,
        image_encoding=IMAGE_ENCODING.value,
        max_aspect=MAX_ASPECT.value,
        keep_images=KEEP_IMAGES.value,
        lengths=Lengths(prompt_style=PROMPT_STYLE.value, understanding_tokens=lengths[0], generation_tokens=lengths[1])
        if TOKENIZER.value
        else None,
        code_size=code_size,
        code_batch=CODE_BATCH.value,
    )
    return make_job(
        source,
        OUTPUT.value,
        settings,
        num_shards=NUM_SHARDS.value,
        tokenizer=TOKENIZER.value,
        max_drop_rate=MAX_DROP_RATE.value,
        image_tokenizer=sha256,
    )


def _show_progress(job: Job, stop: threading.Event) -> None:
    """A bar on a terminal, else a line whenever a shard is finished."""
    shown = -1
    with tqdm.tqdm(total=len(job.shards), unit="shard", disable=not sys.stderr.isatty()) as bar:
        while True:
            last = stop.wait(REPORT_SECONDS)
            shards, samples = done(job)
            bar.set_postfix_str(f"{samples:,} samples", refresh=False)
            bar.update(shards - bar.n)
            if bar.disable and shards != shown:
                print(f"{shards}/{len(job.shards)} shards, {samples:,} samples read", flush=True)
            shown = shards
            if last:
                return


def _print_summary(manifest: dict[str, Any]) -> None:
    for task, totals in manifest["tasks"].items():
        tokens = "" if totals["tokens"] is None else f", {totals['tokens']:,} tokens"
        print(f"{task}: {totals['records']:,} records{tokens} in {totals['files']} files")
    print("\n".join(_drop_lines(manifest)))


def _drop_lines(manifest: dict[str, Any]) -> Iterator[str]:
    drops = manifest["drops"]
    yield f"dropped: {drops['dropped']:,} of {drops['seen']:,} samples"
    for reason, count in drops["reasons"].items():
        yield f"  {reason}: {count:,}"
    for key, reason, detail in drops["examples"]:
        yield f"  {key}: {reason} ({detail})"
    if "corrupt" in drops["reasons"]:
        yield "  corrupt: what follows the damage in its file, shard or row group is lost and not counted"
    for name in ("other_tasks", "animated_images"):
        if manifest[name]:
            yield f"{name.replace('_', ' ')}: {manifest[name]:,}"


if __name__ == "__main__":
    errors.run(main)
