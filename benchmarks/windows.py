"""The suite `windows`: one guided image with several codes per pass, relative to one code per pass and to transformers.

How many codes a pass makes depends on the weights, so they are trained ones: those of a small model of digits, put into
models of the widths that the suite `inference` measures. The rest of a wide model is zero where it would change the
result, so it draws the digits of the small one while each pass costs what it costs at that width. Needs the extra
[test].
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import numpy as np
from etils import epath

from benchmarks.inference import Run, their_codes, time_in_turns
from benchmarks.inference_sides import their_model, width_512, width_2048
from benchmarks.result import Result
from examples.digits.data import CAPTIONS, NAMES
from janus_jax.errors import UserError
from janus_jax.inference.janus import JanusPipeline
from janus_jax.inference.loading import load
from janus_jax.models.config import JanusConfig
from janus_jax.models.params import Params, flatten, init_params, unflatten
from janus_jax.weights.load import read_param
from janus_jax.weights.open_model import open_model
from janus_jax.weights.reader import model_in_memory

PROMPTS = [CAPTIONS[0].format(name) for name in NAMES[:4]]
WINDOWS = (1, 2, 4, 8)
GUIDANCE = 1.5  # the small model's own
NEVER = -1e9  # logit of a code that the small model does not have


def run(checkpoint: epath.PathLike) -> Iterator[Result]:
    """The results at both widths.

    Args:
        checkpoint: a model of `examples.digits.code_windows`.

    Raises:
        UserError: not a model folder, or not a Janus.
    """
    reader = open_model(checkpoint)
    if not isinstance(reader.config, JanusConfig):
        raise UserError(f"--checkpoint={checkpoint}: a {type(reader.config).__name__}, expected a JanusConfig")
    small = {path: read_param(reader, path, np.float32) for path in reader.parameters}
    for name, like in (("width 512", width_512()), ("width 2048", width_2048())):
        config = widened_config(reader.config, like)
        pipeline = load(model_in_memory(config, widened(reader.config, config, small), reader.tokenizer), "float32")
        assert isinstance(pipeline, JanusPipeline)
        yield from image_case(name, pipeline)


def widened_config(small: JanusConfig, like: JanusConfig) -> JanusConfig:
    """`small` with the width, layers, heads of codes and encoders of `like`. Heads of attention keep their size.

    The peer wants a number of heads that divides the width, a power of two.
    """
    width, size = like.llama.width, small.llama.head_dim
    heads = 1 << ((width // size).bit_length() - 1)
    llama = dataclasses.replace(
        like.llama,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=size,
        rope_theta=small.llama.rope_theta,
        # The mean of the squares is that of the small model times the ratio of the widths.
        norm_eps=small.llama.norm_eps * small.llama.width / width,
    )
    return dataclasses.replace(like, llama=llama, prompt_style=small.prompt_style)


def widened(small: JanusConfig, wide: JanusConfig, params: dict[str, np.ndarray]) -> Params:
    """Parameters of `wide` that make it compute what `small` does. The image tokenizer and SigLIP are random.

    Args:
        params: those of `small`, by path.
    """
    result = {}
    norm_scale = math.sqrt(small.llama.width / wide.llama.width)
    for path, leaf in flatten(init_params(wide, seed=0)).items():
        if not path.startswith(("llm/", "gen_")):
            result[path] = np.asarray(leaf)
            continue
        values = np.full(leaf.shape, NEVER if path == "gen_head/codes/bias" else 0, np.float32)
        part = params[path] * (norm_scale if path.endswith("norm/scale") else 1)
        values[tuple(map(slice, part.shape))] = part
        result[path] = values
    return unflatten(result)


def image_case(name: str, pipeline: JanusPipeline) -> list[Result]:
    """Seconds of one image with each window, the reading of the prompt included, and the peer's."""
    made: dict[int, np.ndarray] = {}
    passes: dict[int, list[int]] = {window: [] for window in WINDOWS}

    def ours(window: int) -> np.ndarray:
        """Codes of one image of each prompt, [prompts, N]."""
        codes = []
        passes[window].clear()
        for number, prompt in enumerate(PROMPTS):
            requests, decoding = pipeline.engine.reader.codes(
                [prompt], 1, cfg_weight=GUIDANCE, window=window, prompt_numbers=[number]
            )
            codes.append(pipeline.engine.generate(requests, 1, on_passes=passes[window].append, **decoding)[0, 0])
        made[window] = np.stack(codes)
        return made[window]

    peer = their_model(pipeline, "float32")
    ids = [pipeline.tokenizer.bos_id, *pipeline.tokenizer.encode(PROMPTS[0]), pipeline.tokenizer.begin_of_image_id]

    def theirs() -> np.ndarray:
        return their_codes(peer, pipeline, ids, 1, GUIDANCE)

    runs: list[Run] = [*(functools.partial(ours, window) for window in WINDOWS), theirs]
    *totals, their_seconds = time_in_turns(name, runs).seconds
    seconds = [total / len(PROMPTS) for total in totals]
    first, results = seconds[0], []
    for window, own in zip(WINDOWS[1:], seconds[1:], strict=True):
        mean, same = sum(passes[window]) / len(PROMPTS), float(np.mean((made[window] == made[1]).all(axis=1)))
        case = f"{name}: one guided image, window {window}"
        results.append(Result(f"{case}, images that are those of window 1", same, "of all", (">=", 0.99)))
        results.append(
            Result(
                f"{case}, against window 1",
                first / own,
                "x",
                None,
                f"{own:.2f} s, {mean:.1f} passes of {pipeline.config.image_tokens}",
                f"{first:.2f} s",
            )
        )
    best = min(seconds)
    results.append(
        Result(
            f"{name}: the best window against window 1",
            first / best,
            "x",
            (">=", 1.3),
            f"{best:.2f} s",
            f"{first:.2f} s",
        )
    )
    results.append(
        Result(
            f"{name}: the best window against transformers",
            their_seconds / best,
            "x",
            None,
            f"{1 / best:.3f} images/s",
            f"{1 / their_seconds:.3f} images/s",
        )
    )
    return results
