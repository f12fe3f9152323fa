"""The semantic tokenizer: its decoder against PyTorch, causality, and one code at a time against all at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from janus_jax.models.config import SemanticDecoderConfig, SemanticTokenizerConfig, SiglipConfig
from janus_jax.models.execution import Execution
from janus_jax.models.params import abstract_params, bind, build, count, flatten
from janus_jax.models.presets import PRESETS, SEMANTIC_VQ_16
from janus_jax.models.semantic_tokenizer import init_semantic_cache
from tests.helpers.small_models import SMALL_VQ, random_array, random_params

SMALL = SemanticTokenizerConfig(
    vq=dataclasses.replace(SMALL_VQ, image_size=8),
    decoder=SemanticDecoderConfig(width=24, depth=2, num_heads=3, mlp_dim=40, norm_eps=1e-6),
    teacher=SiglipConfig(image_size=8, patch_size=2, width=20, depth=1, num_heads=2, mlp_dim=32, norm_eps=1e-6),
)
PARAMS = random_params(SMALL)
CODES = jnp.asarray(np.random.default_rng(0).integers(0, SMALL.vq.num_codes, (2, 16)))


@pytest.fixture(scope="module")
def features():
    return np.asarray(jax.jit(lambda codes: bind(build(SMALL), PARAMS)(codes, method="features")[0])(CODES))


def torch_features(codes):
    """Features and predictions by torch's own transformer layers, pre-norm and causal."""
    params = {path: torch.tensor(np.asarray(leaf)) for path, leaf in flatten(PARAMS).items()}
    codebook = torch.nn.functional.normalize(params["vq/codebook"], dim=-1)
    x = codebook[torch.tensor(np.asarray(codes))] @ params["semantic/input/kernel"] + params["semantic/input/bias"]
    x = x + params["semantic/pos_embed"]
    c = SMALL.decoder
    mask = torch.nn.Transformer.generate_square_subsequent_mask(x.shape[1])
    for i in range(c.depth):
        leaf = {path.removeprefix("semantic/layers/"): value[i] for path, value in params.items() if "/layers/" in path}
        layer = torch.nn.TransformerEncoderLayer(
            c.width, c.num_heads, c.mlp_dim, 0.0, "gelu", c.norm_eps, batch_first=True, norm_first=True
        ).eval()
        names = ("q_proj", "k_proj", "v_proj")
        state = {
            "self_attn.in_proj_weight": torch.cat([leaf[f"{name}/kernel"].T for name in names]),
            "self_attn.in_proj_bias": torch.cat([leaf[f"{name}/bias"] for name in names]),
        }
        modules = {"self_attn.out_proj": "o_proj", "linear1": "fc1", "linear2": "fc2"}
        state |= {f"{theirs}.weight": leaf[f"{ours}/kernel"].T for theirs, ours in modules.items()}
        modules |= {"norm1": "attention_norm", "norm2": "mlp_norm"}
        state |= {f"{theirs}.bias": leaf[f"{ours}/bias"] for theirs, ours in modules.items()}
        state |= {f"{theirs}.weight": leaf[f"{modules[theirs]}/scale"] for theirs in ("norm1", "norm2")}
        layer.load_state_dict(state)
        x = layer(x, src_mask=mask, is_causal=True)
    norm = (params["semantic/norm/scale"], params["semantic/norm/bias"])
    x = torch.nn.functional.layer_norm(x, (c.width,), *norm, c.norm_eps)
    hidden = torch.tanh(x @ params["head/hidden/kernel"] + params["head/hidden/bias"])
    return x.detach().numpy(), (hidden @ params["head/output/kernel"] + params["head/output/bias"]).detach().numpy()


def test_features_equal_torch(features):
    np.testing.assert_allclose(features, torch_features(CODES)[0], rtol=0, atol=1e-5)


def test_training_sees_the_features_of_the_codes_that_it_chooses():
    pixels = random_array(2, 8, 8, 3).clip(-1, 1)
    output = jax.jit(bind(build(SMALL), PARAMS))(pixels)
    expected, predicted = torch_features(output.vq.codes)
    np.testing.assert_allclose(output.features, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(output.predicted, predicted, rtol=0, atol=1e-5)


def test_a_feature_does_not_depend_on_later_codes(features):
    changed = CODES.at[:, 9:].set((CODES[:, 9:] + 1) % SMALL.vq.num_codes)
    other = jax.jit(lambda codes: bind(build(SMALL), PARAMS)(codes, method="features")[0])(changed)
    np.testing.assert_array_equal(other[:, :9], features[:, :9])
    assert (np.abs(other - features)[:, 9:].max(-1) > 1e-3).all()


@pytest.mark.parametrize("pieces", [[1] * 16, [5, 1, 10]])
def test_one_code_at_a_time_equals_all_at_once(features, pieces):
    @jax.jit
    def step(codes, cache):
        return bind(build(SMALL), PARAMS)(codes, cache, method="features")

    cache, found, first = init_semantic_cache(SMALL, jnp.float32, 2), [], 0
    for length in pieces:
        new, cache = step(CODES[:, first : first + length], cache)
        found.append(new)
        first += length
    assert int(cache.length) == 16
    np.testing.assert_allclose(np.concatenate(found, axis=1), features, rtol=0, atol=1e-5)


def test_features_teach_the_encoder_and_not_the_codebook():
    pixels, weights = random_array(1, 8, 8, 3), random_array(1, 16, 20, seed=1)

    @jax.jit
    @jax.grad
    def gradient(part):
        params = PARAMS | {"vq": PARAMS["vq"] | part}
        return jnp.sum(bind(build(SMALL, Execution()), params)(pixels).predicted * weights)

    gradients = gradient({name: PARAMS["vq"][name] for name in ("codebook", "quant_conv")})
    assert (np.asarray(gradients["codebook"]) == 0).all()
    assert (np.abs(gradients["quant_conv"]["kernel"]) > 1e-5).all()


def test_the_papers_decoder_has_twelve_layers_of_width_768():
    shapes = abstract_params(SEMANTIC_VQ_16)
    assert SEMANTIC_VQ_16 is PRESETS["semantic_vq16"]
    layer = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    assert count(shapes["semantic"]["layers"]) == 12 * layer
    assert count(shapes["semantic"]) == 12 * layer + (8 * 768 + 768) + 576 * 768 + 2 * 768
    assert count(shapes["head"]) == 768 * 768 + 768 + 768 * 1024 + 1024
    assert flatten(shapes["vq"]).keys() == flatten(abstract_params(PRESETS["vq16"])).keys()


def test_the_teacher_must_have_a_feature_for_each_code():
    with pytest.raises(ValueError, match=r"teacher: 16 features of an image of 8 pixels, but vq has 4 codes of 4"):
        dataclasses.replace(SMALL, vq=dataclasses.replace(SMALL.vq, image_size=4))
