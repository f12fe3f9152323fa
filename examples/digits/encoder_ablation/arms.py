"""The six arms of the ablation (Janus, section 4.3, Table 5) at the size of digits, with equal samples for each task.

A batch has a fixed number of rows with two samples each: one of each task, or two of the only task. The arms with both
tasks take twice as many steps as those with one, so that each task sees the same samples in the same order in every
arm. `count_samples` reads them all to check.
"""

import hashlib
from typing import NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from configs.base import base_config, lock, ratio
from configs.semantic_vq16 import add_semantic_fields
from configs.vq16 import vq_config
from janus_jax.batches import Modality
from janus_jax.training.architecture import model_config
from janus_jax.training.setup import open_stream, open_tokenizer

TASKS = ("understand", "generate")
ROW_LENGTH = 88  # room for two samples of any task


class Arm(NamedTuple):
    """One arm of the paper's table."""

    letter: str
    reads: str  # how it sees understanding images
    tasks: tuple[str, ...]


ARMS = (
    Arm("A", "VQ tokenizer", TASKS),
    Arm("B", "semantic tokenizer", TASKS),
    Arm("C", "semantic tokenizer", TASKS[:1]),
    Arm("D", "SigLIP (Janus)", TASKS),
    Arm("E", "SigLIP", TASKS[:1]),
    Arm("F", "-", TASKS[1:]),
)


class Sizes(NamedTuple):
    """How much is trained and asked."""

    mosaics: int  # training images of each task
    siglip_steps: int
    tokenizer_steps: int
    task_steps: int  # steps of an arm with one task; arms with two take twice as many
    points: int  # number of points in training at which an arm is evaluated
    held_out: int  # number of held-out mosaics; one question of each kind about each


FULL = Sizes(mosaics=8000, siglip_steps=1500, tokenizer_steps=600, task_steps=400, points=4, held_out=120)
QUICK = Sizes(mosaics=128, siglip_steps=4, tokenizer_steps=2, task_steps=2, points=1, held_out=8)
SAMPLES_PER_ROW, ROWS, LEARNING_RATE = 2, 16, 1e-3
BATCH = ROWS * SAMPLES_PER_ROW  # samples of a step


def tokenizer_config(semantic: bool, steps: int, folder: epath.Path) -> ConfigDict:
    """The image tokenizer of A, D and F, or that of B and C: same data, order, steps and codebook."""
    config = vq_config("semantic_vq_tiny" if semantic else "vq_tiny")
    if semantic:
        add_semantic_fields(config)
        config.loss.teacher = str(folder / "siglip")
    config.name = "semantic_tokenizer" if semantic else "vq_tokenizer"
    config.train.update(batch_size=BATCH, num_steps=steps, learning_rate=2e-3, schedule="cosine")
    config.train.update(warmup_steps=min(20, steps), final_fraction=0.05)
    return lock(_small(config, folder, steps))


def arm_config(arm: Arm, sizes: Sizes, seed: int, folder: epath.Path) -> ConfigDict:
    """The run of an arm. All arms have the same fields but for their encoders, tasks and number of steps."""
    config = base_config(f"arm {arm.letter}", f"janus_pro_tiny_arm_{arm.letter.lower()}")
    config.seed = seed
    steps = sizes.task_steps * len(arm.tasks)
    frozen = {"A": "vq", "B": "vq|semantic", "C": "vq|semantic", "D": "vq", "E": "", "F": "vq"}[arm.letter]
    config.trainable = ((f"({frozen})/.*", False), (".*", True)) if frozen else ((".*", True),)
    config.data.ratio = ratio(*(float(task in arm.tasks) for task in ("understand", "text", "generate")))
    slots = {task: SAMPLES_PER_ROW // len(arm.tasks) if task in arm.tasks else 0 for task in TASKS}
    config.data.update(und_slots=slots["understand"], gen_slots=slots["generate"])
    config.data.update(row_length=ROW_LENGTH, supervision="answers")
    config.loss.update(normalization="tasks", chunk_size=256, skip_unsupervised=True)
    config.train.update(batch_size=ROWS, num_steps=steps, learning_rate=LEARNING_RATE, warmup_steps=min(20, steps))
    if "SigLIP" in arm.reads:
        config.init.siglip = str(folder / "siglip")
    if arm.letter != "E":
        config.init.vq = str(folder / ("semantic_tokenizer" if "semantic" in arm.reads else "vq_tokenizer"))
    config = _small(config, folder, steps // sizes.points)
    config.checkpoint.keep = sizes.points
    return lock(config)


def _small(config: ConfigDict, folder: epath.Path, checkpoint_every: int) -> ConfigDict:
    config.dtype, config.remat = "float32", "none"
    config.data.tokenizer = str(folder / "data" / "tokenizer.json")
    config.data.sources = {
        "understand": (str(folder / "data" / "understand.array_record"),),
        "text": (),
        "generate": (str(folder / "data" / "generate.array_record"),),
    }
    config.data.update(num_shards=1, packing_bins=1, workers=0)
    config.mesh.fsdp = 1
    config.checkpoint.every_steps = max(checkpoint_every, 1)
    config.log_every = 20
    return config


class Samples(NamedTuple):
    """What a run reads of one task."""

    number: int
    digest: str  # SHA-256 of keys and tokens in the order of training


def count_samples(config: ConfigDict) -> dict[str, Samples]:
    """The samples of each task that a run reads, from the stream that its config opens."""
    architecture = model_config(config)
    stream = open_stream(config, architecture, open_tokenizer(config, architecture))
    numbers, digests = dict.fromkeys(TASKS, 0), {task: hashlib.sha256() for task in TASKS}
    for _ in range(config.train.num_steps):
        batch, keys = stream.next_with_keys()
        for row, of_row in enumerate(keys):
            assert len(of_row) == SAMPLES_PER_ROW, f"a row has {len(of_row)} samples, expected {SAMPLES_PER_ROW}"
            for segment, key in enumerate(of_row, start=1):
                inside = batch.segment_ids[row] == segment
                task = TASKS[int(np.any(batch.modality[row, inside] == Modality.GENERATION_IMAGE))]
                numbers[task] += 1
                digests[task].update(key.encode() + batch.tokens[row, inside].tobytes())
    stream.close()
    return {task: Samples(numbers[task], digests[task].hexdigest()) for task in TASKS if numbers[task]}


def require_equal_samples(samples: dict[str, dict[str, Samples]]) -> None:
    """Raises AssertionError unless all arms with a task read the same samples of it, in the same order.

    Args:
        samples: arm -> `count_samples` of its run.
    """
    for task in TASKS:
        found = {arm: read[task] for arm, read in samples.items() if task in read}
        assert len(set(found.values())) == 1, f"the arms read different samples of {task}: {found}"
