"""The least time that a decoding step can take: the bytes that it must read, divided by the bandwidth of a copy."""

import concurrent.futures
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.inference.janus import JanusPipeline
from janus_jax.inference.memory import cache_bytes

COPY_BYTES = 1 << 30  # Bytes of one copy.
COPIES = 16  # Number of copies that an accelerator makes in a row, so that starting one costs no time.
CORES = os.cpu_count() or 1


def text_step_bytes(pipeline: JanusPipeline, rows: int, slots: int) -> int:
    """Bytes of the weights of the layers and the text head, and of the keys and values of `slots` tokens per row."""
    llm = pipeline.params["llm"]
    return _bytes((llm["decoder"], llm["lm_head"])) + _cache(pipeline, rows, slots)


def image_step_bytes(pipeline: JanusPipeline, images: int, prompt: int, slots: int) -> int:
    """Bytes of the weights of layers, image head and aligner, and of the keys and values of images of one prompt.

    With guidance there are two halves, with and without the prompt. In each half, every image has the keys and values
    of its own `slots` codes, and all images share those of the prompt.
    """
    params = pipeline.params
    weights = _bytes((params["llm"]["decoder"], params["gen_head"], params["gen_aligner"]))
    return weights + shared_cache_bytes(pipeline, images, prompt, slots)


def shared_cache_bytes(pipeline: JanusPipeline, images: int, prompt: int, codes: int) -> int:
    """Bytes of the keys and values of images of one prompt with guidance, when all images share those of the prompt."""
    return _cache(pipeline, 2 * images, codes) + _cache(pipeline, 2, prompt)


def own_cache_bytes(pipeline: JanusPipeline, images: int, prompt: int, codes: int) -> int:
    """Bytes of the same keys and values when every image has a copy of those of the prompt."""
    return _cache(pipeline, 2 * images, prompt + codes)


def _cache(pipeline: JanusPipeline, rows: int, slots: int) -> int:
    return cache_bytes(pipeline.config.llama, pipeline.engine.model.execution, rows, slots)


def _bytes(params: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def copy_bandwidth() -> float:
    """Bytes per second that JAX's default device reads and writes when it copies. A CPU copies with all cores."""
    if jax.default_backend() != "cpu":
        return _device_copy_bandwidth()
    source = np.ones((CORES, COPY_BYTES // CORES), np.uint8)
    target = np.ones_like(source)  # written once, so that its pages exist
    return _on_all_cores(np.copyto, 2 * source.nbytes, target, source)


def read_bandwidth() -> float:
    """Bytes per second that all cores can read: the most that a step could use if it did nothing else."""
    source = np.ones((CORES, COPY_BYTES // CORES // 8), np.int64)
    return _on_all_cores(np.max, source.nbytes, source)


def _device_copy_bandwidth() -> float:
    source = jnp.ones(COPY_BYTES // 4, jnp.float32)
    copy = jax.jit(jnp.copy)

    def work() -> None:
        for _ in range(COPIES):
            target = copy(source)
        target.block_until_ready()  # the device makes one copy after the other

    work()  # compiles
    return _best(work, COPIES * 2 * source.nbytes)


def _on_all_cores(work: Callable[..., Any], moved: int, *rows: np.ndarray) -> float:
    """Bytes per second of work that moves `moved` bytes, one row per core."""
    with concurrent.futures.ThreadPoolExecutor(CORES) as pool:
        return _best(lambda: list(pool.map(work, *rows)), moved)


def _best(work: Callable[[], Any], moved: int) -> float:
    """Bytes per second of the best of seven tries."""
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return moved / min(seconds)
