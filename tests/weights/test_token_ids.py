"""Special tokens in the files of a folder: other ones are errors where they would change answers or images."""

import json
import logging

import pytest

from examples.digits import data as digits
from janus_jax.errors import UserError
from janus_jax.models.presets import JANUS_PRO_TINY
from janus_jax.weights.token_ids import check_tokens
from janus_jax.weights.tokenizer_files import tokenizer_ids

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
PROCESSOR = "processor_config.json"


@pytest.fixture(scope="module")
def tokenizer():
    return digits.build_tokenizer(digits.text_records(), 384, "janus_pro")


@pytest.fixture
def check(tmp_path, tokenizer, caplog):
    """{file: content} -> the warnings of a folder with these files."""

    def run(files, layout="hf"):
        for name, content in ({CONFIG: {}} | files).items():
            (tmp_path / name).write_text(json.dumps(content))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "absl"):
            check_tokens(tmp_path, layout, JANUS_PRO_TINY, tokenizer)
        return [record.getMessage() for record in caplog.records]

    return run


def test_the_tokenizers_own_ids_pass(check, tokenizer):
    ids = tokenizer_ids(tokenizer)
    named = {f"{name}_token_id": ids[name] for name in ("bos", "eos", "pad")}
    generation = named | {"eos_token_id": [ids["eos"]], "generation_kwargs": {"boi_token_id": ids["boi"]}}
    files = {CONFIG: {"image_token_id": ids["image"], "text_config": named}, GENERATION: generation}
    tokens = {"bos_token": {"content": "<｜begin▁of▁sentence｜>"}, "extra_special_tokens": ["<a>"]}
    assert check(files | {TOKENIZER: tokens, PROCESSOR: {"num_image_tokens": 16}}) == []
    assert check({CONFIG: {"language_config": named}}, "deepseek") == []


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (CONFIG, {"image_token_id": 9}, "image_token_id=9, expected 3"),
        (CONFIG, {"text_config": {"eos_token_id": 7}}, r"text_config\.eos_token_id=7, expected 1,"),
        (GENERATION, {"pad_token_id": 1}, "pad_token_id=1, expected 2, as in the tokenizer"),
        (GENERATION, {"bos_token_id": 1}, "bos_token_id=1, expected 0"),
        (GENERATION, {"eos_token_id": [1, 8]}, r"eos_token_id=\[1, 8\], expected 1"),
        (GENERATION, {"boi_token_id": 9}, "boi_token_id=9, expected 4"),
        (GENERATION, {"generation_kwargs": {"boi_token_id": 9}}, r"generation_kwargs\.boi_token_id=9, expected 4"),
        (TOKENIZER, {"eos_token": "</s>"}, "eos_token='</s>', expected '<｜end▁of▁sentence｜>'"),
        (TOKENIZER, {"bos_token": {"content": "<s>"}}, "bos_token='<s>', expected"),
        (TOKENIZER, {"extra_special_tokens": {"boi_token": "<b>"}}, r"extra_special_tokens\.boi_token='<b>', expected"),
        (TOKENIZER, {"image_token": "<image>"}, "image_token='<image>', expected '<image_placeholder>'"),
        (PROCESSOR, {"num_image_tokens": 15}, "num_image_tokens=15, expected 16"),
    ],
)
def test_what_transformers_would_generate_otherwise_with_is_an_error(check, tmp_path, file, content, message):
    with pytest.raises(UserError, match=f"{tmp_path}/{file}: {message}"):
        check({file: content})


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (PROCESSOR, {"pad_tag": "<pad>"}, "pad_tag='<pad>', expected '<｜▁pad▁｜>'"),
        (PROCESSOR, {"image_tag": "<image>"}, "image_tag='<image>', expected '<image_placeholder>'"),
        (PROCESSOR, {"add_special_token": True}, "add_special_token=True, expected False"),
        (PROCESSOR, {"sft_format": "plain"}, "sft_format='plain', expected 'deepseek'"),
        (TOKENIZER, {"eos_token": "</s>"}, "eos_token='</s>', expected"),
    ],
)
def test_what_the_original_would_generate_otherwise_with_is_an_error(check, tmp_path, file, content, message):
    with pytest.raises(UserError, match=f"{tmp_path}/{file}: {message}"):
        check({file: content}, "deepseek")


@pytest.mark.parametrize(
    ("layout", "files", "field"),
    [
        ("hf", {TOKENIZER: {"pad_token": "<｜end▁of▁sentence｜>"}}, "pad_token="),
        ("deepseek", {TOKENIZER: {"pad_token": "<｜end▁of▁sentence｜>"}}, "pad_token="),
        ("deepseek", {CONFIG: {"language_config": {"bos_token_id": 1}}}, "language_config.bos_token_id=1"),
        ("hf", {CONFIG: {"text_config": {"pad_token_id": 5}}, GENERATION: {"pad_token_id": 2}}, "pad_token_id=5"),
        # The default of transformers' class, which it repeats in every file: nobody chose it.
        ("hf", {CONFIG: {"text_config": {"bos_token_id": 1}}}, "text_config.bos_token_id=1"),
        (
            "hf",
            {CONFIG: {"text_config": {"bos_token_id": 1}}, GENERATION: {"_from_model_config": True, "bos_token_id": 1}},
            "text_config.bos_token_id=1",
        ),
    ],
)
def test_what_nobody_uses_is_a_warning(check, layout, files, field):
    (warning,) = check(files, layout)
    assert field in warning and "is not used" in warning


def test_the_old_name_of_the_original_template_is_the_same_template(check):
    assert check({PROCESSOR: {"sft_format": "deepseek_old"}}, "deepseek") == []
