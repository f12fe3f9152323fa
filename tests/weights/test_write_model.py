"""Whole folders: every route is bit-equal, stock transformers loads what we write, a failure leaves nothing behind."""

import dataclasses
import errno
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import janus_jax
from janus_jax.data.images import JANUS_NORMALIZATION, Normalization
from janus_jax.data.prompts import STYLES
from janus_jax.data.tokenizer import train_tokenizer
from janus_jax.errors import UserError
from janus_jax.models.params import flatten, unflatten
from janus_jax.weights import write_model as writing
from janus_jax.weights.foreign import ForeignTensors
from janus_jax.weights.load import load_params
from janus_jax.weights.open_model import open_model
from janus_jax.weights.reader import TensorInfo, TensorSlice, all_slices, model_in_memory
from janus_jax.weights.safetensors_io import SafetensorsWriter
from janus_jax.weights.verify import compare_with_torch
from janus_jax.weights.write_model import LAYOUTS, compare, write_model
from tests.helpers.deepseek_sizes import any_size
from tests.helpers.small_folders import make_small, read_tensors, save_small


@pytest.fixture(scope="module", autouse=True)
def small_models_in_the_original_layout():
    with any_size():
        yield


@pytest.fixture(scope="module")
def small():
    return make_small()


@pytest.fixture(scope="module")
def hf(small, tmp_path_factory):
    model, config, _, tokenizer = small
    return save_small(tmp_path_factory.mktemp("small") / "hf", model, config, tokenizer)


def convert(source, output, layout, dtype=None):
    write_model(open_model(source), output, layout, dtype)
    return output


@pytest.fixture(scope="module")
def deepseek(hf, tmp_path_factory):
    return convert(hf, tmp_path_factory.mktemp("small") / "deepseek", "deepseek")


@pytest.fixture(scope="module")
def orbax(hf, tmp_path_factory):
    return convert(hf, tmp_path_factory.mktemp("small") / "orbax", "orbax")


@pytest.fixture(scope="module")
def folders(hf, deepseek, orbax):
    """The same model in each layout: as transformers wrote it, and as we converted that."""
    return {"hf": hf, "deepseek": deepseek, "orbax": orbax}


@pytest.mark.parametrize(
    ("layout", "target"),
    [("hf", "hf"), ("deepseek", "hf"), ("orbax", "hf"), ("orbax", "deepseek"), ("deepseek", "orbax")],
)
def test_every_way_from_one_layout_to_another_ends_at_the_same_bits(folders, tmp_path, layout, target):
    """Folders that were converted twice hold what transformers wrote, or what a single conversion made of it."""
    written, expected = convert(folders[layout], tmp_path / "written", target), folders[target]
    if target == "orbax":
        slices = list(all_slices(open_model(expected).parameters))
        assert compare(open_model(expected), open_model(written)) == len(slices)
        return
    assert read_tensors(written) == read_tensors(expected)
    if target == "deepseek":
        for name in ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json"):
            assert json.loads((written / name).read_text()) == json.loads((expected / name).read_text())


def test_the_original_layout_has_fused_projections_and_a_leading_axis(deepseek, small):
    tensors, model = read_tensors(deepseek), small[0].model.vision_model
    attention = model.encoder.layers[1].self_attn
    fused = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]).detach().numpy()
    name = "vision_model.vision_tower.blocks.1.attn.qkv.weight"
    assert tensors[name] == (torch.float32, fused.shape, fused.tobytes())
    assert tensors["vision_model.vision_tower.pos_embed"][1] == (1, 16, 64)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_opens_as_the_same_model(folders, small, layout):
    _, config, params, tokenizer = small
    source = open_model(folders[layout])
    assert (source.layout, source.config) == (layout, config)
    assert source.tokenizer.encode("<|User|>: two") == tokenizer.encode("<|User|>: two")
    loaded, expected = flatten(load_params(source)), flatten(params)
    assert loaded.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(loaded[path], leaf, err_msg=path)


def test_a_dtype_rounds_every_tensor_as_torch_does(hf, tmp_path):
    rounded = read_tensors(convert(hf, tmp_path / "rounded", "hf", jnp.bfloat16))
    for name, (_, shape, data) in read_tensors(hf).items():
        values = torch.frombuffer(bytearray(data), dtype=torch.float32).to(torch.bfloat16)
        assert rounded[name] == (torch.bfloat16, shape, values.view(torch.uint8).numpy().tobytes())
    assert json.loads((tmp_path / "rounded" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_value_too_large_for_float16_is_an_error(hf, small, tmp_path):
    _, config, params, tokenizer = small
    flat = flatten(params)
    large = flat["llm/decoder/norm/scale"].at[3].set(70000.0)
    source = model_in_memory(config, unflatten(flat | {"llm/decoder/norm/scale": large}), tokenizer)
    with pytest.raises(UserError, match=r"language_model\.norm\.weight: holds values over 65504"):
        write_model(source, tmp_path / "out", "hf", jnp.float16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_value_too_large_for_any_narrower_dtype_is_an_error_when_loading(small, dtype):
    """Over the largest bfloat16, 3.39e38, float32 goes on for a while."""
    _, config, params, tokenizer = small
    flat = flatten(params)
    large = flat["llm/decoder/layers/mlp_norm/scale"].at[1, 3].set(3.4e38)
    source = model_in_memory(config, unflatten(flat | {"llm/decoder/layers/mlp_norm/scale": large}), tokenizer)
    with pytest.raises(UserError, match=r"mlp_norm/scale: holds values over .* the largest of"):
        load_params(source, dtype)
    load_params(source, jnp.float32)


def test_layers_of_several_dtypes_share_the_widest_and_lose_nothing(hf, tmp_path):
    name = "model.language_model.layers.{}.mlp.up_proj.weight"

    def change(tensors):
        tensors[name.format(0)] = tensors[name.format(0)].astype(np.float64) + 1e-12
        tensors[name.format(1)] = tensors[name.format(1)].astype(np.float16)
        tensors[name.format(2)] = tensors[name.format(2)].astype(jnp.bfloat16)  # the last: all had its dtype

    folder, path = damaged(hf, tmp_path, change), "llm/decoder/layers/mlp/up_proj/kernel"
    source = open_model(folder)
    assert source.parameters[path].dtype == np.float64
    ours = convert(folder, tmp_path / "ours", "orbax")
    written = open_model(ours)
    assert written.parameters[path].dtype == np.float64
    assert compare(source, written) == len(list(all_slices(source.parameters)))
    for layer in range(3):
        part = TensorSlice(path, layer)
        np.testing.assert_array_equal(written.read(part), source.read(part).astype(np.float64))


@pytest.mark.parametrize("name", ["model.aligner.fc1.weight", "model.language_model.layers.0.mlp.up_proj.weight"])
def test_quantised_weights_are_refused(hf, tmp_path, name):
    def change(tensors):
        tensors[name] = tensors[name].astype(np.int8)

    with pytest.raises(UserError, match=rf"damaged: {name} has dtype int8, expected floating-point"):
        open_model(damaged(hf, tmp_path, change))


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(hf, small, tmp_path):
    texts = [f"word{i} " * 3 for i in range(400)]
    shutil.copytree(hf, tmp_path / "large")
    train_tokenizer(texts, 500, STYLES["janus_pro"][:2]).save(tmp_path / "large" / "tokenizer.json")
    with pytest.raises(UserError, match=r"large: 500 tokens in tokenizer\.json, but the model embeds only 384"):
        open_model(tmp_path / "large")


@pytest.mark.parametrize("layout", ["hf", "orbax"])
def test_an_id_beyond_the_embedding_rows_is_refused(folders, tmp_path, layout):
    """The number of tokens fits; the id of one of them does not."""
    folder = shutil.copytree(folders[layout], tmp_path / layout)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {"far": 5000}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"5001 tokens in tokenizer\.json, but the model embeds only 384"):
        open_model(folder)


def test_a_placeholder_id_that_the_tokenizer_does_not_have_is_refused(hf, tmp_path):
    shutil.copytree(hf, tmp_path / "other")
    content = json.loads((hf / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(content | {"image_token_id": 77}))
    with pytest.raises(UserError, match=r"config\.json: image_token_id=77, expected 3"):
        open_model(tmp_path / "other")


def test_stock_transformers_computes_the_same_from_the_written_folder(deepseek, small, tmp_path):
    """`compare_with_torch` also refuses missing and unexpected keys."""
    written = convert(deepseek, tmp_path / "written", "hf")
    _, config, params, tokenizer = small
    for stage, difference, scale in compare_with_torch(written, config, params, tokenizer)[:6]:
        assert difference <= 1e-5 * scale, stage


def test_several_files_and_their_index_are_read_as_one(hf, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "MAX_FILE_BYTES", 50_000)
    sharded = convert(hf, tmp_path / "several", "hf")
    assert len(list(sharded.glob("model-*-of-*.safetensors"))) > 5
    assert not (sharded / "model.safetensors").exists()
    assert read_tensors(sharded) == read_tensors(hf)
    written, opened = open_model(hf), open_model(sharded)
    assert compare(written, opened) == len(list(all_slices(written.parameters)))


def test_comparing_finds_one_changed_bit_by_its_name(orbax, small):
    _, config, params, tokenizer = small
    leaf = np.array(params["llm"]["decoder"]["layers"]["mlp"]["up_proj"]["kernel"])
    leaf.view(np.uint32)[1, 2, 3] ^= 1
    changed = flatten(params) | {"llm/decoder/layers/mlp/up_proj/kernel": leaf}
    source = model_in_memory(config, unflatten(changed), tokenizer)
    with pytest.raises(UserError, match=r"llm/decoder/layers/mlp/up_proj/kernel\[1\]"):
        compare(source, open_model(orbax))


def test_a_folder_that_is_not_empty_is_left_alone(hf, tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(UserError, match=rf"{tmp_path}: exists already"):
        convert(hf, tmp_path, "orbax")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize("exists", [False, True])
def test_an_output_that_fails_its_check_never_has_its_name(hf, tmp_path, exists):
    output = tmp_path / "out"
    if exists:
        output.mkdir()

    def check(folder):
        assert (folder / "config.json").exists() and folder.name != "out"
        assert not (output / "config.json").exists()
        raise UserError("differs")

    with pytest.raises(UserError, match="differs"):
        write_model(open_model(hf), output, "deepseek", check=check)
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if exists else [])
    assert not exists or not list(output.iterdir())


@pytest.mark.parametrize("kind", ["file", "full", "link", "below a file", "unwritable"])
def test_an_output_that_cannot_be_made_is_an_error_before_the_work(hf, tmp_path, monkeypatch, kind):
    (tmp_path / "file").write_text("")
    (tmp_path / "full" / "inside").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    names = {"below a file": tmp_path / "file" / "out", "unwritable": "/proc/out"}
    monkeypatch.setattr(writing, "write_architecture", lambda *_: pytest.fail("started to work"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"(exists already, expected a new or empty folder|cannot be written)"):
        write_model(open_model(hf), names.get(kind, tmp_path / kind), "orbax")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("layout", ["hf", "deepseek", "orbax"])
def test_nothing_is_left_of_a_conversion_that_fails_on_its_way(hf, tmp_path, monkeypatch, layout):
    source, read = open_model(hf), ForeignTensors.read

    def full_disk(self, part):
        if part.path == "vq/codebook":
            raise OSError(errno.ENOSPC, "No space left on device")
        return read(self, part)

    monkeypatch.setattr(ForeignTensors, "read", full_disk)
    with pytest.raises(UserError, match=rf"{tmp_path}/out: cannot be written \(No space left on device\)"):
        write_model(source, tmp_path / "out", layout)
    assert list(tmp_path.iterdir()) == []


def damaged(hf, tmp_path, change):
    """A copy of the folder with its tensors changed by `change(dict)`."""
    tensors = {
        name: np.frombuffer(data, np.float32).reshape(shape) for name, (_, shape, data) in read_tensors(hf).items()
    }
    change(tensors)
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in hf.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    infos = {name: TensorInfo(array.shape, array.dtype) for name, array in tensors.items()}
    with SafetensorsWriter(folder, infos) as writer:
        for name, array in tensors.items():
            writer.write(name, array)
    return folder


def test_tensors_that_do_not_fit_are_listed_on_both_sides(hf, tmp_path):
    def change(tensors):
        tensors["model.extra.weight"] = tensors.pop("model.aligner.fc1.weight")
        tensors["lm_head.weight"] = np.zeros((383, 24), np.float32)

    with pytest.raises(UserError) as error:
        open_model(damaged(hf, tmp_path, change))
    message = str(error.value)
    assert "missing (1): model.aligner.fc1.weight" in message
    assert "unexpected (1): model.extra.weight" in message
    assert "lm_head.weight [383, 24] (expected [384, 24])" in message


def test_a_missing_text_head_is_tied_and_a_present_one_counts(hf, small, tmp_path):
    source = open_model(damaged(hf, tmp_path, lambda tensors: tensors.pop("lm_head.weight")))
    tied = load_params(source)["llm"]
    np.testing.assert_array_equal(tied["lm_head"]["kernel"], tied["embed_tokens"].T)
    untied = small[2]["llm"]
    assert np.any(untied["lm_head"]["kernel"] != untied["embed_tokens"].T)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}: not a model folder"):
        open_model(tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_normalisation_of_images_travels_with_the_model(hf, small, tmp_path, layout):
    _, config, params, tokenizer = small
    clip = Normalization((0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
    source = model_in_memory(config, params, tokenizer, clip)
    write_model(source, tmp_path / "out", layout)
    assert open_model(tmp_path / "out").normalization == clip
    assert open_model(hf).normalization == JANUS_NORMALIZATION


def test_a_model_without_system_prompt_keeps_its_prompts_in_a_hugging_face_folder(hf, small, tmp_path):
    _, config, params, tokenizer = small
    config = dataclasses.replace(config, prompt_style="janus_pro_tiny")
    source = model_in_memory(config, params, tokenizer)
    write_model(source, tmp_path / "hf", "hf")
    assert open_model(tmp_path / "hf").config == config
    with pytest.raises(UserError, match="prompt_style='janus_pro_tiny' cannot be written in the deepseek layout"):
        write_model(source, tmp_path / "deepseek", "deepseek")
    assert open_model(hf).config.prompt_style == "janus_pro"


def test_a_folder_that_generates_with_another_pad_is_refused(hf, tmp_path):
    shutil.copytree(hf, tmp_path / "other")
    (tmp_path / "other" / "generation_config.json").write_text('{"pad_token_id": 0}')
    with pytest.raises(UserError, match=r"generation_config\.json: pad_token_id=0, expected 2"):
        open_model(tmp_path / "other")


def test_the_pipeline_reads_and_writes_every_layout(hf, tmp_path):
    model = janus_jax.from_pretrained(hf)
    question = "Which is larger, two or five?"
    answer = model.chat([], question, max_new_tokens=8)
    codes = model.generate_codes([question], 1, temperature=0.0)
    for layout in LAYOUTS:
        model.save_pretrained(tmp_path / layout, format=layout)
        again = janus_jax.from_pretrained(tmp_path / layout)
        assert again.chat([], question, max_new_tokens=8) == answer
        np.testing.assert_array_equal(again.generate_codes([question], 1, temperature=0.0), codes)
    assert read_tensors(tmp_path / "hf") == read_tensors(hf)
    with pytest.raises(UserError, match=r"format 'gguf' is not one of"):
        model.save_pretrained(tmp_path / "other", format="gguf")
    for dtype in ("int8", "float8_e4m3fn", "complex64", "float99"):
        with pytest.raises(UserError, match=rf"dtype='?{dtype}.* floating-point"):
            model.save_pretrained(tmp_path / "other", dtype=dtype)
    assert not (tmp_path / "other").exists()
