"""The objective of JanusFlow: its three terms against a closed form, which modules get a gradient, dropped captions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from janus_jax.batches import FlowBatch, Modality, PackedBatch
from janus_jax.data.packing import IMAGE_FEATURES, PackedSample, assemble, join_blocks
from janus_jax.inference.flow_sampling import read_prompts, velocities
from janus_jax.inference.padding import pad_prompts
from janus_jax.models.execution import Execution
from janus_jax.models.params import bind, build, flatten, init_params
from janus_jax.ops.pixels import normalize
from janus_jax.training.objectives.janusflow import janusflow_objective
from tests.helpers.tiny_data import BYTE_TOKENIZER, flat_png, generate, make_builder, text, understand
from tests.helpers.tiny_runs import MICRO_FLOW

CONFIG = MICRO_FLOW
LOSS = ConfigDict(dict(normalization="tasks", alignment_weight=0.7, chunk_size=16, z_loss=0.0, skip_unsupervised=False))
SLOTS = dict.fromkeys(IMAGE_FEATURES, 2)


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, seed=0)


def make_rows(*rows):
    """Packed rows of records; (record, 1.0) drops its caption."""
    pairs = [[entry if isinstance(entry, tuple) else (entry, 0.0) for entry in row] for row in rows]
    items = [[PackedSample(r.task, (), build_sample(r, drop), "", ("", 0)) for r, drop in row] for row in pairs]
    return PackedBatch(**join_blocks([assemble(items, 96, IMAGE_FEATURES)], SLOTS))


def build_sample(record, drop):
    builder = make_builder(
        tokenizer=BYTE_TOKENIZER,
        understanding_tokens=CONFIG.siglip.num_tokens,
        generation_size=CONFIG.siglip.image_size,
        generation_tokens=CONFIG.image_tokens,
        row_length=96,
        generation_slots=2,
        drop_condition=drop,
        supervision="answers",
        flow=True,
    )
    return builder.build(record, np.random.default_rng(0))[0]


def make_batch(*rows, seed=0):
    packed = jax.tree.map(jnp.asarray, make_rows(*rows))
    rng, uvit = np.random.default_rng(seed), CONFIG.uvit
    shape = (len(rows), 2, uvit.latent_size, uvit.latent_size, uvit.latent_channels)
    latents, noise = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(2))
    return FlowBatch(packed, latents, noise, jnp.asarray(rng.uniform(size=shape[:2]), jnp.float32))


QUESTION = understand("<image>\nA?", "no", images=[flat_png(90)])
IMAGE, OTHER_IMAGE = generate("a", flat_png(30)), generate("bb", flat_png(200))
TEXT = text("q", "xyz")


@pytest.fixture(scope="module")
def batch():
    return make_batch([QUESTION, IMAGE], [OTHER_IMAGE, TEXT, IMAGE])


def objective(loss=LOSS, config=CONFIG):
    return jax.jit(janusflow_objective(config, Execution(), loss).__call__)


@pytest.fixture(scope="module")
def run():
    """The objective. All its batches have two rows, so that it is compiled once."""
    return objective()


@pytest.fixture(scope="module")
def value_and_gradient(run):
    return jax.jit(jax.value_and_grad(lambda params, batch: run(params, batch)[0]))


@jax.jit
def alone(params, prompt, z, t, pixels):
    """Velocity, projected features after the first block, and SigLIP's features of one image after its prompt alone."""
    apply, n = bind(build(CONFIG), params), CONFIG.uvit.num_tokens
    encoded = apply(z[None], 1000 * t[None], method="encode_latents")
    x = jnp.concatenate([apply(prompt[None], method="embed_text"), apply(encoded, method="embed_latents")], axis=1)
    places, ones = jnp.arange(x.shape[1])[None], jnp.ones((1, x.shape[1]), jnp.int32)
    hidden, _ = apply(x, places, ones)
    cut = dataclasses.replace(CONFIG, alignment=None, llama=dataclasses.replace(CONFIG.llama, depth=1))
    decoder = params["llm"]["decoder"]
    first = jax.tree.map(lambda leaf: leaf[:1], decoder["layers"])
    short = params | {"llm": params["llm"] | {"decoder": decoder | {"layers": first}}}
    features = bind(build(cut), short)(x, places, ones, method="blocks")[:, -n:]
    pixels = normalize(pixels[None], jnp.float32)
    velocity = apply(hidden[:, -n:], encoded, method="velocity")
    return velocity[0], apply(features, method="align")[0], apply(pixels, method="understand")[0]


def by_hand(params, batch, row, start, slot):
    """(flow loss, alignment loss) of one image: its segment alone, in float64 NumPy."""
    data, noise, t = batch.latents[row, slot], batch.noise[row, slot], batch.time[row, slot]
    segment = np.flatnonzero(np.asarray(batch.rows.segment_ids[row]) == slot_segment(batch, row, slot))
    prompt, pixels = batch.rows.tokens[row, segment[:start]], batch.rows.gen_pixels[row, slot]
    outputs = alone(params, prompt, t * data + (1 - t) * noise, t, pixels)
    velocity, predicted, target = (np.asarray(output, np.float64) for output in outputs)
    flow = np.mean((velocity - (np.asarray(data, np.float64) - np.asarray(noise, np.float64))) ** 2)
    cosine = (predicted * target).sum(-1) / np.linalg.norm(predicted, axis=-1) / np.linalg.norm(target, axis=-1)
    return flow, -cosine.mean()


def slot_segment(batch, row, slot):
    generated = np.asarray(batch.rows.modality[row]) == Modality.GENERATION_IMAGE
    return np.unique(np.asarray(batch.rows.segment_ids[row])[generated])[slot]


def prompt_length(record):
    return int((build_sample(record, 0.0)["modality"] == Modality.TEXT).sum())


def test_image_terms_are_those_of_each_image_alone_in_float64(run, params, batch):
    """Two images of one row and one of another, among other samples; one slot is empty."""
    _, metrics = run(params, batch)
    places = [(0, prompt_length(IMAGE), 0), (1, prompt_length(OTHER_IMAGE), 0), (1, prompt_length(IMAGE), 1)]
    expected = np.array([by_hand(params, batch, *place) for place in places])
    assert [float(metrics[f"loss/{name}"][1]) for name in ("flow", "alignment")] == [3.0, 3.0]
    got = [float(metrics[f"loss/{name}"][0]) for name in ("flow", "alignment")]
    np.testing.assert_allclose(got, expected.sum(axis=0), rtol=1e-5)


@pytest.mark.parametrize("normalization", ["tasks", "tokens"])
def test_the_loss_is_the_sum_of_its_terms(run, params, batch, normalization):
    other = objective(ConfigDict(LOSS.to_dict() | {"normalization": "tokens"}))
    total, metrics = (run if normalization == LOSS.normalization else other)(params, batch)
    sums = {name: float(metrics[f"loss/{name}"][0]) for name in ("understand", "text", "flow", "alignment")}
    text_tokens = float(batch.rows.text_weights.sum())
    words, images = sums["understand"] + sums["text"], sums["flow"] + 0.7 * sums["alignment"]
    n = CONFIG.uvit.num_tokens
    expected = {"tasks": words / text_tokens + images / 3, "tokens": (words + n * images) / (text_tokens + 3 * n)}
    np.testing.assert_allclose(float(total), expected[normalization], rtol=1e-5)
    assert float(metrics["images"][0]) == pytest.approx(4.0)
    counts = {task: int(metrics[f"tokens/{task}"][0]) for task in ("understand", "text", "generate")}
    assert counts["generate"] == 3 * n and counts["understand"] + counts["text"] == text_tokens
    assert counts["text"] == float(metrics["loss/text"][1]) > 0


def gradient_paths(gradient):
    return {path.split("/")[0] for path, leaf in flatten(gradient).items() if np.abs(leaf).max() > 0}


def test_generation_images_give_a_gradient_to_all_modules_of_generation_and_none_to_siglip(value_and_gradient, params):
    """Its features are only targets of the alignment (JanusFlow, 3.4)."""
    images = make_batch([IMAGE], [OTHER_IMAGE])
    _, gradient = value_and_gradient(params, images)
    assert gradient_paths(gradient) == {
        "llm",
        "gen_encoder",
        "gen_aligner",
        "gen_decoder",
        "gen_decoder_norm",
        "gen_decoder_aligner",
        "alignment_head",
    }


def test_without_alignment_neither_its_projector_nor_siglip_is_run(run, params, batch):
    config = dataclasses.replace(CONFIG, alignment=None)
    _, metrics = objective(config=config)({k: v for k, v in params.items() if k != "alignment_head"}, batch)
    _, with_alignment = run(params, batch)
    assert "loss/alignment" not in metrics
    np.testing.assert_allclose(metrics["loss/flow"][0], with_alignment["loss/flow"][0], rtol=1e-5)


def with_caption_masked(batch):
    """A row whose second sample dropped its caption, as the sampler's unconditional half: it is there, but hidden."""
    kept = jax.tree.map(np.array, make_rows([OTHER_IMAGE, IMAGE], []))
    start, length = prompt_length(OTHER_IMAGE) + CONFIG.image_tokens, prompt_length(IMAGE)
    kept.segment_ids[0, start + 1 : start + length] = 0
    kept.modality[0, start + 1 : start + length] = Modality.PADDING
    return batch._replace(rows=batch.rows._replace(**{name: getattr(kept, name) for name in ROW_FIELDS}))


ROW_FIELDS = ("tokens", "modality", "segment_ids", "positions")


def test_leaving_out_a_dropped_caption_is_masking_it(run, value_and_gradient, params):
    """Loss and gradient of rows without the caption, where the image keeps its positions, and of rows that hide it."""
    left_out = make_batch([OTHER_IMAGE, (IMAGE, 1.0)], [])
    masked = with_caption_masked(left_out)
    assert int((left_out.rows.segment_ids > 0).sum()) == int((masked.rows.segment_ids > 0).sum())
    assert int(left_out.rows.modality[0].argmin()) < int(masked.rows.segment_ids[0].nonzero()[0].max())
    (loss, gradient), (masked_loss, masked_gradient) = (value_and_gradient(params, rows) for rows in (left_out, masked))
    np.testing.assert_allclose(loss, masked_loss, rtol=1e-5)
    scale = max(np.abs(leaf).max() for leaf in flatten(masked_gradient).values())
    for path, leaf in flatten(gradient).items():
        np.testing.assert_allclose(leaf, flatten(masked_gradient)[path], rtol=1e-5, atol=1e-5 * scale, err_msg=path)
    renumbered = make_rows([OTHER_IMAGE, (IMAGE, 0.0)], []).positions  # from 0 one by one in the second sample too
    renumbered = left_out._replace(rows=left_out.rows._replace(positions=jnp.asarray(renumbered)))
    assert abs(run(params, renumbered)[0] - masked_loss) > 1e-4 * abs(masked_loss)


def test_a_dropped_caption_is_trained_as_the_sampler_generates_without_one(run, params):
    """The velocity of the unconditional half, at the time and the latents of the training example."""
    batch = make_batch([(IMAGE, 1.0)], [])
    prompt = build_sample(IMAGE, 0.0)["tokens"][: prompt_length(IMAGE)].tolist()
    model, (data, noise, t) = build(CONFIG), (batch.latents[:1, 0], batch.noise[:1, 0], batch.time[0, 0])

    @jax.jit
    def both_velocities(params):
        prefix = read_prompts(model, params, pad_prompts([prompt], (), 32))
        return velocities(model, params, prefix, t * data + (1 - t) * noise, 1000 * t)

    _, unconditional = both_velocities(params)
    expected = np.mean((np.asarray(unconditional, np.float64) - np.asarray(data - noise, np.float64)) ** 2)
    np.testing.assert_allclose(run(params, batch)[1]["loss/flow"][0], expected, rtol=1e-5)
