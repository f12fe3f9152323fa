"""The arms of the ablation: their inputs of the language model against compositions of the separate modules."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.batches import Modality
from janus_jax.models.config import SemanticDecoderConfig, SemanticTokenizerConfig, SiglipConfig
from janus_jax.models.execution import Execution
from janus_jax.models.params import abstract_params, bind, build, count, flatten
from janus_jax.models.presets import JANUS_1P3B, PRESETS, ablation_arms
from janus_jax.models.scan_layers import unstack_layers
from tests.helpers.small_models import SMALL, random_array, random_params

SEMANTIC = SemanticDecoderConfig(width=12, depth=2, num_heads=3, mlp_dim=20, norm_eps=1e-6)
ARMS = ablation_arms(SMALL, SEMANTIC)
SIZE, CODES = SMALL.vq.image_size, SMALL.vq.num_tokens
MODULES = {
    "a": {"vq", "gen_embed", "gen_aligner", "gen_head", "llm"},
    "b": {"vq", "semantic", "gen_aligner", "gen_head", "llm"},
    "c": {"vq", "semantic", "gen_aligner", "llm"},
    "e": {"siglip", "aligner", "llm"},
    "f": {"vq", "gen_embed", "gen_aligner", "gen_head", "llm"},
}


@functools.partial(jax.jit, static_argnames=("config", "method"))
def apply(config, params, *args, method):
    """A method of a model; compiled, since single operations take longer to start than to compute."""
    return bind(build(config), params)(*args, method=method)


def pixels(size, number=2, seed=0):
    return random_array(number, size, size, 3, seed=seed)


def code_features(arm, codes):
    """What stands for codes [B, N] before the adaptor, from the semantic tokenizer's own module or from the table."""
    params = random_params(ARMS[arm])
    if arm in "bc":
        teacher = SiglipConfig(image_size=SIZE, patch_size=2, width=8, depth=1, num_heads=1, mlp_dim=8, norm_eps=1e-6)
        whole = SemanticTokenizerConfig(vq=SMALL.vq, decoder=SEMANTIC, teacher=teacher)
        return apply(whole, {**random_params(whole), **params}, codes, method="features")[0]
    return params["gen_embed"][codes]


def align(module, params, depth, features):
    x, layers = features, params[module]
    for i in range(depth):
        x = jax.nn.gelu(x, approximate=False) if i else x
        x = x @ layers[f"linear_{i}"]["kernel"] + layers[f"linear_{i}"]["bias"]
    return x


@pytest.mark.parametrize("arm", MODULES)
def test_an_arm_has_the_modules_that_it_needs(arm):
    assert abstract_params(ARMS[arm]).keys() == MODULES[arm]


def test_the_full_size_arms_have_the_parameters_of_their_parts():
    semantic, b = (abstract_params(PRESETS[name]) for name in ("semantic_vq16", "janus_1p3b_arm_b"))
    assert count([b["vq"], b["semantic"]]) == count([semantic["vq"], semantic["semantic"]])
    assert PRESETS["janus_1p3b_arm_d"] == JANUS_1P3B


@pytest.mark.parametrize("arm", ["b", "c"])
def test_codes_are_read_as_they_are_generated(arm):
    params, images = random_params(ARMS[arm]), pixels(SIZE)
    codes = apply(SMALL.vq, params["vq"], images, method="encode")
    found = apply(ARMS[arm], params, images, method="embed_images")
    expected = align("gen_aligner", params, SMALL.gen_aligner_depth, code_features(arm, codes))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert len(np.unique(codes)) > 2


def test_an_adaptor_of_its_own_is_not_that_of_generation():
    config = dataclasses.replace(ARMS["a"], shared_aligner=False)
    params, images = random_params(config), pixels(SIZE)
    codes = apply(SMALL.vq, params["vq"], images, method="encode")
    found = apply(config, params, images, method="embed_images")
    expected = align("aligner", params, SMALL.aligner_depth, params["gen_embed"][codes])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_variant_with_the_parts_of_janus_is_janus():
    config = dataclasses.replace(ARMS["a"], encoder=SMALL.siglip)
    params = random_params(SMALL)
    assert flatten(abstract_params(config)).keys() == flatten(params).keys()
    row = mixed_row()
    images = pixels(SMALL.siglip.image_size)[None, :1]
    found, expected = (apply(c, params, *row, images, method="embed") for c in (config, SMALL))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def mixed_row(gap=1):
    """(tokens, modality) [1, L]: text, an image that was read, text, and two generated ones with text between."""
    rng = np.random.default_rng(3)
    kinds = [Modality.TEXT, Modality.UNDERSTANDING_IMAGE, Modality.TEXT, Modality.GENERATION_IMAGE, Modality.TEXT]
    modality = np.repeat([*kinds, Modality.GENERATION_IMAGE], [3, CODES, 2, CODES, gap, CODES])[None]
    return jnp.asarray(rng.integers(0, 32, modality.shape)), jnp.asarray(modality)


def test_a_row_takes_each_position_from_its_own_source():
    arm = "b"
    params, (tokens, modality) = random_params(ARMS[arm]), mixed_row()
    image = pixels(SIZE, number=1)
    found = np.asarray(apply(ARMS[arm], params, tokens, modality, image[None], method="embed"))[0]
    codes = [tokens[0, start : start + CODES] for start in (5 + CODES, 6 + 2 * CODES)]
    expected = np.array(params["llm"]["embed_tokens"][tokens[0]])
    features = align("gen_aligner", params, SMALL.gen_aligner_depth, code_features(arm, jnp.stack(codes)))
    expected[5 + CODES : 5 + 2 * CODES], expected[6 + 2 * CODES :] = features
    read = apply(ARMS[arm], params, image, method="embed_images")
    expected[3 : 3 + CODES] = read[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_generated_codes_one_at_a_time_equal_all_at_once():
    params, codes = random_params(ARMS["b"]), jnp.asarray(np.random.default_rng(1).integers(0, 32, (3, CODES)))
    expected = apply(ARMS["b"], params, codes, method="embed_codes")
    model = build(ARMS["b"], Execution(scan_layers=False))

    @jax.jit
    def step_by_step(params, codes):
        step = bind(model, unstack_layers(params))
        cache, found = step(3, method="empty_cache"), []
        for i in range(CODES):
            x, cache = step(codes[:, i : i + 1], cache, method="embed_next_codes")
            found.append(x)
        return jnp.concatenate(found, axis=1)

    np.testing.assert_allclose(step_by_step(params, codes), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"understands": False, "generates": False}, "understands=False and generates=False"),
        ({"vq": None}, "vq is missing"),
        ({"understands": False, "encoder": SMALL.siglip}, "encoder .* understands=False"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ARMS["a"], **fields)
