"""The suite `inference`: speed of decoding, relative to transformers and to the memory bandwidth of the machine.

The peer is transformers' JanusForConditionalGeneration. Both sides have the same random weights, get the same token ids
and take the same steps on the same device, a CPU or a GPU. They are timed in turns in one process. Greedy decoding must
give the same tokens on both sides. Needs the extra [test].
"""

import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from benchmarks import floor
from benchmarks.inference_sides import Sides, open_sides, peer_device, tiny, width_512, width_2048
from benchmarks.result import Result
from janus_jax.inference.compiled_programs import traced
from janus_jax.inference.decode_image import decode_pixels
from janus_jax.inference.janus import JanusPipeline
from janus_jax.inference.prompt_pieces import total_length
from janus_jax.models.params import bind
from janus_jax.models.presets import JANUS_PRO_1B, JANUS_PRO_7B

ROUNDS = 3  # Number of rounds of a case.
LONG = 60.0  # Seconds of the first round after which there is no second one.
PROMPT = 32  # Number of prompt tokens.
NEW_TOKENS = 33  # Number of new tokens of text. The prompt gives the first one, so there are 32 steps.
GUIDANCE = 5.0
Run = Callable[[], Any]


def run() -> Iterator[Result]:
    """The results of all cases for JAX's default device."""
    # Otherwise JAX would reserve most of a GPU's memory, and the peer would find too little.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    device = peer_device()
    bandwidth = floor.copy_bandwidth()
    yield Result("copy bandwidth: bytes read and written by a copy of 1 GiB", bandwidth / 1e9, "GB/s")
    yield from _on_gpu(bandwidth) if device == "cuda" else _on_cpu(bandwidth)
    for name, number in traced.items():
        yield Result(f"programs compiled: {name}", number, "programs")


def _on_cpu(bandwidth: float) -> Iterator[Result]:
    """Four random models of growing width. The bars belong to float32, except for one of text in bfloat16.

    The weights of some cases are stored in bfloat16 and used in float32, as a CPU does with released weights: a step
    then has fewer bytes to read.
    """
    yield Result("read bandwidth: finding the largest number in 1 GiB", floor.read_bandwidth() / 1e9, "GB/s")
    with open_sides("width 256", tiny(), "float32", bandwidth) as sides:
        yield from text_case(sides, 1)
        yield from text_case(sides, 8)
        for images in (1, 4, 16):
            yield from images_case(sides, images)
        yield from first_token_case(sides)
        yield from encoders_case(sides, 4)
    with open_sides("width 512", width_512(), "float32", bandwidth) as sides:
        yield from images_case(sides, 4, bar=4.0)
        yield from images_case(sides, 16)
    with open_sides("width 512", width_512(), "float32", bandwidth, stored="bfloat16") as sides:
        yield from images_case(sides, 4, bar=4.0)
        yield from images_case(sides, 16)
    with open_sides("width 512", width_512(), "bfloat16", bandwidth) as sides:
        yield from images_case(sides, 4)
    with open_sides("width 2048", width_2048(), "float32", bandwidth) as sides:
        yield from text_case(sides, 1, bar=1.5, floor_bar=0.7)
        yield from text_case(sides, 8)
        yield from images_case(sides, 1)
        yield from images_case(sides, 4, bar=1.3)
        yield from images_case(sides, 16)
        yield cache_case(sides, 16)
        yield from first_token_case(sides)
        yield from encoders_case(sides, 4)
    with open_sides("width 2048", width_2048(), "float32", bandwidth, stored="bfloat16") as sides:
        yield from text_case(sides, 1, bar=1.5, floor_bar=0.7, compiled=False)
        yield from text_case(sides, 8, compiled=False)  # compiling the peer takes minutes
        yield from images_case(sides, 4, bar=1.3)
        yield from first_token_case(sides)
    with open_sides("width 2048", width_2048(), "bfloat16", bandwidth) as sides:
        yield from text_case(sides, 1, bar=0.8)
        yield from text_case(sides, 8, compiled=False)
        for images in (1, 4, 16):
            yield from images_case(sides, images)
        yield from first_token_case(sides)
        yield from encoders_case(sides, 1)  # the peer's VQ decoder takes half a minute for an image in bfloat16


def _on_gpu(bandwidth: float) -> Iterator[Result]:
    """Models of the released sizes. The bars belong to the 7B model."""
    for name, config, one, many in (
        ("Janus-Pro-1B", JANUS_PRO_1B, {}, {}),
        ("Janus-Pro-7B", JANUS_PRO_7B, {"bar": 4.0, "floor_bar": 0.7}, {"bar": 5.0}),
    ):
        with open_sides(name, config, "bfloat16", bandwidth) as sides:
            yield from text_case(sides, 1)
            yield from text_case(sides, 8)
            yield from images_case(sides, 1, **one)
            yield from images_case(sides, 16, **many)
            yield cache_case(sides, 16)
            yield from first_token_case(sides)
            yield from encoders_case(sides, 4)


def text_case(
    sides: Sides, batch: int, bar: float | None = None, floor_bar: float | None = None, compiled: bool = True
) -> list[Result]:
    """Greedy tokens per second of whole requests. The bandwidth floor counts the steps after the first token.

    Args:
        bar: least speed relative to the peer's default mode.
        floor_bar: least share of the bandwidth floor.
        compiled: also measure the peer with a static cache and torch.compile, where that works.
    """
    import torch

    pipeline, engine, peer = sides.pipeline, sides.pipeline.engine, sides.peer
    ids = np.random.default_rng(batch).integers(300, 4000, (batch, PROMPT)).tolist()
    pieces, slots = engine.pieces(ids), engine.slots(batch, PROMPT + NEW_TOKENS)
    keys = jax.random.split(jax.random.key(0), batch)

    def ours(new_tokens: int = NEW_TOKENS) -> np.ndarray:
        # No token ends an answer, so that both sides take all steps.
        state = engine.prefill(pieces, [None] * len(pieces), keys, slots=slots, eos_id=-1)
        state = engine.continue_(state, keys, [new_tokens] * batch, NEW_TOKENS, eos_id=-1)
        return np.asarray(state.tokens)[:, :NEW_TOKENS]

    def theirs(**options: Any) -> np.ndarray:
        with torch.inference_mode():
            tokens = peer.generate(
                inputs=torch.tensor(ids, device=peer.device),
                attention_mask=torch.ones(batch, PROMPT, dtype=torch.long, device=peer.device),
                do_sample=False,
                min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
                eos_token_id=-1,
                pad_token_id=0,
                **options,
            )
        return tokens.cpu().numpy()[:, -NEW_TOKENS:]

    case = f"{sides.name}: text, batch {batch}"
    runs: list[Run] = [ours, theirs, lambda: ours(1)]
    if compiled:
        runs += _working(f"{case}, the peer compiled", functools.partial(theirs, **_compiled()))
    timing = time_in_turns(case, runs)
    total, step_bytes = batch * NEW_TOKENS, floor.text_step_bytes(pipeline, batch, PROMPT + NEW_TOKENS // 2)
    rows = [speed_ratio(case, timing, total, "tokens/s", bar)]
    if len(runs) > 3:
        rows.append(speed_ratio(f"{case}, the peer compiled", timing, total, "tokens/s", None, peer=3))
    return [
        *rows,
        equal_tokens(sides, f"{case}, greedy tokens", timing),
        floor_share(sides, case, timing, NEW_TOKENS - 1, step_bytes, floor_bar),
    ]


def _compiled() -> dict[str, Any]:
    """Options with which transformers' `generate` compiles its decoding step."""
    from transformers import CompileConfig

    config = CompileConfig(fullgraph=False, mode="default", dynamic=False)
    config._compile_all_devices = True  # type: ignore[assignment]  # otherwise a CPU is left out
    return {"cache_implementation": "static", "compile_config": config}


def _working(case: str, run: Run) -> list[Run]:
    """The run, or nothing where it fails here."""
    try:
        run()
    except RuntimeError as error:  # for example without a C++ compiler
        tqdm.tqdm.write(f"{case}: does not work here: {error}")
        return []
    return [run]


def images_case(sides: Sides, images: int, bar: float | None = None, floor_bar: float | None = None) -> list[Result]:
    """Greedy codes per second of images of one prompt with guidance, the reading of the prompt included."""
    pipeline, engine, peer = sides.pipeline, sides.pipeline.engine, sides.peer
    num_codes = pipeline.config.image_tokens
    tokenizer = pipeline.tokenizer
    middle = np.random.default_rng(0).integers(300, 4000, PROMPT - 2).tolist()
    ids = [tokenizer.bos_id, *middle, tokenizer.begin_of_image_id]
    keys = jax.random.split(jax.random.key(0), images)
    prompts = engine.guided([ids])

    def ours() -> np.ndarray:
        state = engine.prefill_images(prompts, keys, GUIDANCE)
        return np.asarray(engine.continue_images(state, keys, GUIDANCE, num_codes).codes)

    def ours_first() -> np.ndarray:
        return np.asarray(engine.prefill_images(prompts, keys, GUIDANCE).codes)

    def theirs() -> np.ndarray:
        return their_codes(peer, pipeline, ids, images, GUIDANCE)

    case = f"{sides.name}: {images} images of {num_codes} codes with guidance"
    timing = time_in_turns(case, [ours, theirs, ours_first])
    step_bytes = floor.image_step_bytes(pipeline, images, PROMPT, num_codes // 2)
    return [
        speed_ratio(case, timing, images * num_codes, "codes/s", bar),
        equal_tokens(sides, f"{case}, greedy codes", timing),
        floor_share(sides, case, timing, num_codes - 1, step_bytes, floor_bar),
    ]


def their_codes(peer: Any, pipeline: JanusPipeline, ids: Sequence[int], images: int, guidance: float) -> np.ndarray:
    """Greedy codes [images, N] of the peer for the token ids of one prompt."""
    import torch

    tokenizer = pipeline.tokenizer
    peer.generation_config.bos_token_id = tokenizer.bos_id
    peer.generation_config.pad_token_id = tokenizer.pad_id
    peer.generation_config.generation_kwargs = {"boi_token_id": tokenizer.begin_of_image_id}
    with torch.inference_mode():
        codes = peer.generate(
            inputs=torch.tensor([ids] * images, device=peer.device),
            attention_mask=torch.ones(images, len(ids), dtype=torch.long, device=peer.device),
            generation_mode="image",
            do_sample=False,
            guidance_scale=guidance,
        )
    return codes.cpu().numpy()


def cache_case(sides: Sides, images: int) -> Result:
    """How much smaller the KV cache is because images of one prompt share its keys and values."""
    sizes = (sides.pipeline, images, PROMPT, sides.pipeline.config.image_tokens)
    ours, others = floor.shared_cache_bytes(*sizes), floor.own_cache_bytes(*sizes)
    return Result(
        f"{sides.name}: key-value cache of {images} images of {sizes[-1]} codes of one prompt of {PROMPT} tokens",
        others / ours,
        "x",
        None,
        f"{ours / 1e6:.1f} MB",
        f"{others / 1e6:.1f} MB, each image with its own prompt",
    )


def first_token_case(sides: Sides) -> list[Result]:
    """Time from the pixels of one image and a question to the first token of the answer."""
    import torch

    pipeline, peer = sides.pipeline, sides.peer
    tokenizer, size = pipeline.tokenizer, pipeline.config.understanding.image_size
    question = np.random.default_rng(1).integers(300, 4000, PROMPT).tolist()
    image = [tokenizer.image_id] * pipeline.config.understanding.num_tokens
    ids = [tokenizer.bos_id, tokenizer.begin_of_image_id, *image, tokenizer.end_of_image_id, *question]
    pieces = pipeline.engine.pieces([ids])
    slots = pipeline.engine.slots(1, total_length(pieces) + NEW_TOKENS)
    pixels = np.random.default_rng(1).uniform(-1, 1, (1, 1, size, size, 3)).astype(np.float32)
    torch_pixels = torch.tensor(pixels[0]).permute(0, 3, 1, 2).contiguous().to(peer.device, peer.dtype)
    keys = jax.random.split(jax.random.key(0), 1)

    def ours() -> np.ndarray:
        images = [None if piece.images is None else pixels[:, 0] for piece in pieces]
        state = pipeline.engine.prefill(pieces, images, keys, slots=slots, eos_id=-1)
        return np.asarray(state.tokens[:, 0])

    def theirs() -> np.ndarray:
        with torch.inference_mode():
            tokens = peer.generate(
                inputs=torch.tensor([ids], device=peer.device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=peer.device),
                pixel_values=torch_pixels,
                do_sample=False,
                max_new_tokens=1,
                pad_token_id=0,
            )
        return tokens.cpu().numpy()[:, -1]

    case = f"{sides.name}: first token of a question about an image"
    timing = time_in_turns(case, [ours, theirs])
    return [speed_ratio(case, timing, 1, "first tokens/s", None), equal_tokens(sides, f"{case}, greedy tokens", timing)]


def encoders_case(sides: Sides, images: int) -> list[Result]:
    """Images per second of the parts around the language model: VQ decoder and SigLIP encoder."""
    import torch

    pipeline, peer = sides.pipeline, sides.peer
    config, size = pipeline.config, pipeline.config.understanding.image_size
    pixels = np.random.default_rng(0).uniform(-1, 1, (images, size, size, 3)).astype(np.float32)
    assert config.vq is not None
    codes = np.random.default_rng(0).integers(0, config.vq.num_codes, (images, config.image_tokens), dtype=np.int32)
    apply = bind(pipeline.engine.model, pipeline.params)
    embed = jax.jit(lambda pixels: apply(pixels, method="embed_images"))
    torch_pixels = torch.tensor(pixels).permute(0, 3, 1, 2).contiguous().to(peer.device, peer.dtype)

    def their_pixels() -> Any:
        with torch.inference_mode():
            pixels = peer.model.vqmodel.decode(torch.tensor(codes, device=peer.device))
        return pixels.permute(0, 2, 3, 1).float().cpu().numpy()

    def their_features() -> Any:
        with torch.inference_mode():
            features = peer.model.aligner(peer.model.vision_model(torch_pixels).last_hidden_state)
        return features.float().cpu().numpy()

    results = []
    for name, ours, theirs in (
        ("VQ decode", lambda: np.asarray(decode_pixels(pipeline.engine.model, pipeline.params, codes)), their_pixels),
        ("SigLIP encode", lambda: np.asarray(embed(pixels), np.float32), their_features),
    ):
        case = f"{sides.name}: {name} of {images} images of {size} x {size}"
        difference = np.abs(ours() - theirs()).max()
        timing = time_in_turns(case, [ours, theirs])
        results.append(speed_ratio(f"{case} (largest difference {difference:.1e})", timing, images, "images/s", None))
    return results


class Timing(NamedTuple):
    """Times of several runs of a case: ours, the peer's, and further ones."""

    seconds: list[float]  # median of each run
    rounds: int  # number of rounds
    same: float  # share of elements in which the results of the first two runs are equal


def time_in_turns(case: str, runs: list[Run]) -> Timing:
    """Runs all of them in turns, for ROUNDS rounds or one long one."""
    outputs = [run() for run in runs]  # warm-up: compiles and allocates buffers
    seconds: list[list[float]] = []
    for _ in tqdm.trange(ROUNDS, desc=case):
        seconds.append([_seconds(run) for run in runs])
        if sum(seconds[0]) > LONG:
            break
    medians = [statistics.median(of_run) for of_run in zip(*seconds, strict=True)]
    return Timing(medians, len(seconds), float(np.mean(outputs[0] == outputs[1])))


def _seconds(run: Run) -> float:
    """Seconds of a run. Every run brings its results to the host, so the device has finished by then."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def speed_ratio(case: str, timing: Timing, amount: int, unit: str, bar: float | None, peer: int = 1) -> Result:
    """Our speed divided by that of run number `peer`."""
    ours, theirs = amount / timing.seconds[0], amount / timing.seconds[peer]
    return Result(
        case,
        ours / theirs,
        "x",
        (">=", bar) if bar else None,
        f"{ours:.2f} {unit} (median of {timing.rounds})",
        f"{theirs:.2f} {unit}",
    )


def equal_tokens(sides: Sides, what: str, timing: Timing) -> Result:
    """Share of tokens that are the same on both sides."""
    return Result(f"{what} that are the peer's", timing.same, "of all", (">=", 1.0) if sides.exact else None)


def floor_share(sides: Sides, case: str, timing: Timing, steps: int, step_bytes: int, bar: float | None) -> Result:
    """Share of the bandwidth floor that our steps reach: the least time of a step divided by its measured time.

    Run 2 only reads the prompt and gives the first token; its time is subtracted from that of run 0.
    """
    per_step, least = (timing.seconds[0] - timing.seconds[2]) / steps, step_bytes / sides.bandwidth
    return Result(
        f"{case}, share of the bandwidth floor",
        least / per_step,
        "of the floor",
        (">=", bar) if bar else None,
        f"{1e3 * per_step:.1f} ms a step (median of {timing.rounds})",
        f"{1e3 * least:.1f} ms at copy bandwidth",
    )
