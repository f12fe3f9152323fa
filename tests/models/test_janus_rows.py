"""Rows of mixed modalities: `Janus.embed` fills each position from the right input, and packing changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.batches import Modality
from janus_jax.models.params import build
from tests.helpers.small_models import SMALL, random_array, random_params

PARAMS = random_params(SMALL)
TOKENS = SMALL.siglip.num_tokens  # 4, as many as codes
SIZE = SMALL.siglip.image_size
TEXT, IMAGE, CODE = Modality.TEXT, Modality.UNDERSTANDING_IMAGE, Modality.GENERATION_IMAGE


@functools.partial(jax.jit, static_argnames="method")
def apply(*args, method="__call__"):
    return build(SMALL).apply({"params": PARAMS}, *args, method=method)


@jax.jit
def hidden_states(tokens, modality, segment_ids, positions, pixels):
    x = apply(tokens, modality, pixels, method="embed")
    return apply(x, positions, segment_ids)[0]


def sample(kind, seed):
    """(tokens, modality, image) of some text, then four positions of an image, then text."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 32, 4 + TOKENS)
    modality = np.full(4 + TOKENS, TEXT)
    modality[3 : 3 + TOKENS] = kind
    return tokens, modality, rng.uniform(-1, 1, (SIZE, SIZE, 3)).astype(np.float32)


def run(samples, slots):
    """Hidden states of each sample, computed with all samples packed into one row."""
    tokens, modality = (np.concatenate([sample[i] for sample in samples])[None] for i in (0, 1))
    lengths = [len(sample[0]) for sample in samples]
    segment_ids = np.repeat(np.arange(1, len(samples) + 1), lengths)[None]
    positions = np.concatenate([np.arange(length) for length in lengths])[None]
    images = [sample[2] for sample in samples if (sample[1] == IMAGE).any()]
    pixels = np.stack(images + [np.zeros((SIZE, SIZE, 3), np.float32)] * (slots - len(images)))[None]
    row = map(jnp.asarray, (tokens, modality, segment_ids, positions, pixels))
    return np.split(np.asarray(hidden_states(*row))[0], np.cumsum(lengths)[:-1])


def test_packed_samples_of_all_kinds_equal_the_samples_apart():
    samples = [sample(IMAGE, 1), sample(CODE, 2), sample(IMAGE, 3), sample(TEXT, 4)]
    packed = run(samples, slots=3)
    for part, alone in zip(packed, samples, strict=True):
        np.testing.assert_allclose(part, run([alone], slots=3)[0], rtol=0, atol=1e-5)
    swapped = run([samples[2], samples[1], samples[0], samples[3]], slots=3)
    assert np.abs(swapped[0] - packed[0]).max() > 0.1  # the images really reach their own samples


def test_embed_takes_each_position_from_its_own_source():
    tokens = jnp.array([[7, 30, 30, 30, 30, 9, 5, 6, 7, 8, 3]])
    modality = jnp.array([[TEXT] + [IMAGE] * 4 + [TEXT] + [CODE] * 4 + [Modality.PADDING]])
    pixels = random_array(1, 2, SIZE, SIZE, 3).clip(-1, 1)  # the second slot is unused
    x = np.asarray(apply(tokens, modality, pixels, method="embed"))[0]
    np.testing.assert_allclose(x[1:5], apply(pixels[:, 0], method="embed_images")[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(x[6:10], apply(tokens[:, 6:10], method="embed_codes")[0], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(x[[0, 5]], PARAMS["llm"]["embed_tokens"][jnp.array([7, 9])])


def test_tokens_at_image_positions_are_ignored():
    tokens, modality, image = sample(IMAGE, 1)
    other = np.where(modality == IMAGE, 31 - tokens, tokens)
    np.testing.assert_array_equal(run([(tokens, modality, image)], 1)[0], run([(other, modality, image)], 1)[0])


def test_code_embeddings_come_from_their_own_table_not_the_codebook():
    codes = jnp.arange(4)[None]
    before = apply(codes, method="embed_codes")
    changed = PARAMS | {"vq": jax.tree.map(lambda leaf: leaf + 1, PARAMS["vq"])}
    after = build(SMALL).apply({"params": changed}, codes, method="embed_codes")
    np.testing.assert_array_equal(after, before)
