"""A folder of CLIP: its config, tensors, preprocessor and tokenizer, and folders that do not fit our code."""

import json

import numpy as np
import pytest
import tokenizers
import transformers

from janus_jax.data.images import Normalization
from janus_jax.errors import UserError
from janus_jax.models.metric_config import ClipTowerConfig
from janus_jax.weights.clip import load_clip, read_clip_config, read_clip_preprocessor, read_clip_tokenizer
from tests.helpers.metric_networks import clip_folder


@pytest.fixture
def folder(tmp_path):
    return clip_folder("clip", tmp_path / "clip", with_tokenizer=True)


def change(path, **fields):
    """Sets fields of a JSON file; `a__b` is field b of object a, and None removes."""
    content = json.loads(path.read_text())
    for name, value in fields.items():
        *parents, last = name.split("__")
        target = content
        for parent in parents:
            target = target[parent]
        if value is None:
            del target[last]
        else:
            target[last] = value
    path.write_text(json.dumps(content))


def test_the_config_is_read_and_openais_end_of_text_is_known(folder, tmp_path):
    config = read_clip_config(folder)
    assert config.vision == ClipTowerConfig(
        width=48, depth=3, num_heads=3, mlp_dim=144, norm_eps=1e-5, activation="quick_gelu"
    )
    assert (config.image_size, config.patch_size, config.embed_dim, config.end_id) == (40, 8, 28, 110)
    assert read_clip_config(clip_folder("clip_old_eos", tmp_path / "old")).end_id is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "siglip"}, "model_type='siglip'"),
        ({"vision_config__hidden_act": "relu"}, r"vision_config\.hidden_act='relu'"),
        ({"vision_config__num_channels": 1}, r"vision_config\.num_channels=1"),
        ({"text_config__hidden_size": 33}, "width=33"),
        ({"text_config__num_hidden_layers": 3}, r"missing \(16\): text_model\.encoder\.layers\.2"),
        ({"projection_dim": 20}, r"of another shape .*text_projection\.weight \[28, 32\]"),
    ],
)
def test_another_architecture_is_one_line(folder, fields, message):
    change(folder / "config.json", **fields)
    with pytest.raises(UserError, match=rf"(?s){message}"):
        load_clip(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": {"shortest_edge": 41}}, r"size\.shortest_edge=41"),
        ({"crop_size": 32}, "crop_size=32"),
        ({"do_center_crop": False}, "do_center_crop=False"),
        ({"resample": 2}, "resample=2"),
    ],
)
def test_another_preprocessing_is_one_line(folder, fields, message):
    change(folder / "preprocessor_config.json", **fields)
    with pytest.raises(UserError, match=message):
        read_clip_preprocessor(folder, read_clip_config(folder))


def test_old_and_missing_preprocessors_mean_clips_own(folder):
    config = read_clip_config(folder)
    usual = read_clip_preprocessor(folder, config)
    change(folder / "preprocessor_config.json", size=40, crop_size=40, image_mean=None, image_std=None)
    assert read_clip_preprocessor(folder, config) == usual
    change(folder / "preprocessor_config.json", image_mean=[0.5] * 3, image_std=[0.25] * 3)
    assert read_clip_preprocessor(folder, config) == Normalization((0.5,) * 3, (0.25,) * 3)
    (folder / "preprocessor_config.json").unlink()
    assert read_clip_preprocessor(folder, config) == usual


def test_texts_are_tokenised_as_transformers_does(tmp_path):
    """A byte-pair vocabulary in CLIP's form: words end with </w>, upper case is folded."""
    letters = "abcdefghijklmnopqrstuvwxyz.,!"
    vocabulary = {token: i for i, token in enumerate([*letters, *(f"{x}</w>" for x in letters), "th", "the</w>"])}
    vocabulary |= {"<|startoftext|>": len(vocabulary), "<|endoftext|>": len(vocabulary) + 1}
    theirs = transformers.CLIPTokenizer(vocab=vocabulary, merges=[("t", "h"), ("th", "e</w>")], model_max_length=24)
    folder = clip_folder("clip", tmp_path / "clip")
    theirs.save_pretrained(folder)
    config = read_clip_config(folder)
    change(folder / "config.json", text_config__eos_token_id=vocabulary["<|endoftext|>"])
    tokenizer = read_clip_tokenizer(folder, read_clip_config(folder))
    assert config.max_length == 24
    texts = ["The cat, the hat!", "", "a b", "the " * 30]
    ids, num_cut = tokenizer.encode(texts)
    expected = theirs(texts, padding="max_length", truncation=True, max_length=24)["input_ids"]
    np.testing.assert_array_equal(ids, expected)
    assert num_cut == 1


def test_a_tokenizer_that_does_not_fit_is_one_line(folder):
    config = read_clip_config(folder)
    ids, num_cut = read_clip_tokenizer(folder, config).encode(["w2 w0 w1", "w0 " * 22, "w0 " * 23])
    assert ids[0, :6].tolist() == [118, 2, 0, 1, 110, 110] and ids.shape == (3, 24) and num_cut == 1
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_tokens([f"x{i}" for i in range(120)])
    backend.save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match=r"tokenizer\.json: has the id \d+, but the model embeds only 120"):
        read_clip_tokenizer(folder, config)
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match=r"lacks <\|startoftext\|>"):
        read_clip_tokenizer(folder, config)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"not a readable tokenizer\.json"):
        read_clip_tokenizer(folder, config)
