import dataclasses
import json

import numpy as np
import PIL.Image
import pytest
import tokenizers

from examples.digits import data as digits
from janus_jax.data.images import understanding_pixels
from janus_jax.data.prompts import (
    BOS,
    EOS,
    IMAGE_PLACEHOLDER,
    STYLES,
    SYSTEM_PROMPT,
    Message,
    format_conversation,
    generation_prompt,
)
from janus_jax.data.tokenizer import SPECIAL_TOKENS, Tokenizer, train_tokenizer
from janus_jax.errors import UserError
from janus_jax.models.presets import JANUS_PRO_TINY
from janus_jax.weights import tokenizer_files
from janus_jax.weights.tokenizer_files import (
    check_style,
    check_vocabulary,
    read_tokenizer,
    tokenizer_ids,
    write_deepseek_files,
    write_hf_files,
)

TOKENS = JANUS_PRO_TINY.siglip.num_tokens
STYLE_NAMES = list(STYLES)
IMAGE = {"type": "image"}


def config_of(style):
    return dataclasses.replace(JANUS_PRO_TINY, prompt_style=style)


def text_item(text):
    return {"type": "text", "text": text}


def our_ids(tokenizer, messages, style):
    text = format_conversation([*messages, Message("assistant", "")], STYLES[style])
    return tokenizer.expand_images(tokenizer.encode(text), TOKENS).tolist()


@pytest.fixture(scope="module")
def tokenizer():
    """Adds no BOS by itself."""
    return digits.build_tokenizer(digits.text_records(), 384, "janus_pro_tiny")


@pytest.fixture(scope="module")
def written(tmp_path_factory, tokenizer):
    """{style: (folder, stock transformers' processor of it)}."""
    from transformers import JanusProcessor

    folders = {style: tmp_path_factory.mktemp(style) for style in STYLE_NAMES}
    for style, folder in folders.items():
        write_hf_files(folder, config_of(style), tokenizer)
    return {style: (folder, JanusProcessor.from_pretrained(folder)) for style, folder in folders.items()}


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (70, 70, 3), np.uint8)
    return PIL.Image.fromarray(pixels)


@pytest.mark.parametrize("style", STYLE_NAMES)
@pytest.mark.parametrize(
    ("content", "ours"),
    [
        ([IMAGE, text_item("Which digit?")], f"{IMAGE_PLACEHOLDER}\nWhich digit?"),
        ([IMAGE, IMAGE, text_item("Same digit?")], f"{IMAGE_PLACEHOLDER}\n{IMAGE_PLACEHOLDER}\nSame digit?"),
        ([text_item("Look:"), IMAGE, text_item("and say")], f"Look:\n{IMAGE_PLACEHOLDER}\nand say"),
        ([text_item(" two"), text_item("parts \n")], "two parts"),
        ("  Is two even?\n", "Is two even?"),
    ],
)
def test_stock_processor_asks_with_our_ids(written, tokenizer, picture, style, content, ours):
    processor = written[style][1]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    images = [picture] * ours.count(IMAGE_PLACEHOLDER) or None
    batch = processor(text=prompt, images=images, return_tensors="np")
    expected = our_ids(tokenizer, [Message("user", ours)], style)
    assert batch["input_ids"].tolist() == [expected]
    assert expected.count(tokenizer.bos_id) == 1
    assert (SYSTEM_PROMPT in processor.tokenizer.decode(expected)) == bool(STYLES[style].system_prompt)


@pytest.mark.parametrize("style", STYLE_NAMES)
def test_stock_processor_tokenizes_conversations_with_our_ids(written, tokenizer, picture, style):
    messages = [
        {"role": "user", "content": [{"type": "image", "image": picture}, text_item("Which digit?")]},
        {"role": "assistant", "content": [text_item("two")]},
        {"role": "user", "content": [text_item("Is two even or odd?")]},
    ]
    ours = [
        Message("user", f"{IMAGE_PLACEHOLDER}\nWhich digit?"),
        Message("assistant", "two"),
        Message("user", "Is two even or odd?"),
    ]
    batch = written[style][1].apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="np"
    )
    assert batch["input_ids"].tolist() == [our_ids(tokenizer, ours, style)]


@pytest.mark.parametrize("style", STYLE_NAMES)
def test_stock_processor_asks_for_images_with_our_ids(written, tokenizer, style):
    processor = written[style][1]
    message = {"role": "user", "content": "a handwritten seven"}
    prompt = processor.apply_chat_template([message], add_generation_prompt=True)
    batch = processor(text=prompt, generation_mode="image", return_tensors="np")
    assert batch["input_ids"].tolist() == [tokenizer.encode(generation_prompt("a handwritten seven", STYLES[style]))]


def test_batch_is_padded_on_the_left(written, tokenizer):
    processor = written["janus_pro"][1]
    texts = ["Is two even?", "Which digit comes after three and before five?"]
    prompts = [
        processor.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True) for text in texts
    ]
    batch = processor(text=prompts, padding=True, return_tensors="np")
    expected = [our_ids(tokenizer, [Message("user", text)], "janus_pro") for text in texts]
    padding = len(expected[1]) - len(expected[0])
    assert padding > 0
    assert batch["input_ids"].tolist() == [[tokenizer.pad_id] * padding + expected[0], expected[1]]
    assert batch["attention_mask"].tolist() == [[0] * padding + [1] * len(expected[0]), [1] * len(expected[1])]


@pytest.mark.parametrize(
    ("messages", "ask", "expected"),
    [
        ([("user", "q"), ("assistant", "a")], False, "<|User|>: q\n\n<|Assistant|>: a"),
        ([("user", "q"), ("assistant", "a")], True, f"<|User|>: q\n\n<|Assistant|>: a{EOS}<|Assistant|>:"),
        ([("system", "Be brief."), ("user", "q")], True, "Be brief.\n\n<|User|>: q\n\n<|Assistant|>:"),
        ([("judge", "fair")], False, "Judge: fair"),
    ],
)
def test_template_as_text(written, messages, ask, expected):
    messages = [{"role": role, "content": text} for role, text in messages]
    assert written["janus_pro"][1].apply_chat_template(messages, add_generation_prompt=ask) == expected


@pytest.mark.parametrize("size", [(70, 70), (16, 16), (32, 32), (3, 3)])
def test_stock_image_processor_gives_our_pixels(written, size):
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    image = PIL.Image.fromarray(pixels)
    theirs = written["janus_pro"][1].image_processor(image, return_tensors="np")["pixel_values"][0]
    ours = understanding_pixels(image, JANUS_PRO_TINY.siglip.image_size).astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(theirs.transpose(1, 2, 0), ours, atol=1e-6)


def test_stock_auto_classes_load_the_folder(written, tokenizer):
    from transformers import AutoTokenizer, GenerationConfig

    folder = written["janus_pro"][0]
    loaded = AutoTokenizer.from_pretrained(folder)
    ids = (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id, loaded.image_token_id, loaded.boi_token_id)
    assert ids == tuple(tokenizer_ids(tokenizer).values())
    assert (loaded.model_max_length, len(loaded)) == (JANUS_PRO_TINY.llama.max_length, tokenizer.vocab_size)
    generation = GenerationConfig.from_pretrained(folder)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == ids[:3]
    assert generation.generation_kwargs == {"boi_token_id": tokenizer.begin_of_image_id}
    assert generation.guidance_scale == 5


def test_deepseek_files_are_complete(tmp_path, tokenizer):
    write_deepseek_files(tmp_path, config_of("janus_pro"), tokenizer)
    content = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert content["preprocessor_config.json"]["image_size"] == JANUS_PRO_TINY.siglip.image_size
    assert content["processor_config.json"]["num_image_tokens"] == TOKENS
    assert content["tokenizer_config.json"]["tokenizer_class"] == "LlamaTokenizerFast"
    assert content["special_tokens_map.json"]["bos_token"] == BOS
    assert len(content) == 5  # and tokenizer.json


@pytest.mark.parametrize("write", [write_hf_files, write_deepseek_files])
@pytest.mark.parametrize("own_bos", [False, True])
def test_tokenizer_survives_and_its_file_adds_one_bos(tmp_path, tokenizer, write, own_bos):
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    if own_bos:
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=[BOS, "$A"], special_tokens=[(BOS, tokenizer.bos_id)]
        )
    original = backend.to_str()
    write(tmp_path, config_of("janus_pro"), Tokenizer(backend))
    assert backend.to_str() == original
    reread, style = read_tokenizer(tmp_path)
    text = "<|User|>: Which digit comes after two?"
    assert style == "janus_pro"
    assert reread.encode(text) == tokenizer.encode(text) == reread.backend.encode(text).ids
    assert (tmp_path / "tokenizer.json").read_text() == original or not own_bos


@pytest.mark.parametrize(
    ("roles", "style"), [(("<|User|>", "<|Assistant|>"), "janus_pro"), ((), "janus"), (("<|Assistant|>",), "janus")]
)
def test_role_tokens_tell_the_prompt_style(tmp_path, roles, style):
    train_tokenizer(["User: hello"], 300, roles).save(tmp_path / "tokenizer.json")
    assert read_tokenizer(tmp_path)[1] == style


@pytest.mark.parametrize("style", STYLE_NAMES)
def test_prompt_style_survives_a_hugging_face_folder(tmp_path, tokenizer, style):
    """Its roles by the tokenizer, its system prompt by the processor's field."""
    is_pro = STYLES[style].user == STYLES["janus_pro"].user
    fitting = tokenizer if is_pro else train_tokenizer(["User: hello"], 300)
    write_hf_files(tmp_path, config_of(style), fitting)
    assert read_tokenizer(tmp_path)[1] == style
    check_style("hf", config_of(style), fitting)


def test_a_system_prompt_field_that_is_no_boolean_is_an_error(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "processor_config.json").write_text('{"use_default_system_prompt": "no"}')
    with pytest.raises(UserError, match=r"processor_config\.json: use_default_system_prompt='no', expected true or"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("layout", "style", "message"),
    [
        ("deepseek", "janus_pro_tiny", "'janus_pro_tiny' cannot be written in the deepseek layout: its processor"),
        ("deepseek", "janus", "'janus' cannot be written in the deepseek layout with this tokenizer: .*'janus_pro'"),
        ("hf", "janus_plain", "'janus_plain' cannot be written in the hf layout with this tokenizer: .*_tiny'"),
    ],
)
def test_a_prompt_style_that_would_be_read_as_another_is_not_written(tokenizer, layout, style, message):
    with pytest.raises(UserError, match=f"prompt_style={message}"):
        check_style(layout, config_of(style), tokenizer)


def test_unfit_tokenizer_is_an_error(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"tokenizer\.json.*No such file"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tokenizer.backend.to_str().replace(SPECIAL_TOKENS[-1], "<other>"))
    with pytest.raises(UserError, match=f"tokenizer.json: .*{SPECIAL_TOKENS[-1]}"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(("rows", "remark"), [(756, False), (757, True), (102_400, True)])
def test_a_tokenizer_far_smaller_than_the_model_draws_a_remark(tokenizer, caplog, rows, remark):
    assert tokenizer.vocab_size == 378
    config = dataclasses.replace(JANUS_PRO_TINY, llama=dataclasses.replace(JANUS_PRO_TINY.llama, vocab_size=rows))
    tokenizer_files.remark.cache_clear()
    for origin in ("FOLDER", "config.data.tokenizer"):
        check_vocabulary(origin, tokenizer, config)
    assert caplog.text.count(f"378 tokens in tokenizer.json, but the model embeds {rows}") == remark
