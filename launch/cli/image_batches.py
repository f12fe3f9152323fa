"""Generates many images batch by batch, for `launch.generate`: each batch is on the disk before the next one."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm
from etils import epath

from janus_jax.inference.engine import Engine
from janus_jax.inference.janus import JanusEngine
from janus_jax.inference.requests import ImageRequest
from launch.cli.image_files import ImageFolder


class ImageWork(NamedTuple):
    """What is asked of an engine."""

    requests: Sequence[ImageRequest]
    num_images: int  # of each request
    options: Mapping[str, Any]  # of the engine's `generate`
    noise: np.ndarray | None = None  # JanusFlow: [requests, images of each, H, W, channels]
    vae: epath.Path | None = None


def compile_ahead(engine: Engine, work: ImageWork, at_a_time: int) -> None:
    """Compiles the programs of the first batch of `generate_batches`, where the model generates codes."""
    if isinstance(engine, JanusEngine):
        batch = next(engine.batches(len(work.requests), work.num_images, at_a_time))
        engine.compile_images_ahead(work.requests[batch.prompts], len(batch.images), **work.options)


def generate_batches(engine: Engine, work: ImageWork, folder: ImageFolder, at_a_time: int) -> Iterator[np.ndarray]:
    """Writes the images of each batch, and yields its codes or latents, [images, ...].

    Args:
        at_a_time: largest number of images of a batch; fewer are taken if they do not fit the memory.
    """
    batches, fitting = engine.fitting_batches(work.requests, work.num_images, at_a_time)
    if fitting < at_a_time:
        print(f"{at_a_time} images at a time do not fit the memory; generating {fitting} at a time", flush=True)
    tokens = engine.config.image_tokens
    windows: list[int] = []  # of each batch
    passes: list[int] = []
    total = len(work.requests) * work.num_images * tokens  # progress, on a terminal only: tokens, of latents too
    with tqdm.tqdm(total=total, unit="token", unit_scale=True, disable=None) as bar:
        for batch in batches:
            first, each = batch.images.start, len(batch.images)
            requests = [request._replace(first_image=first) for request in work.requests[batch.prompts]]
            options, done = dict(work.options), folder.count * tokens
            if isinstance(engine, JanusEngine):

                def show(codes: int, done: int = done, count: int = len(requests) * each) -> None:
                    bar.update(done + count * codes - bar.n)

                options["on_codes"], options["on_passes"] = show, passes.append
                windows.append(engine.window(work.options.get("window", 1), len(requests), each))
            elif work.noise is not None:
                options["initial_noise"] = work.noise[batch.prompts, first : first + each]
            samples = engine.generate(requests, each, **options)
            samples = samples.reshape(-1, *samples.shape[2:])
            folder.add(engine.decode(samples))
            bar.update(folder.count * tokens - bar.n)
            bar.set_postfix_str(f"{folder.count} images")
            yield samples
    if max(windows, default=1) > 1:
        print(f"window {max(windows)}: {tokens} codes of an image in {np.mean(passes):.0f} passes", flush=True)
