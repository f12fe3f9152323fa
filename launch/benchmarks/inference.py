"""Decoding: speed against transformers' JanusForConditionalGeneration and against the memory bandwidth of the machine.

Both sides have the same random weights and the same token ids, do the same steps and are timed in turns in this
process; the tokens of greedy decoding must be the same. Needs the extra [test].
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from janus_jax.data.prompts import STYLES
from janus_jax.data.tokenizer import train_tokenizer
from janus_jax.inference.decoding import decode_image_codes, decode_pixels, decode_text, programs, start_text
from janus_jax.inference.kernels import transpose_kernels
from janus_jax.inference.memory import cache_bytes
from janus_jax.inference.pipeline import JanusPipeline
from janus_jax.inference.prompt import pad_prompts
from janus_jax.inference.sampling import Sampling
from janus_jax.models.config import JANUS_PRO_1B, JanusConfig
from janus_jax.models.parameters import bind, init_params
from janus_jax.models.stack import unstack_layers
from launch.benchmarks.result import Result

ROUNDS, LONG = 3, 20.0  # rounds of a case, and the seconds after which one has been enough
PROMPT, NEW_TOKENS = 32, 33  # tokens of text; the first comes with the prompt, so 32 steps
CODES_PER_SIDE = 12  # of an image, where the released models have 24: so that the suite ends in minutes
GUIDANCE = 5.0
GREEDY = Sampling()
COPY_BYTES = 1 << 30
CORES = os.cpu_count() or 1
Run = Callable[[], Any]


class Sides(NamedTuple):
    """The same model twice."""

    pipeline: JanusPipeline
    peer: Any  # transformers' model
    dtype: str


def run() -> list[Result]:
    """All cases; the bars are those of float32, and of the width that they are named for."""
    bandwidth = copy_bandwidth()
    results = [
        Result("copy bandwidth: bytes read and written by a copy of 1 GiB", bandwidth / 1e9, "GB/s"),
        Result("read bandwidth: the largest number of 1 GiB", read_bandwidth() / 1e9, "GB/s"),
    ]
    with _sides(tiny(), "float32") as sides:
        results += [*_text(sides, 1, bandwidth), *_images(sides, 4)]
    with _sides(width_512(), "float32") as sides:
        results += [*_images(sides, 4, bar=4.0), *_images(sides, 16)]
    with _sides(width_2048(), "float32") as sides:
        results += [
            *_text(sides, 1, bandwidth, bar=1.5, floor_bar=0.7),
            *_text(sides, 8, bandwidth),
            *_images(sides, 1),
            *_images(sides, 4, bar=1.3),
            *_first_token(sides),
            *_encoders(sides, 4),
        ]
    with _sides(width_2048(), "bfloat16") as sides:
        results += [
            *_text(sides, 1, bandwidth, bar=0.8),
            *_text(sides, 8, bandwidth),
            *_images(sides, 4),
            *_first_token(sides),
            *_encoders(sides, 1),  # the peer's VQ decoder takes half a minute for an image in bfloat16
        ]
    for name, number in programs.items():
        results.append(Result(f"programs compiled: {name}", number, "programs"))
    return results


def tiny() -> JanusConfig:
    """2 layers of width 256: what is left is the cost of dispatching steps."""
    config = _config(width=256, mlp_dim=688)
    return dataclasses.replace(config, llama=dataclasses.replace(config.llama, depth=2))


def width_512() -> JanusConfig:
    """8 layers of width 512."""
    return _config(width=512, mlp_dim=1376)


def width_2048() -> JanusConfig:
    """8 layers of width 2048, a third of Janus-Pro-1B."""
    return _config(width=2048, mlp_dim=5632)


def _config(width: int, mlp_dim: int) -> JanusConfig:
    big, image_size = JANUS_PRO_1B, 16 * CODES_PER_SIDE
    llama = dataclasses.replace(
        big.llama, vocab_size=16384, width=width, depth=8, num_heads=width // 128, num_kv_heads=width // 128
    )
    return dataclasses.replace(
        big,
        llama=dataclasses.replace(llama, mlp_dim=mlp_dim, max_length=2048, init_std=1 / math.sqrt(width)),
        siglip=dataclasses.replace(big.siglip, image_size=image_size, depth=6),
        vq=dataclasses.replace(big.vq, image_size=image_size, base_channels=64),
        image_head_width=width,
    )


@contextlib.contextmanager
def _sides(config: JanusConfig, dtype: str) -> Iterator[Sides]:
    """Random weights, handed over as the folder of Hugging Face that we export."""
    import torch
    from transformers import JanusForConditionalGeneration

    style = STYLES[config.prompt_style]
    roles = [style.user, style.assistant]
    tokenizer = train_tokenizer(["a few words"], config.llama.vocab_size, extra_special_tokens=roles)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), init_params(config, seed=0))
    params = transpose_kernels(unstack_layers(params))  # as `inference.loading` does
    pipeline = JanusPipeline(config, params, tokenizer, dtype)
    del params
    with tempfile.TemporaryDirectory() as name:
        pipeline.save_pretrained(Path(name) / "model", format="hf")
        peer = JanusForConditionalGeneration.from_pretrained(Path(name) / "model", dtype=getattr(torch, dtype))
    yield Sides(pipeline, peer.eval(), dtype)


def _text(
    sides: Sides, batch: int, bandwidth: float, bar: float | None = None, floor_bar: float | None = None
) -> list[Result]:
    """Greedy tokens per second, of a whole request; the floor counts the steps after the first token.

    The bar is that of the peer as it comes; compiled for a static cache it is a case of its own, where that works.
    """
    import torch

    pipeline, peer, dtype = sides
    ids = np.random.default_rng(batch).integers(300, 4000, (batch, PROMPT)).tolist()
    prompts = pad_prompts(ids, [pipeline.tokenizer.image_id], PROMPT)
    keys = jax.random.split(jax.random.key(0), batch)

    def ours(new_tokens: int = NEW_TOKENS) -> np.ndarray:
        limits = jnp.full(batch, new_tokens, jnp.int32)
        return np.asarray(
            decode_text(
                pipeline._model,
                pipeline.params,
                prompts,
                None,
                keys,
                limits,
                slots=NEW_TOKENS,
                sampling=GREEDY,
                eos_id=-1,  # never: both sides take all steps
            )
        )

    def theirs(**options: Any) -> np.ndarray:
        with torch.inference_mode():
            tokens = peer.generate(
                inputs=torch.tensor(ids),
                attention_mask=torch.ones(batch, PROMPT, dtype=torch.long),
                do_sample=False,
                min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
                eos_token_id=-1,
                pad_token_id=0,
                **options,
            )
        return tokens.numpy()[:, -NEW_TOKENS:]

    case = f"width {pipeline.config.llama.width} {dtype}: text, batch {batch}"
    runs: list[Run] = [ours, theirs, lambda: ours(1)]
    if batch == 1:
        runs += _working(f"{case}, the peer compiled", functools.partial(theirs, **_compiled()))
    seconds, same = _compare(case, runs)
    per_token = (seconds[0] - seconds[2]) / (NEW_TOKENS - 1)
    floor = _bytes_per_step(pipeline, batch) / bandwidth
    total = batch * NEW_TOKENS
    return [
        _ratio(case, seconds, total, "tokens/s", bar),
        *(_ratio(f"{case}, the peer compiled", [seconds[0], other], total, "tokens/s", None) for other in seconds[3:]),
        Result(
            f"{case}, greedy tokens that are the peer's", same, "of all", (">=", 1.0) if dtype == "float32" else None
        ),
        Result(
            f"{case}, share of the bandwidth floor",
            floor / per_token,
            "of the floor",
            (">=", floor_bar) if floor_bar else None,
            f"{1e3 * per_token:.1f} ms a step",
            f"{1e3 * floor:.1f} ms at copy bandwidth",
        ),
    ]


def _compiled() -> dict[str, Any]:
    """Options of transformers' `generate`."""
    from transformers import CompileConfig

    config = CompileConfig(fullgraph=False, mode="default", dynamic=False)
    config._compile_all_devices = True  # type: ignore[assignment]  # or a CPU would be left out
    return {"cache_implementation": "static", "compile_config": config}


def _working(case: str, run: Run) -> list[Run]:
    try:
        run()
    except RuntimeError as error:  # no C++ compiler
        tqdm.tqdm.write(f"{case}: does not work here: {error}")
        return []
    return [run]


def _bytes_per_step(pipeline: JanusPipeline, rows: int) -> float:
    """Weights of the layers and the head, and the keys and values of the average step."""
    llm, dtype = pipeline.params["llm"], pipeline._model.execution.dtype
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves((llm["decoder"], llm["lm_head"])))
    return weights + cache_bytes(pipeline.config.llama, dtype, rows, PROMPT + NEW_TOKENS // 2)


def _images(sides: Sides, images: int, bar: float | None = None) -> list[Result]:
    """Greedy codes per second of images of one prompt, with guidance, prompt included."""
    import torch

    pipeline, peer, dtype = sides
    tokenizer = pipeline.tokenizer
    middle = np.random.default_rng(0).integers(300, 4000, PROMPT - 2).tolist()
    ids = [tokenizer.bos_id, *middle, tokenizer.begin_of_image_id]
    prompt = pad_prompts([ids], [tokenizer.image_id], PROMPT)
    unconditional = pad_prompts([tokenizer.unconditional(ids)], [tokenizer.image_id], PROMPT)
    keys = jax.random.split(jax.random.key(0), (1, images))
    peer.generation_config.bos_token_id = tokenizer.bos_id
    peer.generation_config.pad_token_id = tokenizer.pad_id
    peer.generation_config.generation_kwargs = {"boi_token_id": tokenizer.begin_of_image_id}

    def ours() -> np.ndarray:
        codes = decode_image_codes(
            pipeline._model,
            pipeline.params,
            prompt,
            unconditional,
            np.zeros(1, np.int32),
            keys,
            jnp.float32(GUIDANCE),
            sampling=GREEDY,
        )
        return np.asarray(codes)[0]

    def theirs() -> np.ndarray:
        with torch.inference_mode():
            codes = peer.generate(
                inputs=torch.tensor([ids] * images),
                attention_mask=torch.ones(images, PROMPT, dtype=torch.long),
                generation_mode="image",
                do_sample=False,
                guidance_scale=GUIDANCE,
            )
        return codes.numpy()

    case = f"width {pipeline.config.llama.width} {dtype}: {images} images with guidance"
    seconds, same = _compare(case, [ours, theirs])
    exact = (">=", 1.0) if dtype == "float32" else None
    return [
        _ratio(case, seconds, images * pipeline.config.image_tokens, "codes/s", bar),
        Result(f"{case}, greedy codes that are the peer's", same, "of all", exact),
    ]


def _first_token(sides: Sides) -> list[Result]:
    """Seconds from the pixels of one image and a question to the first token of the answer."""
    import torch

    pipeline, peer, dtype = sides
    tokenizer, size = pipeline.tokenizer, pipeline.config.siglip.image_size
    question = np.random.default_rng(1).integers(300, 4000, PROMPT).tolist()
    image = [tokenizer.image_id] * pipeline.config.siglip.num_tokens
    ids = [tokenizer.bos_id, tokenizer.begin_of_image_id, *image, tokenizer.end_of_image_id, *question]
    prompt = pad_prompts([ids], [tokenizer.image_id], PROMPT)
    pixels = np.random.default_rng(1).uniform(-1, 1, (1, 1, size, size, 3)).astype(np.float32)
    torch_pixels = torch.tensor(pixels[0]).permute(0, 3, 1, 2).contiguous().to(peer.dtype)
    keys = jax.random.split(jax.random.key(0), 1)

    def ours() -> np.ndarray:
        options = {"slots": NEW_TOKENS, "sampling": GREEDY, "eos_id": -1}
        state = start_text(pipeline._model, pipeline.params, prompt, jnp.asarray(pixels), None, keys, **options)
        return np.asarray(state.next_token)

    def theirs() -> np.ndarray:
        with torch.inference_mode():
            tokens = peer.generate(
                inputs=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                pixel_values=torch_pixels,
                do_sample=False,
                max_new_tokens=1,
                pad_token_id=0,
            )
        return tokens.numpy()[:, -1]

    case = f"width {pipeline.config.llama.width} {dtype}: first token of a question about an image"
    seconds, same = _compare(case, [ours, theirs])
    exact = (">=", 1.0) if dtype == "float32" else None
    return [
        _ratio(case, seconds, 1, "first tokens/s", None),
        Result(f"{case}, greedy tokens that are the peer's", same, "of all", exact),
    ]


def _encoders(sides: Sides, images: int) -> list[Result]:
    """The parts around the LLM."""
    import torch

    pipeline, peer, dtype = sides
    config, size = pipeline.config, pipeline.config.siglip.image_size
    pixels = np.random.default_rng(0).uniform(-1, 1, (images, size, size, 3)).astype(np.float32)
    codes = np.random.default_rng(0).integers(0, config.vq.num_codes, (images, config.image_tokens), dtype=np.int32)
    apply = bind(pipeline._model, pipeline.params)
    embed = jax.jit(lambda pixels: apply(pixels, method="embed_images"))
    torch_pixels = torch.tensor(pixels).permute(0, 3, 1, 2).contiguous().to(peer.dtype)

    def their_pixels() -> Any:
        with torch.inference_mode():
            return peer.model.vqmodel.decode(torch.tensor(codes)).float().numpy().transpose(0, 2, 3, 1)

    def their_features() -> Any:
        with torch.inference_mode():
            return peer.model.aligner(peer.model.vision_model(torch_pixels).last_hidden_state).float().numpy()

    results = []
    for name, ours, theirs in (
        ("VQ decode", lambda: np.asarray(decode_pixels(pipeline._model, pipeline.params, codes)), their_pixels),
        ("SigLIP encode", lambda: np.asarray(embed(pixels), np.float32), their_features),
    ):
        case = f"{dtype}: {name} of {images} images of {size} x {size}"
        difference = np.abs(ours() - theirs()).max()
        seconds, _ = _compare(case, [ours, theirs])
        results.append(_ratio(f"{case} (largest difference {difference:.1e})", seconds, images, "images/s", None))
    return results


def _compare(case: str, runs: list[Run]) -> tuple[list[float], float]:
    """Median seconds of each, in turns; and the share of equal elements of the first two's results."""
    outputs = [run() for run in runs]  # warm: compiled, buffers allocated
    seconds: list[list[float]] = [[] for _ in runs]
    begin = time.perf_counter()
    for _ in tqdm.trange(ROUNDS, desc=case):
        for run, own in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run()
            own.append(time.perf_counter() - start)
        if time.perf_counter() - begin > LONG:
            break
    return [statistics.median(own) for own in seconds], float(np.mean(outputs[0] == outputs[1]))


def _ratio(case: str, seconds: list[float], amount: int, unit: str, bar: float | None) -> Result:
    ours, theirs = amount / seconds[0], amount / seconds[1]
    return Result(
        case,
        ours / theirs,
        "x",
        (">=", bar) if bar else None,
        f"{ours:.2f} {unit}",
        f"{theirs:.2f} {unit}",
    )


def copy_bandwidth() -> float:
    """Bytes per second that all cores read and write when they copy."""
    source = np.ones((CORES, COPY_BYTES // CORES), np.uint8)
    target = np.ones_like(source)  # written once, so that its pages exist
    return _bandwidth(np.copyto, 2 * source.nbytes, target, source)


def read_bandwidth() -> float:
    """Bytes per second that all cores read: what a step could take if it did nothing else."""
    source = np.ones((CORES, COPY_BYTES // CORES // 8), np.int64)
    return _bandwidth(np.max, source.nbytes, source)


def _bandwidth(work: Callable[..., Any], moved: int, *rows: np.ndarray) -> float:
    """Of some work on a row by each core: the best of seven."""
    best = 0.0
    with concurrent.futures.ThreadPoolExecutor(CORES) as pool:
        for _ in range(7):
            start = time.perf_counter()
            list(pool.map(work, *rows))
            best = max(best, moved / (time.perf_counter() - start))
    return best
