"""The suite `training`: speed of the training step, relative to the same model in PyTorch on a CPU.

Both sides start from the same weights and take whole steps (forward, backward, clipping, AdamW) in float32 on the same
packed rows of real digits: text, understanding images and stored codes. Their losses must agree. They are timed in
turns. The peer consists of the modules of transformers' JanusForConditionalGeneration, in eager mode. Work that a
collator could do (masks, places, normalised pixels) is done for it before, and it computes logits only where there is
loss. Needs the extra [test].
"""

import contextlib
import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from benchmarks.result import Result
from configs import quickstart
from examples.digits import data as digits
from janus_jax.batches import Modality, PackedBatch
from janus_jax.data.tokenizer import FILE_NAME, Tokenizer
from janus_jax.inference.janus import JanusPipeline
from janus_jax.models.config import JanusConfig
from janus_jax.models.execution import Execution
from janus_jax.models.params import Params, bind, build, init_params
from janus_jax.models.presets import JANUS_PRO_1B, JANUS_PRO_TINY, PRESETS
from janus_jax.training.objectives.janus import with_codes
from janus_jax.training.plan import Plan, make_plan
from janus_jax.training.setup import open_stream, open_tokenizer
from launch.cli.host_memory import keep_freed_memory

ROUNDS, BATCHES = 7, 4
SECONDS = 2.0  # Seconds of each side per round.
LOSS_TOLERANCE = 1e-5  # Relative tolerance of the loss of each of the first BATCHES steps.
Step = Callable[[], Any]  # Starts the next step; returns its loss, or it and gradient norms, without waiting.


def run() -> Iterator[Result]:
    """The results of all cases."""
    keep_freed_memory()  # as launch.train does
    with mock.patch.dict(PRESETS, {"tiny": tiny(), "wide": wide()}):
        yield from compare("tiny", config_of("tiny"), bar=1.0)
        yield from compare("width 512, 8 layers", config_of("wide", batch_size=2, row_length=1024))


def compare(case: str, config: ConfigDict, bar: float | None = None) -> list[Result]:
    """How well the losses agree, and the ratio of the times of a step."""
    with _sides(config) as (ours, theirs):
        losses = np.array([[float(step()) for _ in range(BATCHES)] for step in (ours, theirs)])
        error = float(np.max(np.abs(losses[0] / losses[1] - 1)))
        ours_seconds, their_seconds = interleaved(case, ours, theirs)
    return [
        Result(f"{case}: largest relative difference of {BATCHES} losses", error, "", ("<=", LOSS_TOLERANCE)),
        Result(
            f"{case}: training steps per second",
            their_seconds / ours_seconds,
            "x",
            (">=", bar) if bar else None,
            f"{1e3 * ours_seconds:.1f} ms",
            f"{1e3 * their_seconds:.1f} ms, {torch_threads()} threads",
        ),
    ]


def config_of(model: str, **sizes: int) -> ConfigDict:
    """The config of the quickstart's stage II, at a constant learning rate."""
    config = quickstart.get_config("stage2")
    config.model = model
    config.train.warmup_steps = 0
    config.train.batch_size = sizes.get("batch_size", config.train.batch_size)
    config.data.row_length = sizes.get("row_length", config.data.row_length)
    return config


def tiny() -> JanusConfig:
    """The quickstart's model, with an image tokenizer that fits the layout of the peer.

    No step runs the image tokenizer, because the codes are stored.
    """
    vq = dataclasses.replace(JANUS_PRO_TINY.vq, base_channels=32, norm_groups=32)
    return dataclasses.replace(JANUS_PRO_TINY, vq=vq)


def wide() -> JanusConfig:
    """Janus-Pro with a twentieth of the parameters, for images of 96 x 96 pixels."""
    big = JANUS_PRO_1B
    llama = dataclasses.replace(
        big.llama, vocab_size=8192, width=512, depth=8, num_heads=4, num_kv_heads=4, mlp_dim=1376, init_std=0.04
    )
    return dataclasses.replace(
        big,
        llama=llama,
        siglip=dataclasses.replace(big.siglip, image_size=96, width=256, depth=8, num_heads=4, mlp_dim=1024),
        vq=dataclasses.replace(big.vq, image_size=96, base_channels=32),
        image_head_width=512,
        prompt_style=JANUS_PRO_TINY.prompt_style,
    )


@contextlib.contextmanager
def _sides(config: ConfigDict) -> Iterator[tuple[Step, Step]]:
    """Our training step and the peer's."""
    plan = make_plan(config, jax.devices()[:1])
    params = init_params(plan.architecture, config.seed)
    with tempfile.TemporaryDirectory() as name:
        tokenizer = _write_data(Path(name), config)
        batches = _batches(config, plan, params)
        peer = _peer(Path(name), plan.architecture, params, tokenizer)
        yield _our_steps(plan, params, batches), _their_steps(peer, config, batches)


def _write_data(folder: Path, config: ConfigDict) -> Tokenizer:
    """Writes records of the quickstart and puts their paths into `config`."""
    training, _ = digits.load_digits()
    some = digits.Digits(training.intensities[:100], training.labels[:100])
    for task in config.data.sources:
        config.data.sources[task] = (str(folder / f"{task}.array_record"),)
    config.data.tokenizer = str(folder / FILE_NAME)
    return digits.write_files(folder, some, JANUS_PRO_TINY.llama.vocab_size, JANUS_PRO_TINY.prompt_style)


def _batches(config: ConfigDict, plan: Plan, params: Params) -> list[PackedBatch]:
    """The first batches of the stream, with the codes of their images, which the records do not hold."""
    architecture = plan.architecture
    assert isinstance(architecture, JanusConfig)
    config = config.copy_and_resolve_references()
    config.data.stored_codes = False
    vq = build(architecture.vq, Execution())
    encode = jax.jit(lambda batch: with_codes(batch, lambda pixels: bind(vq, params["vq"])(pixels, method="encode")))
    with contextlib.closing(open_stream(config, architecture, open_tokenizer(config, architecture))) as stream:
        return [jax.tree.map(np.asarray, encode(next(stream))) for _ in range(BATCHES)]


def _our_steps(plan: Plan, params: Params, batches: Sequence[PackedBatch]) -> Step:
    """Our step. All batches are on the device, like those of the peer; training puts them there ahead of time."""
    state, compiled = plan.new_state(params), plan.make_step()
    turns = itertools.cycle(jax.device_put(batches, plan.rows))

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, next(turns))
        total, weight = metrics["loss"]
        return total / weight

    return step


def _peer(folder: Path, architecture: Any, params: Params, tokenizer: Tokenizer) -> Any:
    """transformers' model with the same weights, which it reads from the Hugging Face folder that we export."""
    from transformers import JanusForConditionalGeneration

    JanusPipeline(architecture, params, tokenizer, "float32").save_pretrained(folder / "model", format="hf")
    peer = JanusForConditionalGeneration.from_pretrained(folder / "model", dtype="float32").train()
    peer.model.vqmodel.requires_grad_(False)
    # Dropped prompts are replaced by padding tokens, whose embedding is trained here. PyTorch would not train it.
    peer.model.language_model.embed_tokens.padding_idx = None
    return peer


def _their_steps(peer: Any, config: ConfigDict, batches: Sequence[PackedBatch]) -> Step:
    import torch

    train, vision = config.train, peer.config.vision_config
    image_tokens = (vision.image_size // vision.patch_size) ** 2
    trained = [parameter for parameter in peer.parameters() if parameter.requires_grad]
    # The fused optimizer is the default of transformers' Trainer.
    optimizer = torch.optim.AdamW(
        trained, train.learning_rate, (train.b1, train.b2), train.eps, train.weight_decay, fused=True
    )
    turns = itertools.cycle([_collate(batch, image_tokens) for batch in batches])

    def step() -> float:
        optimizer.zero_grad()
        loss = _their_loss(peer, next(turns))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, train.clip_norm)
        optimizer.step()
        return loss.detach()

    return step


def _collate(batch: PackedBatch, image_tokens: int) -> dict[str, Any]:
    """A batch as tensors, with everything that can be computed without the model."""
    import torch

    is_feature = batch.modality == Modality.UNDERSTANDING_IMAGE
    is_code = batch.modality == Modality.GENERATION_IMAGE
    images = is_feature.sum(axis=1) // image_tokens  # number of images of each row
    pixels = np.concatenate([row[:count] for row, count in zip(batch.und_pixels, images, strict=True)])
    same = batch.segment_ids[:, :, None] == batch.segment_ids[:, None, :]
    collated = {
        "text": np.where(batch.modality == Modality.TEXT, batch.tokens, 0),
        "is_feature": is_feature[..., None],
        "is_code": is_code[..., None],
        "codes": batch.tokens[is_code],
        "pixels": np.moveaxis(pixels.astype(np.float32) / 127.5 - 1, -1, 1),
        "mask": np.tril(same)[:, None],
        "positions": batch.positions,
        "text_places": batch.text_weights > 0,
        "text_targets": batch.targets[batch.text_weights > 0],
        "image_places": batch.image_weights > 0,
        "image_targets": batch.targets[batch.image_weights > 0],
    }
    tensors = {name: torch.tensor(value) for name, value in collated.items()}
    return {name: tensor.long() if tensor.dtype == torch.int32 else tensor for name, tensor in tensors.items()}


def _their_loss(peer: Any, batch: dict[str, Any]) -> Any:
    """The loss with `normalization="tasks"`: the sum of the mean losses of the two heads."""
    import torch

    model = peer.model
    x = model.language_model.embed_tokens(batch["text"])
    features = model.aligner(model.vision_model(batch["pixels"]).last_hidden_state)
    x = x.masked_scatter(batch["is_feature"], features)
    x = x.masked_scatter(batch["is_code"], peer.prepare_embeddings_for_image_generation(batch["codes"]))
    hidden = model.language_model(
        inputs_embeds=x, attention_mask=batch["mask"], position_ids=batch["positions"], use_cache=False
    ).last_hidden_state
    text = torch.nn.functional.cross_entropy(peer.lm_head(hidden[batch["text_places"]]), batch["text_targets"])
    image_logits = model.generation_head(hidden[batch["image_places"]])
    return text + torch.nn.functional.cross_entropy(image_logits, batch["image_targets"])


def interleaved(case: str, ours: Step, theirs: Step) -> tuple[float, float]:
    """Median seconds of a step of each side, over rounds in turns of about SECONDS seconds.

    As in training, the next step is started without waiting for the last one.
    """
    sides = (ours, theirs)
    numbers = [max(1, round(SECONDS / _seconds(step, 1))) for step in sides]
    rounds = [
        [_seconds(step, number) for step, number in zip(sides, numbers, strict=True)]
        for _ in tqdm.trange(ROUNDS, desc=case)
    ]
    return statistics.median(first for first, _ in rounds), statistics.median(second for _, second in rounds)


def _seconds(step: Step, number: int) -> float:
    """Mean seconds of a step in a sequence of `number` steps."""
    start = time.perf_counter()
    for _ in range(number):
        values = step()
    jax.block_until_ready(values)
    return (time.perf_counter() - start) / number


def torch_threads() -> int:
    import torch

    return torch.get_num_threads()
