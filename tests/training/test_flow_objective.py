"""JanusFlow's objective: its three terms against the closed form, what gets a gradient, and the sampler's masking."""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny_runs import MICRO_FLOW

from janus_jax.batch import FlowBatch, Modality, PackedBatch
from janus_jax.data.packing import IMAGE_FEATURES, Item, assemble, join_blocks
from janus_jax.models.config import Execution
from janus_jax.models.parameters import bind, build, flatten, init_params
from janus_jax.training.flow_objective import janusflow_loss
from janus_jax.training.objective import normalize

sys.path.append(str(Path(__file__).parents[1] / "data"))
from tiny_data import BYTE_TOKENIZER, flat_png, generate, make_builder, text, understand

CONFIG = MICRO_FLOW
LOSS = ConfigDict(dict(normalization="tasks", alignment_weight=0.7, chunk_size=16, z_loss=0.0))
SLOTS = dict.fromkeys(IMAGE_FEATURES, 2)


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, seed=0)


def make_rows(*rows, drop=0.0):
    """Packed rows of records."""
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
    items = [
        [Item(r.task, (), builder.build(r, np.random.default_rng(0))[0], "", ("", 0)) for r in row] for row in rows
    ]
    return PackedBatch(**join_blocks([assemble(items, 96, IMAGE_FEATURES)], SLOTS))


def make_batch(*rows, seed=0, **options):
    packed = jax.tree.map(jnp.asarray, make_rows(*rows, **options))
    rng, uvit = np.random.default_rng(seed), CONFIG.uvit
    shape = (len(rows), 2, uvit.latent_size, uvit.latent_size, uvit.latent_channels)
    latents, noise = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(2))
    return FlowBatch(packed, latents, noise, jnp.asarray(rng.uniform(size=shape[:2]), jnp.float32))


SEEN = understand("<image>\nA?", "no", images=[flat_png(90)])
DRAWN, OTHER = generate("a", flat_png(30)), generate("bb", flat_png(200))
SAID = text("q", "xyz")


@pytest.fixture(scope="module")
def batch():
    return make_batch([SEEN, DRAWN], [OTHER, SAID, DRAWN])


def objective(loss=LOSS, config=CONFIG):
    return jax.jit(janusflow_loss(config, Execution(), loss).__call__)


@pytest.fixture(scope="module")
def run():
    """The objective, compiled once per shape."""
    return objective()


def by_hand(params, batch, row, start, slot):
    """(flow loss, alignment loss) of one image: its segment alone, a whole LLM without cuts, NumPy in float64."""
    apply, n = bind(build(CONFIG), params), CONFIG.uvit.num_tokens
    length = start + 1 + n
    data, noise, t = batch.latents[row, slot], batch.noise[row, slot], batch.time[row, slot]
    z = t * data + (1 - t) * noise
    encoded = apply(z[None], 1000 * t[None], method="encode_latents")
    segment = [p for p in range(96) if int(batch.rows.segment_ids[row, p]) == slot_segment(batch, row, slot)]
    prompt = batch.rows.tokens[row, jnp.array(segment[:start])]
    x = jnp.concatenate([apply(prompt[None], method="embed_text"), apply(encoded, method="embed_latents")], axis=1)
    ones = jnp.ones((1, length), jnp.int32)
    hidden, _ = apply(x, jnp.arange(length)[None], ones)
    velocity = np.asarray(apply(hidden[:, -n:], encoded, method="velocity")[0], np.float64)
    flow = np.mean((velocity - (np.asarray(data, np.float64) - np.asarray(noise, np.float64))) ** 2)
    cut = dataclasses.replace(CONFIG, alignment=None, llama=dataclasses.replace(CONFIG.llama, depth=1))
    decoder = params["llm"]["decoder"]
    first = jax.tree.map(lambda leaf: leaf[:1], decoder["layers"])
    short = params | {"llm": params["llm"] | {"decoder": decoder | {"layers": first}}}
    features = bind(build(cut), short)(x, jnp.arange(length)[None], ones, method="blocks")[:, -n:]
    predicted = np.asarray(apply(features, method="align")[0], np.float64)
    pixels = normalize(batch.rows.gen_pixels[row, slot][None], jnp.float32)
    target = np.asarray(apply(pixels, method="understand")[0], np.float64)
    cosine = (predicted * target).sum(-1) / np.linalg.norm(predicted, axis=-1) / np.linalg.norm(target, axis=-1)
    return flow, -cosine.mean()


def slot_segment(batch, row, slot):
    drawn = np.asarray(batch.rows.modality[row]) == Modality.GENERATION_IMAGE
    return np.unique(np.asarray(batch.rows.segment_ids[row])[drawn])[slot]


def prompt_length(record):
    sample = make_rows([record])
    return int((sample.modality[0] == Modality.TEXT).sum())


def test_image_terms_are_those_of_each_image_alone_in_float64(run, params, batch):
    """Two images of one row and one of another, among other samples; one slot is empty."""
    _, metrics = run(params, batch)
    places = [(0, prompt_length(DRAWN), 0), (1, prompt_length(OTHER), 0), (1, prompt_length(DRAWN), 1)]
    expected = np.array([by_hand(params, batch, *place) for place in places])
    assert [float(metrics[f"loss/{name}"][1]) for name in ("flow", "alignment")] == [3.0, 3.0]
    got = [float(metrics[f"loss/{name}"][0]) for name in ("flow", "alignment")]
    np.testing.assert_allclose(got, expected.sum(axis=0), rtol=1e-5)


@pytest.mark.parametrize("normalization", ["tasks", "tokens"])
def test_the_loss_is_the_sum_of_its_terms(params, batch, normalization):
    total, metrics = objective(ConfigDict(LOSS.to_dict() | {"normalization": normalization}))(params, batch)
    sums = {name: float(metrics[f"loss/{name}"][0]) for name in ("understand", "text", "flow", "alignment")}
    text_tokens = float(batch.rows.text_weights.sum())
    words, images = sums["understand"] + sums["text"], sums["flow"] + 0.7 * sums["alignment"]
    n = CONFIG.uvit.num_tokens
    expected = {"tasks": words / text_tokens + images / 3, "tokens": (words + n * images) / (text_tokens + 3 * n)}
    np.testing.assert_allclose(float(total), expected[normalization], rtol=1e-5)
    assert float(metrics["images"][0]) == pytest.approx(4.0)


def gradient_paths(gradient):
    return {path.split("/")[0] for path, leaf in flatten(gradient).items() if np.abs(leaf).max() > 0}


def test_siglip_gets_no_gradient_from_drawings_and_everything_else_that_draws_does(run, params):
    """Through the alignment its features are targets only (JanusFlow, 3.4)."""
    drawings = make_batch([DRAWN], [OTHER])
    gradient = jax.jit(jax.grad(lambda p: run(p, drawings)[0]))(params)
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


def test_a_dropped_caption_changes_nothing_but_its_length(run, params):
    """As in the sampler's unconditional half: only BOS is seen, and all positions stay."""
    first, second, longer = (generate(words, flat_png(30)) for words in ("a", "b", "abc"))

    def flow(record, drop):
        return float(run(params, make_batch([record], drop=drop))[1]["loss/flow"][0])

    assert flow(first, 1.0) == flow(second, 1.0)
    assert flow(first, 0.0) != flow(second, 0.0)
    assert flow(first, 1.0) != flow(longer, 1.0)
