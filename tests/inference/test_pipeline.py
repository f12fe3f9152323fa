"""The public object: images of codes, saving and loading, and what it refuses."""

import gc
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import tokenizers

from janus_jax.data.prompts import Message
from janus_jax.data.tokenizer import FILE_NAME, Tokenizer
from janus_jax.errors import UserError
from janus_jax.inference import janus
from janus_jax.inference.janus import JanusPipeline
from janus_jax.inference.loading import from_pretrained
from janus_jax.inference.validation import user_message
from janus_jax.models.execution import Execution
from janus_jax.models.params import bind, build, count, flatten
from janus_jax.models.scan_layers import stack_layers, unstack_layers
from janus_jax.sharding import MESH_AXES, make_mesh
from janus_jax.weights.native import save_params
from janus_jax.weights.weight_layout import undo_transposed
from tests.helpers.quantized import quantize_params


@pytest.fixture(scope="module", autouse=True)
def small_chunk():
    """Fewer images at a time, so that the programs are smaller."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(janus, "PIXEL_CHUNK", 4)
        yield


@pytest.fixture(scope="module")
def loaded(saved, pipeline):
    """The saved model as a CPU holds it."""
    return from_pretrained(saved, buckets=pipeline.engine.buckets)


@pytest.fixture(scope="module")
def codes():
    """More images than are decoded at a time."""
    return np.random.default_rng(3).integers(0, 64, (6, 16), dtype=np.int32)


@pytest.fixture(scope="module")
def decoded(pipeline, codes):
    return np.stack([np.asarray(image) for image in pipeline.decode_codes(codes)])


def test_pixels_are_the_decoded_codes_truncated_to_bytes(pipeline, codes, decoded):
    model = build(pipeline.config, Execution())
    decode = jax.jit(lambda codes: bind(model, pipeline.params)(codes, method="decode_codes"))
    scaled = (np.asarray(decode(codes), np.float64) + 1) / 2 * 255
    expected = np.clip(scaled, 0, 255).astype(np.uint8)
    assert decoded.shape == (6, 16, 16, 3)
    # Both programs round differently in the last bits, which matters only where the cut between two bytes is near.
    differs = decoded != expected
    assert np.all(np.abs(scaled - np.round(scaled))[differs] < 1e-3)
    assert differs.mean() < 1e-3
    assert 10 < expected.mean() < 245
    assert len(np.unique(expected)) > 100


def test_decoding_in_other_portions_gives_the_same_images(pipeline, codes, decoded):
    portions = [pipeline.decode_codes(codes[:3]), pipeline.decode_codes(codes[3:4]), pipeline.decode_codes(codes[4:])]
    again = np.stack([np.asarray(image) for portion in portions for image in portion])
    differs = again != decoded  # programs of another size round differently, which may move a value to the next byte
    assert np.all(np.abs(again.astype(int) - decoded)[differs] == 1)
    assert differs.mean() < 1e-3


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((2, 3), np.int32), r"codes of shape \(2, 3\), expected \[images, 16\]"),
        (np.full((1, 16), -1), r"codes from -1 to -1, expected 0 to"),
        (np.full((1, 16), 1.5), r"codes of type float64, expected whole numbers"),
        (np.full((1, 16), 10**6), r"codes from 1000000 to 1000000, expected 0 to"),
    ],
)
def test_what_are_not_codes_is_refused(pipeline, bad, message):
    with pytest.raises(UserError, match=message):
        pipeline.decode_codes(bad)


def test_few_images_are_not_decoded_as_many(pipeline, codes, monkeypatch):
    sizes = []

    def decode_pixels(model, params, padded):
        sizes.append(len(padded))
        return jnp.zeros((len(padded), 16, 16, 3))

    monkeypatch.setattr("janus_jax.inference.janus.decode_pixels", decode_pixels)
    assert [len(pipeline.decode_codes(codes[:number])) for number in (0, 1, 2, 3, 6)] == [0, 1, 2, 3, 6]
    assert sizes == [1, 2, 4, 4, 2]


def test_generated_images_are_the_decoded_codes(pipeline):
    images = pipeline.generate_images("the digit one", 1, temperature=0.0)
    expected = pipeline.decode_codes(pipeline.generate_codes(["the digit one"], 1, temperature=0.0))
    assert [image.tobytes() for image in images] == [image.tobytes() for image in expected]
    assert [image.size for image in images] == [(16, 16)]


def test_saved_and_loaded_model_is_the_same(pipeline, loaded, pictures):
    assert loaded.engine.pad([[1, 2, 3]]).tokens.shape == (1, pipeline.engine.buckets.prompt)
    assert loaded.config == pipeline.config
    before, after = flatten(pipeline.params), flatten(undo_transposed(unstack_layers(loaded.params), jnp.float32))
    assert before.keys() == after.keys()
    for path, leaf in before.items():
        np.testing.assert_array_equal(after[path], leaf, err_msg=path)
        assert after[path].dtype == jnp.float32
    assert loaded.tokenizer.backend.to_str() == pipeline.tokenizer.backend.to_str()
    answers = [model.chat(pictures[0], "Is one odd?", max_new_tokens=10) for model in (pipeline, loaded)]
    assert answers[0] == answers[1] != ""
    codes = [model.generate_codes(["the digit one"], 1, temperature=0.0) for model in (pipeline, loaded)]
    np.testing.assert_array_equal(*codes)


def test_a_loaded_model_has_its_weight_matrices_transposed_until_it_is_saved(pipeline, loaded, tmp_path):
    transposed = {path: leaf for path, leaf in flatten(loaded.params).items() if path.endswith("kernel_transposed")}
    # Of the stacked layers, the text head, the image head, the aligner of codes, SigLIP's layers and its aligner.
    assert len(transposed) == 7 + 5 + 6 + 2
    wide = pipeline.params["llm"]["decoder"]["layers_1"]["mlp"]["up_proj"]["kernel"]
    np.testing.assert_array_equal(transposed["llm/decoder/layers/mlp/up_proj/kernel_transposed"][1], wide.T)
    loaded.save_pretrained(tmp_path / "again")
    again = flatten(undo_transposed(unstack_layers(from_pretrained(tmp_path / "again").params), jnp.float32))
    for path, leaf in flatten(pipeline.params).items():
        np.testing.assert_array_equal(again[path], leaf, err_msg=path)


def test_transposed_weight_matrices_are_turned_back_for_a_mesh(pipeline, loaded, saved):
    """Both those of a model in full precision and those of one in int8."""
    mesh = make_mesh(dict.fromkeys(MESH_AXES, 1))
    in_int8 = from_pretrained(saved, quantization="int8")
    for model, params in ((loaded, pipeline.params), (in_int8, quantize_params(pipeline.params))):
        assert "kernel_transposed" in model.params["llm"]["lm_head"]
        on_mesh = JanusPipeline(pipeline.config, model.params, pipeline.tokenizer, mesh=mesh).params
        expected, found = flatten(params), flatten(on_mesh)
        assert found.keys() == expected.keys()
        for path, leaf in expected.items():
            np.testing.assert_array_equal(found[path], leaf, err_msg=path)
            assert (found[path].dtype, found[path].sharding.mesh) == (leaf.dtype, mesh)


def kernel_dtypes(pipeline):
    kernels = [leaf for path, leaf in flatten(pipeline.params).items() if path.endswith("kernel_transposed")]
    return {leaf.dtype.name for leaf in kernels}


def text_logits(pipeline, params, rows):
    """Logits of one new token of each row, with parameters whose layers are stacked."""

    @jax.jit
    def run(params):
        apply, tokens = bind(pipeline.engine.model, params), jnp.arange(rows)[:, None]
        hidden, _ = apply(apply(tokens, method="embed_text"), jnp.zeros_like(tokens), jnp.ones_like(tokens))
        return apply(hidden, method="text_logits")

    return run(params)


def test_loading_in_bfloat16_rounds_the_parameters_and_transposed_they_compute_the_same(pipeline, saved):
    """A product of bfloat16 values summed in float32 is what a product of bfloat16 means."""
    loaded = from_pretrained(saved, jnp.bfloat16)
    assert kernel_dtypes(loaded) == {"bfloat16"}
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), pipeline.params)
    restored = flatten(undo_transposed(unstack_layers(loaded.params), jnp.bfloat16))
    for path, leaf in flatten(rounded).items():
        np.testing.assert_array_equal(restored[path], leaf, err_msg=path)
    logits = [text_logits(loaded, params, rows=1) for params in (loaded.params, stack_layers(rounded))]
    assert logits[0].dtype == jnp.bfloat16
    scale = float(np.abs(np.asarray(logits[1], np.float32)).max())
    np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in logits), rtol=0, atol=scale / 128)


def test_weights_stored_in_bfloat16_stay_so_in_float32_and_change_nothing(pipeline, pictures, tmp_path):
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), pipeline.params)
    JanusPipeline(pipeline.config, rounded, pipeline.tokenizer, jnp.bfloat16).save_pretrained(tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model", jnp.float32, buckets=pipeline.engine.buckets)
    assert kernel_dtypes(loaded) == {"bfloat16"}
    assert loaded.params["gen_embed"].dtype == jnp.float32
    assert kernel_dtypes(from_pretrained(tmp_path / "model", jnp.float16)) == {"float16"}
    widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), rounded)
    wide = JanusPipeline(pipeline.config, widened, pipeline.tokenizer, buckets=pipeline.engine.buckets)
    for path, leaf in flatten(undo_transposed(unstack_layers(loaded.params), jnp.float32)).items():
        np.testing.assert_array_equal(leaf, flatten(wide.params)[path], err_msg=path)
        assert leaf.dtype == jnp.float32
    question = [[user_message("Is one odd?", 1)]], [[pictures[0]]]
    ours, theirs = (model.answer(*question, max_new_tokens=10) for model in (loaded, wide))  # products of a single row
    assert ours[0].token_ids == theirs[0].token_ids != []
    ours, theirs = (
        text_logits(loaded, params, rows=40) for params in (loaded.params, stack_layers(widened))
    )  # of many rows
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * float(np.abs(theirs).max()))


def test_loading_refuses_values_that_the_dtype_cannot_hold(pipeline, tmp_path):
    large = {"gen_embed": pipeline.params["gen_embed"].at[0, 0].set(1e5)}
    JanusPipeline(pipeline.config, pipeline.params | large, pipeline.tokenizer).save_pretrained(tmp_path / "large")
    with pytest.raises(UserError, match=r"gen_embed: holds values over 65504, the largest of float16"):
        from_pretrained(tmp_path / "large", jnp.float16)


def test_a_loaded_model_is_in_memory_once(pipeline, saved):
    gc.collect()
    before = {id(array) for array in jax.live_arrays()}
    loaded = from_pretrained(saved)
    gc.collect()
    new = sum(array.size for array in jax.live_arrays() if id(array) not in before)
    assert new == count(loaded.params) == count(pipeline.params)


@pytest.fixture(scope="module")
def roleless(pipeline):
    """The tokenizer, with one of the role tokens of the model's prompts renamed."""
    return Tokenizer(tokenizers.Tokenizer.from_str(pipeline.tokenizer.backend.to_str().replace("<|User|>", "<|Xser|>")))


def test_a_tokenizer_without_the_roles_of_the_prompts_is_refused(pipeline, roleless, saved, tmp_path):
    with pytest.raises(UserError, match=r"<\|User\|>"):
        JanusPipeline(pipeline.config, pipeline.params, roleless)
    shutil.copytree(saved, tmp_path / "model")
    next((tmp_path / "model" / "params" / "gen_embed").glob("[0-9]*")).unlink()  # the weights cannot be read
    roleless.save(tmp_path / "model" / FILE_NAME)
    with pytest.raises(UserError, match=rf"{tmp_path}/model/{FILE_NAME}: .*role token"):
        from_pretrained(tmp_path / "model")


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
        ({"temperature": float("nan")}, r"temperature=nan, expected 0 or 1e-06 to 1e\+06"),
        ({"temperature": float("inf")}, r"temperature=inf"),
        ({"temperature": 1e-40}, r"temperature=1e-40"),
        ({"top_p": float("nan")}, r"top_p=nan"),
        ({"top_k": -1}, r"top_k=-1"),
        ({"seed": -1}, r"seed=-1, expected 0 to 4294967295"),
        ({"seed": 2**32}, r"seed=4294967296"),
        ({"seed": 10**30}, r"seed=10{30}"),
        ({"max_new_tokens": 0}, r"max_new_tokens=0"),
        ({"max_new_tokens": 120}, r"prompt of \d+ tokens and 120 for max_new_tokens exceed the context of 128"),
        ({"prompt": "two " * 200}, r"prompt of \d{3,} tokens and 10 for max_new_tokens exceed the context of 128"),
        ({"images": ["{folder}/nowhere.png"]}, r"{folder}/nowhere\.png"),
        ({"images": ["{folder}/corrupt.png"]}, r"{folder}/corrupt\.png: not a readable image"),
        ({"prompt": ["one?", "two?"], "images": [[]]}, r"2 prompts but 1 lists of images"),
        ({"prompt": ["one?", "two?"], "images": "ab"}, r"got str where a list of images of a prompt is expected"),
        ({"prompt": ["one?", "two?"], "images": ["a", "b"]}, r"got str where a list of images of a prompt"),
        ({"prompt": ["one?"], "images": None}, r"got NoneType where a list of images of a prompt"),
        ({"images": None}, r"got NoneType where a list of images of a prompt"),
        ({"images": [["a.png"]]}, r"image of type list, expected a PIL image or the path of a file"),
        ({"images": [np.zeros((4, 4, 3), np.uint8)]}, r"image of type ndarray, expected a PIL image"),
        ({"images": [PIL.Image.new("F", (4, 4))]}, r"image: image of mode F, expected 8 or 16 bits per channel"),
        ({"prompt": "which <image_placeholder> one?"}, r"1 <image_placeholder> in the prompt, 0 images"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_bad_questions_are_refused(pipeline, tmp_path, options, message):
    (tmp_path / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing else")
    options = {"images": [], "prompt": "one?", "max_new_tokens": 10} | options
    if isinstance(options["images"], list):
        options["images"] = [
            each.format(folder=tmp_path) if isinstance(each, str) else each for each in options["images"]
        ]
    with pytest.raises(UserError, match=message.replace("{folder}", re.escape(str(tmp_path)))):
        pipeline.chat(options.pop("images"), options.pop("prompt"), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": [""]}, r"prompt is empty"),
        ({"prompts": ["one", "  "]}, r"prompt is empty"),
        ({"prompts": ["one", "a <image_placeholder>"]}, r"contains <image_placeholder>"),
        ({"num_images": 0}, r"num_images=0"),
        ({"temperature": -1.0}, r"temperature=-1\.0"),
        ({"top_p": 0.0}, r"top_p=0\.0"),
        ({"top_p": 2.0}, r"top_p=2\.0"),
        ({"temperature": float("nan")}, r"temperature=nan"),
        ({"cfg_weight": float("nan")}, r"cfg_weight=nan, expected -1000000 to 1000000"),
        ({"cfg_weight": float("-inf")}, r"cfg_weight=-inf"),
        ({"cfg_weight": 1e39}, r"cfg_weight=1e\+39"),
        ({"top_k": -2}, r"top_k=-2"),
        ({"seed": 2**64}, r"seed=18446744073709551616"),
        ({"prompts": "one"}, r"prompts='one', expected a list of prompts"),
        ({"prompts": ["two " * 200]}, r"prompt of \d{3,} tokens and 16 for the tokens of an image .* 128 tokens"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_bad_image_requests_are_refused(pipeline, options, message):
    options = {"prompts": ["one"], "num_images": 1} | options
    with pytest.raises(UserError, match=message):
        pipeline.generate_codes(**options)


@pytest.mark.parametrize(
    ("conversations", "message"),
    [
        ([[]], r"does not end with a message of the user"),
        ([[user_message("one?", 0), Message("assistant", "yes")]], r"does not end with a message of the user"),
        ([user_message("one?", 0)], r"not a list of Message"),
        ([[user_message("one?", 0)]] * 2, r"got 2 conversations but 1 lists of images"),
    ],
)
def test_conversations_of_another_form_are_refused(pipeline, conversations, message):
    with pytest.raises(UserError, match=message):
        pipeline.answer(conversations, [[]])


def test_an_empty_list_of_prompts_is_an_empty_result(pipeline):
    assert pipeline.chat([], []) == []
    assert pipeline.generate_images([]) == []


def test_what_is_no_model_folder_is_refused(pipeline, tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}/nowhere: no such folder; .*hf download"):
        from_pretrained(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"{tmp_path}/empty: not a model folder"):
        from_pretrained(tmp_path / "empty")
    save_params(tmp_path / "vq", pipeline.config.vq, pipeline.params["vq"])
    with pytest.raises(UserError, match=rf"{tmp_path}/vq: holds a VQConfig, expected a Janus model"):
        from_pretrained(tmp_path / "vq")


def test_what_a_folder_cannot_be_loaded_as_is_refused(saved):
    for dtype in ("int8", "float99"):
        with pytest.raises(UserError, match=f"dtype='?{dtype}.* floating-point"):
            from_pretrained(saved, dtype)
    with pytest.raises(UserError, match=f"{saved}: .* no average of its parameters"):
        from_pretrained(saved, ema=True)
