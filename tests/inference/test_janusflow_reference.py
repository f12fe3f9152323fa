"""The whole JanusFlow at the original's widths (2 LLM layers, 1 of SigLIP) against its outputs, float32.

Weights follow from their names (tests/helpers/flow_weights.py). Tolerances are 1e-4 of the largest value.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.batches import Modality
from janus_jax.inference.flow_sampling import read_prompts, sample_latents, velocities
from janus_jax.inference.padding import PaddedPrompts
from janus_jax.models.execution import Execution
from janus_jax.models.janusflow import JanusFlow
from janus_jax.models.params import bind, build
from janus_jax.models.presets import JANUSFLOW_1P3B
from janus_jax.models.scan_layers import unstack_layers
from janus_jax.ops.sampling import guide
from janus_jax.weights.name_map import match_names, their_shapes
from tests.helpers.flow_weights import from_foreign
from tests.helpers.torch_weights import noise, rule_weights

REFERENCE = Path(__file__).parents[1] / "data_files" / "janusflow_chain.npz"
CONFIG = dataclasses.replace(
    JANUSFLOW_1P3B,
    llama=dataclasses.replace(JANUSFLOW_1P3B.llama, vocab_size=256, mlp_dim=512, depth=2),
    siglip=dataclasses.replace(JANUSFLOW_1P3B.siglip, depth=1),
)
PLACEHOLDER, BEGIN_OF_IMAGE = 5, 7


class Chain(NamedTuple):
    arrays: dict
    model: JanusFlow
    params: dict


@pytest.fixture(scope="module")
def chain():
    arrays = dict(np.load(REFERENCE))
    shapes = {
        str(key): tuple(map(int, str(shape).split("x")))
        for key, shape in zip(arrays["weights/key"], arrays["weights/shape"], strict=True)
    }
    names = match_names(shapes, CONFIG, "janusflow", "the reference")
    assert names == {name: name for name in their_shapes(CONFIG, "janusflow")}
    state = dict(rule_weights(names, [shapes[name] for name in names]))
    for key, first in zip(arrays["weights/key"], arrays["weights/first4"], strict=True):
        if str(key) in state:
            np.testing.assert_array_equal(np.resize(state[str(key)].reshape(-1)[:4], 4), first, err_msg=str(key))
    params = unstack_layers(from_foreign(state, CONFIG, "janusflow"))
    return Chain(arrays, build(CONFIG, Execution(scan_layers=False)), params)


def prompts_of(ids, batch):
    """`batch` times one prompt, without its last token, in a bucket that is too long."""
    ids, padding = ids[:-1], 3
    tokens = np.pad(ids, (padding, 0))
    segment_ids = (np.arange(len(tokens)) >= padding).astype(np.int32)
    positions = np.maximum(np.cumsum(segment_ids) - 1, 0)
    rows = (tokens.astype(np.int32), (segment_ids * Modality.TEXT).astype(np.int8), segment_ids, positions)
    return PaddedPrompts(*(np.tile(row, (batch, 1)) for row in rows))


def nhwc(x):
    return np.moveaxis(x, -3, -1)


def initial_noise(batch):
    return jnp.float32(nhwc(noise("noise.0", (2, 4, 48, 48)))[:batch])


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def euler(chain, ids, batch, times, step, cfg_weight):
    """Both velocities and the latents of each step."""

    @jax.jit
    def run_step(params, prefix, latents, time):
        parts = velocities(chain.model, params, prefix, latents, time)
        return parts, latents + step * guide(*parts, cfg_weight)

    prefix = jax.jit(lambda params: read_prompts(chain.model, params, prompts_of(ids, batch)))(chain.params)
    latents = initial_noise(batch)
    for time in times:
        parts, latents = run_step(chain.params, prefix, latents, jnp.float32(time))
        yield *map(np.asarray, parts), np.asarray(latents)


def test_guided_velocity_of_pure_noise_equals_the_original(chain):
    ids = chain.arrays["gen/short_k2_w5/prompt_ids"]
    ((conditional, unconditional, _),) = euler(chain, ids, 1, [0.0], 1 / 2, 5.0)
    assert_close(5 * conditional - 4 * unconditional, nhwc(chain.arrays["gen/short_k2_w5/v"][0]))


@pytest.mark.slow
def test_guided_sampling_equals_the_original(chain):
    """Two Euler steps with guidance 5, in one program."""
    arrays = chain.arrays
    latents = sample_latents(
        chain.model,
        chain.params,
        prompts_of(arrays["gen/short_k2_w5/prompt_ids"], 1),
        initial_noise(1),
        jnp.float32(5),
        num_steps=2,
        solver="euler",
    )
    assert_close(latents, nhwc(arrays["gen/short_k2_w5/final"]))


@pytest.mark.slow
def test_velocities_of_every_step_equal_the_original(chain):
    arrays = chain.arrays
    steps = list(euler(chain, arrays["gen/prompt_ids"], 2, arrays["gen/k4_w2/t"], 1 / 4, 2.0))
    for i, (conditional, unconditional, _) in enumerate(steps):
        assert_close(conditional[:, ::2, ::2], nhwc(arrays["gen/k4_w2/v_cond_every2"][i]))
        assert_close(unconditional[:, ::2, ::2], nhwc(arrays["gen/k4_w2/v_uncond_every2"][i]))
    assert_close(steps[-1][2], nhwc(arrays["gen/k4_w2/final"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["k30_w2", "k30_w2_bf16t"])
def test_first_of_thirty_steps_equal_the_original(chain, name):
    """With exact times, and with times and step rounded to bfloat16 as the released script does."""
    arrays = chain.arrays
    times, step = arrays[f"gen/{name}/t"], float(arrays[f"gen/{name}/dt"])
    *_, (_, _, latents) = euler(chain, arrays["gen/prompt_ids"], 2, times, step, 2.0)
    assert_close(latents[:, ::2, ::2], nhwc(arrays[f"gen/{name}/z_out_every2"]))


def images(chain, *numbers):
    """[1 row or more, images, 384, 384, 3] by the rule of the reference."""
    pixels = [np.clip(0.5 * np.float32(noise(f"pixels.{i}", (3, 384, 384))), -1, 1) for i in numbers]
    for i, image in zip(numbers, pixels, strict=True):
        np.testing.assert_array_equal(image.reshape(-1)[:4], chain.arrays[f"und/pixels_first4/{i}"])
    return np.stack([nhwc(image) for image in pixels])


def understand(chain, ids, segment_ids, pixels):
    """LLM inputs and text logits."""
    is_image = np.isin(ids, (PLACEHOLDER, BEGIN_OF_IMAGE))
    modality = np.where(is_image, Modality.UNDERSTANDING_IMAGE, Modality.TEXT) * segment_ids
    positions = np.maximum(np.cumsum(segment_ids, axis=1) - 1, 0)

    @jax.jit
    def run(params, ids, modality, positions, segment_ids, pixels):
        apply = bind(chain.model, params)
        x = apply(ids, modality, pixels, method="embed")
        hidden, _ = apply(x, positions, segment_ids)
        return x, apply(hidden, method="text_logits")

    return run(chain.params, ids, modality, positions, segment_ids, pixels)


def test_understanding_equals_the_original(chain):
    ids = chain.arrays["und/a/input_ids"][None]
    x, logits = understand(chain, ids, np.ones_like(ids), images(chain, 0)[None])
    assert_close(x[0, ::6, ::32], chain.arrays["und/a/inputs_embeds_every6"])
    assert_close(logits[0, ::3], chain.arrays["und/a/logits_every3"])


@pytest.mark.slow
def test_understanding_of_several_images_in_a_padded_batch_equals_the_original(chain):
    ids, mask = chain.arrays["und/b/input_ids"], chain.arrays["und/b/attention_mask"]
    pixels = images(chain, 1, 2, 3)
    pixels = np.stack([pixels[:2], np.stack([pixels[2], np.zeros_like(pixels[2])])])
    _, logits = understand(chain, ids, mask, pixels)
    assert_close(logits[:, -8:], chain.arrays["und/b/logits_last8"])
