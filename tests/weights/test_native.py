import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.errors import UserError
from janus_jax.models.config import VQConfig
from janus_jax.models.params import flatten, init_params
from janus_jax.models.presets import PRESETS
from janus_jax.weights.load import load_params
from janus_jax.weights.native import (
    open_params,
    params_path,
    read_architecture,
    save_params,
    write_architecture,
)

CONFIG = VQConfig(
    image_size=4,
    base_channels=2,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    z_channels=3,
    code_dim=2,
    num_codes=8,
    norm_groups=2,
    norm_eps=1e-6,
    commitment=0.25,
)


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, seed=0)


@pytest.fixture(scope="module")
def exported(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    save_params(folder, CONFIG, params)
    return folder


def assert_same_bits(left, right):
    left, right = flatten(left), flatten(right)
    assert left.keys() == right.keys()
    for path, value in left.items():
        assert value.dtype == right[path].dtype, path
        np.testing.assert_array_equal(value, right[path], err_msg=path)


KINDS_OF_PRESETS = {
    "janusflow_1p3b": "janusflow",
    "janusflow_digits": "janusflow",
    "janusflow_tiny": "janusflow",
    "sdxl_vae": "vae",
    "vae_tiny": "vae",
    "semantic_vq16": "semantic_vq",
    "semantic_vq_tiny": "semantic_vq",
    "vq16": "vq",
    "vq_digits": "vq",
    "vq_digits_large": "vq",
    "vq_tiny": "vq",
    **{f"{size}_arm_{arm}": "janus_variant" for size in ("janus_1p3b", "janus_pro_tiny") for arm in "abcef"},
}


@pytest.mark.parametrize("name", PRESETS)
def test_architecture_round_trip(name, tmp_path):
    write_architecture(tmp_path, PRESETS[name])
    assert read_architecture(tmp_path) == PRESETS[name]
    content = json.loads((tmp_path / "model.json").read_text())
    assert content["kind"] == KINDS_OF_PRESETS.get(name, "janus")


def test_saved_parameters_come_back_bit_for_bit(exported, params):
    assert read_architecture(exported) == CONFIG
    loaded = load_params(open_params(exported, CONFIG))
    assert_same_bits(loaded, params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded))


def test_parameters_are_cast_while_loading_when_asked(exported, params):
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert_same_bits(load_params(open_params(exported, CONFIG), jnp.bfloat16), narrow)


def test_the_newest_checkpoint_of_a_training_folder_is_read(params, exported, tmp_path):
    for step, factor in ((2, 2.0), (10, 10.0), (9, 9.0)):  # by number, not by name
        save_params(tmp_path / "checkpoints" / str(step), CONFIG, jax.tree.map(lambda leaf, f=factor: leaf * f, params))
    (tmp_path / "checkpoints" / "11.orbax-checkpoint-tmp").mkdir()  # an unfinished save
    assert params_path(tmp_path) == tmp_path / "checkpoints" / "10" / "params"
    assert_same_bits(load_params(open_params(tmp_path, CONFIG)), jax.tree.map(lambda leaf: leaf * 10.0, params))
    assert params_path(exported) == exported / "params"


def test_relative_folders_work(exported, params, monkeypatch):
    monkeypatch.chdir(exported.parent)
    assert_same_bits(load_params(open_params("model", CONFIG)), params)


def good_content():
    return {"format_version": 1, "kind": "vq", "config": dataclasses.asdict(CONFIG)}


DAMAGED = {
    "not JSON": "{",
    "empty": "",
    "a list": "[]",
    "null": "null",
    "not UTF-8": b"\xff\xfe{",
    "unknown kind": json.dumps(good_content() | {"kind": "janusflow"}),
    "kind is a list": json.dumps(good_content() | {"kind": ["vq"]}),
    "no kind": json.dumps({key: value for key, value in good_content().items() if key != "kind"}),
    "no version": json.dumps({key: value for key, value in good_content().items() if key != "format_version"}),
    "config is a list": json.dumps(good_content() | {"config": [1]}),
    "config of another kind": json.dumps(good_content() | {"kind": "janus"}),
    "missing field": json.dumps(
        good_content() | {"config": {k: v for k, v in dataclasses.asdict(CONFIG).items() if k != "norm_eps"}}
    ),
    "unknown field": json.dumps(good_content() | {"config": dataclasses.asdict(CONFIG) | {"groups": 3}}),
    "impossible sizes": json.dumps(good_content() | {"config": dataclasses.asdict(CONFIG) | {"norm_groups": 3}}),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_model_json_is_a_user_error_that_names_it(content, tmp_path):
    path = tmp_path / "model.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=rf"{path}: "):
        read_architecture(tmp_path)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_version_is_refused_with_both_numbers(version, tmp_path):
    (tmp_path / "model.json").write_text(json.dumps(good_content() | {"format_version": version}))
    shown = " is missing" if version is None else f"={version!r}"
    with pytest.raises(UserError, match=rf"^{tmp_path}/model\.json: format_version{shown}, expected 1$"):
        read_architecture(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("prompt_style", "janus_max", "one of janus, janus_pro"),
        ("prompt_style", ["janus"], "one of janus, janus_pro"),
        ("llama", 7, "an object"),
        ("llama.width", "96", "a whole number from 1 to"),
        ("llama.width", 96.0, "a whole number from 1 to"),
        ("llama.depth", True, "a whole number from 1 to"),
        ("llama.depth", 10**6, "a whole number from 1 to 1024"),
        ("llama.vocab_size", 10**12, "a whole number from 1 to 16777216"),
        ("siglip.patch_size", 0, "a whole number from 1 to"),
        ("siglip.norm_eps", "1e-6", "a number from 0"),
        ("llama.rope_theta", float("nan"), "a number from 0"),
        ("vq.commitment", -0.25, "a number from 0"),
        ("vq.channel_multipliers", 4, "a list of 1 to 16"),
        ("vq.channel_multipliers", [1] * 17, "a list of 1 to 16"),
        ("aligner_depth", "", "a whole number from 1 to 1024"),
    ],
)
def test_a_field_that_is_not_as_annotated_is_named_with_its_value(field, value, expected, tmp_path):
    config = dataclasses.asdict(PRESETS["janus_pro_tiny"])
    place, _, name = field.rpartition(".")
    (config[place] if place else config)[name] = value
    (tmp_path / "model.json").write_text(json.dumps({"format_version": 1, "kind": "janus", "config": config}))
    shown = re.escape(repr(value)) if len(repr(value)) < 20 else ""
    with pytest.raises(UserError, match=rf"model\.json: config\.{field}={shown}.*, expected {expected}"):
        read_architecture(tmp_path)


@pytest.mark.parametrize("exists", [True, False])
def test_folder_without_model_json_is_a_user_error(exists, tmp_path):
    folder = tmp_path if exists else tmp_path / "missing"
    with pytest.raises(UserError, match=rf"{folder}: not a model folder of janus_jax \(no model.json\)"):
        read_architecture(folder)


def test_folder_without_parameters_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}: holds neither params/ nor a checkpoint"):
        load_params(open_params(tmp_path, CONFIG))
    (tmp_path / "checkpoints" / "tmp").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds neither params/ nor a checkpoint"):
        load_params(open_params(tmp_path, CONFIG))


@pytest.mark.parametrize(
    "change", [{"num_codes": 16}, {"z_channels": 4}, {"num_res_blocks": 2}, {"channel_multipliers": (1, 2, 2)}]
)
def test_parameters_of_another_architecture_are_a_user_error(change, exported):
    """Other shapes, or other names."""
    with pytest.raises(UserError, match=rf"{exported}: [0-9]+ parameters are not those of model.json"):
        load_params(open_params(exported, dataclasses.replace(CONFIG, **change)))


def test_parameters_that_the_architecture_does_not_have_are_a_user_error(params, tmp_path):
    save_params(tmp_path / "m", CONFIG, params | {"discriminator": {"kernel": jnp.ones(3)}})
    with pytest.raises(UserError, match="1 parameters are not those of model.json: discriminator/kernel"):
        load_params(open_params(tmp_path / "m", CONFIG))


def test_damaged_parameters_are_a_user_error(params, tmp_path):
    save_params(tmp_path / "m", CONFIG, params)
    for path in (tmp_path / "m" / "params").rglob("*"):
        if path.is_file() and path.name != "_CHECKPOINT_METADATA":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"{tmp_path}/m/params: "):
        load_params(open_params(tmp_path / "m", CONFIG))
