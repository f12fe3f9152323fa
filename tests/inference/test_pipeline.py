"""The public object: drawing pixels, saving and loading, and what it refuses."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax import UserError, from_pretrained
from janus_jax.checkpoints import save_params
from janus_jax.inference.pipeline import PIXEL_CHUNK, user_message
from janus_jax.models.config import Execution
from janus_jax.models.parameters import bind, build, flatten


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def codes():
    """More images than the decoder takes at a time."""
    return np.random.default_rng(3).integers(0, 64, (PIXEL_CHUNK + 2, 16), dtype=np.int32)


@pytest.fixture(scope="module")
def drawn(pipeline, codes):
    return np.stack([np.asarray(image) for image in pipeline.draw(codes)])


def test_drawn_pixels_are_the_decoded_codes_truncated_to_bytes(pipeline, codes, drawn):
    model = build(pipeline.config, Execution())
    decode = jax.jit(lambda codes: bind(model, pipeline.params)(codes, method="decode_codes"))
    scaled = (np.asarray(decode(codes), np.float64) + 1) / 2 * 255
    expected = np.clip(scaled, 0, 255).astype(np.uint8)
    assert drawn.shape == (PIXEL_CHUNK + 2, 16, 16, 3)
    # Both programs round differently in the last bits, which matters only where the cut between two bytes is near.
    differs = drawn != expected
    assert np.all(np.abs(scaled - np.round(scaled))[differs] < 1e-3)
    assert differs.mean() < 1e-3
    assert 10 < expected.mean() < 245
    assert len(np.unique(expected)) > 100


def test_drawing_in_other_portions_gives_the_same_images(pipeline, codes, drawn):
    portions = [pipeline.draw(codes[:5]), pipeline.draw(codes[5:6]), pipeline.draw(codes[6:])]
    again = [np.asarray(image) for portion in portions for image in portion]
    np.testing.assert_array_equal(again, drawn)


def test_generated_images_are_the_drawn_codes(pipeline):
    images = pipeline.generate_images("the digit one", 1, temperature=0.0)
    expected = pipeline.draw(pipeline.generate_codes(["the digit one"], 1, temperature=0.0))
    assert [image.tobytes() for image in images] == [image.tobytes() for image in expected]
    assert [image.size for image in images] == [(16, 16)]


def test_saved_and_loaded_model_is_the_same(pipeline, saved, pictures):
    loaded = from_pretrained(saved)
    assert loaded.config == pipeline.config
    before, after = flatten(pipeline.params), flatten(loaded.params)
    assert before.keys() == after.keys()
    for path, leaf in before.items():
        np.testing.assert_array_equal(after[path], leaf, err_msg=path)
        assert after[path].dtype == jnp.float32
    assert loaded.tokenizer.backend.to_str() == pipeline.tokenizer.backend.to_str()
    answers = [model.chat(pictures[0], "Is one odd?", max_new_tokens=10) for model in (pipeline, loaded)]
    assert answers[0] == answers[1] != ""
    codes = [model.generate_codes(["the digit one"], 1, temperature=0.0) for model in (pipeline, loaded)]
    np.testing.assert_array_equal(*codes)


def test_loading_in_bfloat16_rounds_the_parameters(pipeline, saved):
    loaded = from_pretrained(saved, jnp.bfloat16)
    for path, leaf in flatten(pipeline.params).items():
        np.testing.assert_array_equal(flatten(loaded.params)[path], leaf.astype(jnp.bfloat16), err_msg=path)


def test_a_model_is_not_written_over_another(pipeline, saved):
    with pytest.raises(UserError, match=rf"{saved}.*exists already"):
        pipeline.save_pretrained(saved)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": " \n"}, r"prompt is empty"),
        ({"temperature": -0.5}, r"temperature=-0\.5"),
        ({"top_p": 0.0}, r"top_p=0\.0"),
        ({"top_p": 1.5}, r"top_p=1\.5"),
        ({"max_new_tokens": 0}, r"max_new_tokens=0"),
        ({"max_new_tokens": 120}, r"prompt of \d+ tokens and 120 for max_new_tokens exceed the context of 128"),
        ({"prompt": "two " * 200}, r"prompt of \d{3,} tokens and 10 for max_new_tokens exceed the context of 128"),
        ({"images": ["{folder}/nowhere.png"]}, r"{folder}/nowhere\.png"),
        ({"images": ["{folder}/corrupt.png"]}, r"{folder}/corrupt\.png: not a readable image"),
        ({"prompt": ["one?", "two?"], "images": [[]]}, r"2 prompts but 1 lists of images"),
        ({"prompt": "which <image_placeholder> one?"}, r"1 <image_placeholder> in the prompt, 0 images"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_bad_questions_are_refused(pipeline, tmp_path, options, message):
    (tmp_path / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing else")
    options = {"images": [], "prompt": "one?", "max_new_tokens": 10} | options
    options["images"] = [each if isinstance(each, list) else each.format(folder=tmp_path) for each in options["images"]]
    with pytest.raises(UserError, match=message.replace("{folder}", re.escape(str(tmp_path)))):
        pipeline.chat(options.pop("images"), options.pop("prompt"), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": [""]}, r"prompt is empty"),
        ({"prompts": ["one", "  "]}, r"prompt is empty"),
        ({"prompts": ["one", "a <image_placeholder>"]}, r"drawing contains <image_placeholder>"),
        ({"num_images": 0}, r"num_images=0"),
        ({"temperature": -1.0}, r"temperature=-1\.0"),
        ({"top_p": 0.0}, r"top_p=0\.0"),
        ({"top_p": 2.0}, r"top_p=2\.0"),
        ({"prompts": ["two " * 200]}, r"prompt of \d{3,} tokens and 16 for the tokens of an image .* 128 tokens"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_bad_drawing_orders_are_refused(pipeline, options, message):
    options = {"prompts": ["one"], "num_images": 1} | options
    with pytest.raises(UserError, match=message):
        pipeline.generate_codes(**options)


def test_an_empty_list_of_prompts_is_an_empty_result(pipeline):
    assert pipeline.chat([], []) == []
    assert pipeline.generate_images([]) == []


def test_the_longest_prompt_that_fits_is_answered(pipeline, monkeypatch):
    """Padding to a length bucket does not count against the context."""

    def decode_text(model, params, prompts, pixels, keys, *, max_new_tokens, sampling, eos_id):
        return np.full((len(prompts.tokens), max_new_tokens), 7)

    monkeypatch.setattr("janus_jax.inference.pipeline.decode_text", decode_text)
    question = [[user_message("one " * 30, 0)]]
    room = 128 - len(pipeline.answer(question, [[]], max_new_tokens=1)[0].prompt_token_ids)
    assert 0 < room < 96
    assert pipeline.answer(question, [[]], max_new_tokens=room)[0].token_ids == [7] * room
    with pytest.raises(UserError, match=rf"prompt of {128 - room} tokens and {room + 1} "):
        pipeline.answer(question, [[]], max_new_tokens=room + 1)


def test_what_is_no_model_folder_is_refused(pipeline, tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}/nowhere: not a model folder"):
        from_pretrained(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"{tmp_path}/empty: not a model folder"):
        from_pretrained(tmp_path / "empty")
    save_params(tmp_path / "vq", pipeline.config.vq, pipeline.params["vq"])
    with pytest.raises(UserError, match=rf"{tmp_path}/vq: holds a VQConfig, expected a Janus model"):
        from_pretrained(tmp_path / "vq")
