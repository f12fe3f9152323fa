import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from examples.digits import data as digits
from janus_jax.errors import UserError
from janus_jax.models.params import flatten, unflatten
from janus_jax.weights.verify import (
    STAGES,
    VQ_IDS,
    VQ_IDS_TRANSFORMERS,
    compare_with_torch,
    format_differences,
    why_not,
)

TEXT = {
    "vocab_size": 384,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "mlp_ratio": 2.0,
    "projection_dim": 24,
    "depth": 2,
    "num_image_tokens": 16,
}
VQ = {
    "embed_dim": 4,
    "num_embeddings": 64,
    "latent_channels": 8,
    "base_channels": 32,
    "channel_multiplier": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "projection_dim": 24,
    "num_hidden_layers": 1,
    "image_token_embed_dim": 24,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder that transformers wrote, and our architecture, parameters and tokenizer of the same model."""
    from tests.helpers.torch_weights import make_pair

    folder = tmp_path_factory.mktemp("hf")
    torch_model, config, params = make_pair(TEXT, VISION, VQ, seed=3)
    config = dataclasses.replace(config, prompt_style="janus_pro_tiny")
    tokenizer = digits.build_tokenizer(digits.text_records(), config.llama.vocab_size, config.prompt_style)
    torch_model.config.image_token_id = tokenizer.image_id
    torch_model.save_pretrained(folder)
    return folder, config, params, tokenizer


@pytest.fixture(scope="module")
def agreeing(saved):
    return compare_with_torch(*saved)


def changed(params, *paths):
    """The same parameters with noise on some."""
    rng = np.random.default_rng(0)
    flat = flatten(params)
    return unflatten(flat | {p: flat[p] + np.float32(rng.normal(0, 0.5, flat[p].shape)) for p in paths})


def test_equal_weights_agree_in_every_stage(agreeing):
    assert [row.stage for row in agreeing[: len(STAGES)]] == list(STAGES)
    assert all(row.passed for row in agreeing)
    for stage, difference, scale in agreeing[: len(STAGES)]:
        assert scale > 0.1
        assert difference <= (0 if stage == VQ_IDS else 1e-5 * scale)


def test_vq_rule_of_transformers_is_listed_only_where_codes_are_not_of_unit_length(saved, agreeing, tmp_path):
    from safetensors.torch import load_file, save_file

    folder, config, params, tokenizer = saved
    assert agreeing[len(STAGES)].stage == VQ_IDS_TRANSFORMERS and agreeing[len(STAGES)].difference > 0
    name, path = "model.vqmodel.quantize.embedding.weight", "vq/codebook"
    shutil.copytree(folder, tmp_path / "unit")
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = torch.nn.functional.normalize(tensors[name], dim=-1)
    save_file(tensors, tmp_path / "unit" / "model.safetensors", metadata={"format": "pt"})
    params = unflatten(flatten(params) | {path: jnp.asarray(tensors[name].numpy())})
    differences = compare_with_torch(tmp_path / "unit", config, params, tokenizer)
    assert [row.stage for row in differences] == list(STAGES)
    assert differences[STAGES.index(VQ_IDS)].difference == 0


@pytest.mark.parametrize(
    ("paths", "affected"),
    [
        (["aligner/linear_1/bias", "vq/decoder/conv_in/bias"], ["aligner output", "text logits", "VQ pixels"]),
        (["siglip/norm/bias", "gen_embed"], ["SigLIP features", "aligner output", "text logits", "image logits"]),
        (["llm/lm_head/kernel", "vq/quant_conv/kernel"], ["text logits", "VQ ids"]),
        (["gen_head/codes/bias"], ["image logits"]),
        (["llm/decoder/layers/attention/k_proj/kernel"], ["text logits", "image logits"]),
    ],
)
def test_a_wrong_parameter_shows_in_its_stages_only(saved, paths, affected):
    folder, config, params, tokenizer = saved
    differences = compare_with_torch(folder, config, changed(params, *paths), tokenizer)[: len(STAGES)]
    assert [row.stage for row in differences if not row.passed] == affected
    assert all(row.difference > 1e-2 * row.scale for row in differences if row.stage in affected)
    assert all(row.difference <= 1e-5 * row.scale for row in differences if row.stage not in affected)


def test_bfloat16_parameters_are_compared_in_float32(saved, tmp_path):
    from transformers import JanusForConditionalGeneration

    folder, config, params, tokenizer = saved
    JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    params = unflatten({path: np.asarray(leaf).astype(jnp.bfloat16) for path, leaf in flatten(params).items()})
    differences = {row.stage: row for row in compare_with_torch(tmp_path, config, params, tokenizer)}
    assert differences["text logits"].difference <= 1e-5 * differences["text logits"].scale


def test_table_has_a_line_per_stage(agreeing):
    header, *lines = format_differences(agreeing).splitlines()
    assert header.split() == ["stage", "difference", "scale"]
    assert [line[:32].strip() for line in lines] == [row.stage for row in agreeing]
    assert "0.0%" in lines[STAGES.index(VQ_IDS)]
    assert "DIFFERS" not in "".join(lines)
    wrong = agreeing[0]._replace(difference=agreeing[0].scale)
    assert format_differences([wrong]).endswith("DIFFERS")


def test_torch_is_here():
    assert why_not() == ""


@pytest.mark.parametrize(
    ("version", "reason"), [("4.57.1", "transformers is 4.57.1, comparing needs 5"), ("5.0.0", "")]
)
def test_an_older_transformers_is_the_reason_not_to_compare(monkeypatch, version, reason):
    """It names outputs and arguments otherwise."""
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    assert why_not().startswith(reason) and bool(why_not()) == bool(reason)


def test_what_is_not_installed_is_the_reason_not_to_compare(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert why_not() == "torch and transformers not installed"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "multi_modality"}, "not a Hugging Face Janus folder"),
        ({"image_token_id": 9}, "image_token_id=9, expected 3"),
    ],
)
def test_unfit_config_is_an_error(saved, tmp_path, change, message):
    folder, *rest = saved
    shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message):
        compare_with_torch(tmp_path / "copy", *rest)


def test_missing_tensors_and_missing_folders_are_errors(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    folder, *rest = saved
    shutil.copytree(folder, tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.aligner.fc1.bias"]
    save_file(tensors, tmp_path / "copy" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing_keys: model\.aligner\.fc1\.bias"):
        compare_with_torch(tmp_path / "copy", *rest)
    with pytest.raises(UserError, match=r"config\.json is missing"):
        compare_with_torch(tmp_path, *rest)
