"""Counts, names, axes and fresh values of parameters."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from janus_jax.models.params import abstract_params, count, flatten, init_params, logical_axes, unflatten
from janus_jax.models.presets import JANUS_1P3B, JANUS_PRO_1B, JANUS_PRO_7B, JANUS_PRO_TINY, PRESETS
from tests.helpers.small_models import SMALL

GOLDEN = Path(__file__).parent
COMMON = {
    "siglip": 303_688_704,
    "vq": 71_883_403,
    "vq/encoder": 29_298_176,
    "vq/decoder": 42_449_795,
    "vq/codebook": 131_072,
    "vq/quant_conv": 2_056,
    "vq/post_quant_conv": 2_304,
    "gen_embed": 131_072,
}
SIZE_1B = COMMON | {
    "aligner": 6_295_552,
    "gen_aligner": 4_214_784,
    "gen_head": 37_767_168,
    "llm": 1_652_656_128,
    "llm/embed_tokens": 209_715_200,
    "llm/lm_head": 209_715_200,
    "llm/decoder/layers": 24 * 51_384_320,
    "": 2_076_636_811,
}
SIZE_7B = COMMON | {
    "aligner": 20_979_712,
    "gen_aligner": 16_818_176,
    "gen_head": 83_906_560,
    "llm": 6_910_365_696,
    "llm/embed_tokens": 419_430_400,
    "llm/lm_head": 419_430_400,
    "llm/decoder/layers": 30 * 202_383_360,
    "": 7_407_773_323,
}


@pytest.mark.parametrize(
    ("config", "expected"),
    [(JANUS_PRO_1B, SIZE_1B), (JANUS_PRO_7B, SIZE_7B)],
    ids=["janus_pro_1b", "janus_pro_7b"],
)
def test_full_size_counts_equal_the_reference(config, expected):
    """The reference is the released checkpoint without SigLIP's unused attention pool."""
    sizes = {path: leaf.size for path, leaf in flatten(abstract_params(config)).items()}
    counts = {
        part: sum(size for path, size in sizes.items() if not part or path == part or path.startswith(f"{part}/"))
        for part in expected
    }
    assert counts == expected


def test_janus_1p3b_has_the_parameters_of_janus_pro_1b():
    assert dataclasses.replace(JANUS_1P3B, prompt_style=JANUS_PRO_1B.prompt_style) == JANUS_PRO_1B


def table(config):
    """Lines with path, shape and logical axes of each parameter."""
    axes = logical_axes(config)
    shapes = {path: leaf.shape for path, leaf in flatten(abstract_params(config)).items()}
    return [f"{path} {list(shape)} {[axis or '-' for axis in axes[path]]}" for path, shape in sorted(shapes.items())]


@pytest.mark.parametrize("name", ["janus_pro_tiny", "janusflow_tiny", "vae_tiny"])
def test_names_shapes_and_axes_equal_the_golden_file(name):
    """Paths are a contract with checkpoints, sharding and freezing: a change here is a migration."""
    assert table(PRESETS[name]) == (GOLDEN / f"{name}_parameters.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def fresh():
    return {path: np.asarray(value) for path, value in flatten(init_params(SMALL, seed=0)).items()}


def is_constant(path, values):
    """Whether values are constant: those of norms are, while each other bias belongs to a weight and is random."""
    return path.endswith("/scale") or (path.endswith("/bias") and f"{path[:-4]}kernel" not in values)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(fresh):
    again, other = (flatten(init_params(SMALL, seed=seed)) for seed in (0, 1))
    for path, value in fresh.items():
        np.testing.assert_array_equal(again[path], value, err_msg=path)
        assert is_constant(path, fresh) == np.array_equal(other[path], value), path


def test_every_parameter_and_every_layer_is_drawn_apart(fresh):
    first_values = [
        tuple(layer.reshape(-1)[:4])
        for path, value in fresh.items()
        if path.endswith("kernel")
        for layer in (value if "/layers/" in path else [value])
    ]
    assert len(set(first_values)) == len(first_values) > 50


def test_values_with_shardings_are_the_same_bits(fresh):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = unflatten(dict.fromkeys(fresh, device))
    for path, value in flatten(init_params(SMALL, 0, shardings)).items():
        np.testing.assert_array_equal(value, fresh[path], err_msg=path)


def test_fresh_values_follow_the_declared_distributions():
    """They are those of the original code, for position embeddings of SigLIP's, for the LLM the preset's."""
    fresh = {path: np.asarray(value) for path, value in flatten(init_params(JANUS_PRO_TINY, seed=0)).items()}
    assert {value.dtype for value in fresh.values()} == {np.dtype(np.float32)}
    for path, value in fresh.items():
        kernel = fresh.get(f"{path.rsplit('/', 1)[0]}/kernel")
        if path == "vq/codebook":
            np.testing.assert_allclose(np.linalg.norm(value, axis=1), 1, rtol=1e-6)
            assert np.abs(value.mean(0)).max() < 0.1
        elif path == "gen_embed":
            assert_normal(path, value, 1.0)
        elif path == "siglip/pos_embed":
            assert_normal(path, value, JANUS_PRO_TINY.siglip.width**-0.5)
        elif is_constant(path, fresh):
            assert (value == float(path.endswith("/scale"))).all(), path
        elif path.startswith("llm/"):
            assert_normal(path, value, JANUS_PRO_TINY.llama.init_std)
        else:
            fan_in = np.prod(kernel.shape[int("/layers/" in path) : -1])
            assert_uniform(path, value, fan_in**-0.5)


def assert_normal(path, value, std):
    """Within five standard errors."""
    assert abs(value.mean()) < 5 * std / np.sqrt(value.size), path
    assert abs(value.std() / std - 1) < 5 / np.sqrt(2 * value.size), path


def assert_uniform(path, value, bound):
    assert np.abs(value).max() <= bound, path
    if value.size > 100:
        assert np.abs(value).max() > bound * (1 - 10 / value.size), path
        assert abs(value.mean()) < 5 * bound / np.sqrt(3 * value.size), path
        assert abs(value.std() * np.sqrt(3) / bound - 1) < 5 / np.sqrt(value.size), path


def test_flatten_and_unflatten_are_inverse():
    params = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert flatten(params) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert unflatten(flatten(params)) == params
    assert count({"x": np.zeros((2, 3)), "y": {"z": np.zeros(4)}}) == 10
