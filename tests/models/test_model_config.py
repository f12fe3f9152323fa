import dataclasses

import pytest

from janus_jax.models.presets import JANUS_1P3B, JANUS_PRO_1B, JANUS_PRO_7B, PRESETS, VQ_16
from tests.helpers.small_models import SMALL, SMALL_VQ


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (SMALL.llama, {"num_kv_heads": 3}, r"num_heads=4 .* multiple of num_kv_heads=3"),
        (SMALL.llama, {"num_kv_heads": 0}, r"num_kv_heads=0"),
        (SMALL.llama, {"head_dim": 7}, r"head_dim=7 .*RoPE"),
        (SMALL.siglip, {"patch_size": 5}, r"image_size=16 .* patch_size=5"),
        (SMALL.siglip, {"num_heads": 3}, r"width=16 .* num_heads=3"),
        (SMALL_VQ, {"norm_groups": 3}, r"base_channels=4 .* norm_groups=3"),
        (SMALL_VQ, {"image_size": 9}, r"image_size=9 .* downsampling factor=2"),
    ],
)
def test_sizes_that_do_not_fit_are_errors_that_name_both(config, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **change)


@pytest.mark.parametrize("config", [SMALL, SMALL.llama, SMALL.siglip, SMALL_VQ])
def test_no_constant_of_a_checkpoint_has_a_default(config):
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for name in values:
        with pytest.raises(TypeError, match=name):
            type(config)(**{key: value for key, value in values.items() if key != name})


def test_architectures_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALL.llama.width = 3


def test_released_presets_hold_the_published_hyper_parameters():
    """Constants that a parameter count does not show."""
    for config, heads in ((JANUS_1P3B, 16), (JANUS_PRO_1B, 16), (JANUS_PRO_7B, 32)):
        llama, siglip, vq = config.llama, config.siglip, config.vq
        assert (llama.num_heads, llama.num_kv_heads, llama.head_dim) == (heads, heads, 128)
        assert (llama.max_length, llama.rope_theta, llama.norm_eps, llama.init_std) == (16384, 10000.0, 1e-6, 0.02)
        assert (siglip.image_size, siglip.num_tokens, siglip.num_heads, siglip.norm_eps) == (384, 576, 16, 1e-6)
        assert (vq.grid, vq.num_tokens, vq.norm_groups, vq.norm_eps, vq.commitment) == (24, 576, 32, 1e-6, 0.25)
        assert config.image_tokens == 576
    styles = [config.prompt_style for config in (JANUS_1P3B, JANUS_PRO_1B, JANUS_PRO_7B)]
    assert styles == ["janus", "janus_pro", "janus_pro"]
    assert PRESETS["vq16"] == VQ_16 == JANUS_PRO_7B.vq


def test_grid_follows_from_image_size_and_levels():
    assert (SMALL_VQ.downsampling, SMALL_VQ.grid, SMALL_VQ.num_tokens) == (2, 4, 16)
    assert dataclasses.replace(SMALL_VQ, image_size=12).num_tokens == 36
