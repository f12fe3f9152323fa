"""Folders that PEFT wrote give the logits that PEFT computed; ours hold the same bytes; damaged ones are refused."""

import copy
import functools
import json
import re
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from janus_jax.errors import UserError
from janus_jax.inference.adapters import Adapters
from janus_jax.inference.janus import JanusEngine
from janus_jax.inference.padding import Buckets
from janus_jax.models.execution import Execution
from janus_jax.models.params import bind, build, flatten
from janus_jax.models.scan_layers import unstack_layers
from janus_jax.weights import strangers_patterns
from janus_jax.weights.adapter import merged_model, parameter_count
from janus_jax.weights.load import load_params
from janus_jax.weights.peft import read_adapter, write_adapter
from janus_jax.weights.reader import model_in_memory
from janus_jax.weights.strangers_patterns import matching_names
from tests.helpers.peft_files import CASES, CODES, FILES, GUIDANCE, NUM_NEW, PAD_ID, PROMPT, TOKENS, pixels, tiny_pair

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@functools.cache
def tiny():
    _, config, params = tiny_pair()
    return model_in_memory(config, params, tokenizer=None)


@functools.cache
def program(scanned):
    model = build(tiny().config, Execution(scan_layers=scanned))

    def logits(params):
        apply = bind(model, params)
        parts = [
            apply(jnp.asarray(TOKENS), method="embed_text"),
            apply(jnp.asarray(pixels()), method="embed_images"),
            apply(jnp.asarray(CODES), method="embed_codes"),
        ]
        x = jnp.concatenate(parts, axis=1)
        hidden, _ = apply(x, jnp.arange(x.shape[1])[None], jnp.ones(x.shape[:2], jnp.int32))
        return apply(hidden[0], method="text_logits"), apply(hidden[0], method="image_logits")

    return jax.jit(logits)


def differences(params, name, scanned=True):
    expected = np.load(FILES / "logits.npz")
    found = program(scanned)(params)
    return [
        np.abs(ours - expected[f"{name}_{kind}"]).max() for ours, kind in zip(found, ("text", "image"), strict=True)
    ]


@pytest.mark.parametrize("name", CASES)
def test_merged_adapters_give_the_logits_of_peft(name):
    merged = load_params(merged_model(tiny(), read_adapter(FILES / name, tiny())))
    assert max(differences(merged, name)) < 1e-5
    assert min(differences(load_params(tiny()), name)) > 1e-3  # the adapter matters to both heads


@pytest.mark.parametrize("name", ["list", "linear"])
def test_adapters_beside_the_weights_give_the_logits_of_peft_and_can_be_left(name):
    base = unstack_layers(load_params(tiny()))
    adapters = Adapters(base, {"a": read_adapter(FILES / name, tiny())}, jnp.float32)
    assert max(differences(adapters.params("a"), name, scanned=False)) < 1e-5
    without, off = program(False)(base), program(False)(adapters.params("a", scale=0.0))
    np.testing.assert_array_equal(without[0], off[0])
    assert flatten(adapters.params(None)).keys() == flatten(base).keys()
    with pytest.raises(UserError, match="'b'"):
        adapters.params("b")


@functools.cache
def engine():
    """An engine whose tokenizer has special ids alone."""

    def unconditional(ids):
        return [ids[0], *[PAD_ID] * (len(ids) - 2), ids[-1]]

    tokenizer = SimpleNamespace(
        pad_id=PAD_ID, image_id=-1, eos_id=-1, check_roles=lambda style: None, unconditional=unconditional
    )
    return JanusEngine(tiny().config, load_params(tiny()), tokenizer, buckets=Buckets(8, 8))


def greedy(decoder):
    """Ids of an answer to `PROMPT`, and guided codes."""
    keys, pieces = jax.random.split(jax.random.key(0), 1), decoder.pieces([PROMPT])
    state = decoder.prefill(pieces, [None] * len(pieces), keys, slots=decoder.slots(1, 8 + NUM_NEW))
    text = decoder.continue_(state, keys, [NUM_NEW], NUM_NEW).tokens[0, :NUM_NEW]
    images = decoder.prefill_images(decoder.guided([PROMPT]), keys, GUIDANCE)
    codes = decoder.continue_images(images, keys, GUIDANCE, NUM_NEW).codes[0, :NUM_NEW]
    return text.tolist(), codes.tolist()


@pytest.mark.parametrize("name", CASES)
def test_greedy_ids_and_guided_codes_of_merged_adapters_are_those_of_peft(name):
    merged = unstack_layers(load_params(merged_model(tiny(), read_adapter(FILES / name, tiny()))))
    expected = np.load(FILES / "logits.npz")
    text, codes = greedy(engine().with_params(merged))
    assert text == expected[f"{name}_answer"].tolist() and codes == expected[f"{name}_codes"].tolist()
    assert min(len(set(text)), len(set(codes))) > 4  # tokens that only repeat themselves would prove little


@pytest.mark.slow  # compiles all programs again
@pytest.mark.parametrize("name", ["list", "linear"])
def test_greedy_ids_and_guided_codes_of_adapters_beside_the_weights_are_those_of_peft(name):
    decoder = copy.copy(engine())
    adapters = Adapters(decoder.params, {"a": read_adapter(FILES / name, tiny())}, jnp.float32)
    decoder.params = adapters.params("a")
    expected = np.load(FILES / "logits.npz")
    assert greedy(decoder) == (expected[f"{name}_answer"].tolist(), expected[f"{name}_codes"].tolist())


@pytest.mark.parametrize("name", ["dora", "saved"])
def test_what_can_only_be_merged_is_refused_beside_the_weights(name):
    with pytest.raises(UserError, match="DoRA|embeddings"):
        Adapters(load_params(tiny()), {"a": read_adapter(FILES / name, tiny())}, jnp.float32)


@pytest.mark.parametrize("name", ["list", "dora", "linear"])
def test_our_folder_holds_the_same_bytes_as_that_of_peft(name, tmp_path):
    adapter = read_adapter(FILES / name, tiny())
    write_adapter(tmp_path / "out", adapter, tiny(), "base", rslora=CASES[name].get("use_rslora", False))
    config, tensors = ((tmp_path / "out" / file).stat().st_mode for file in ("adapter_config.json", TENSORS))
    assert config == tensors  # others may read both
    ours, theirs = load_file(tmp_path / "out" / TENSORS), load_file(FILES / name / TENSORS)
    assert ours.keys() == theirs.keys() and len(ours) > 10
    assert all(ours[key].tobytes() == theirs[key].tobytes() for key in theirs)
    again = read_adapter(tmp_path / "out", tiny())
    assert {part: pair.scale for part, pair in again.pairs.items()} == pytest.approx(
        {part: pair.scale for part, pair in adapter.pairs.items()}
    )
    assert parameter_count(again) == sum(values.size for values in theirs.values())


def test_deepseek_names_are_written_and_read_where_fused_matrices_agree(tmp_path):
    adapter = read_adapter(FILES / "dora", tiny())
    write_adapter(tmp_path / "out", adapter, tiny(), "base", names="deepseek")
    assert all("language_model.model.layers" in name for name in load_file(tmp_path / "out" / TENSORS))
    again = read_adapter(tmp_path / "out", tiny())
    assert again.pairs.keys() == adapter.pairs.keys()
    with pytest.raises(UserError, match="qkv"):  # SigLIP's q, k and v have adapters of their own
        write_adapter(tmp_path / "list", read_adapter(FILES / "list", tiny()), tiny(), "base", names="deepseek")


def test_a_fused_adapter_is_divided_exactly(tmp_path):
    rng = np.random.default_rng(0)
    module = "base_model.model.vision_model.vision_tower.blocks.0.attn.qkv"
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 16), (48, 2)))
    save_file({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, tmp_path / TENSORS)
    (tmp_path / CONFIG).write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["qkv"]})
    )
    pairs = read_adapter(tmp_path, tiny()).pairs
    by_name = {part.path: pair for part, pair in pairs.items()}
    three = [by_name[f"siglip/layers/{x}_proj/kernel"] for x in "qkv"]
    joined = np.concatenate([pair.a @ pair.b for pair in three], axis=1)
    np.testing.assert_allclose(joined, (b @ a).T, rtol=1e-5, atol=1e-6)
    assert {pair.scale for pair in pairs.values()} == {2.0}


def _edit(change):
    def damage(folder):
        tensors = load_file(folder / TENSORS)
        change(tensors)
        save_file(tensors, folder / TENSORS, metadata={"format": "pt"})

    return damage


def _set(**fields):
    def damage(folder):
        path = folder / CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return damage


Q_PROJ = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
DAMAGES = {
    "not a whole safetensors file": lambda folder: (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-9]),
    "not finite": _edit(lambda t: t[f"{Q_PROJ}.lora_A.weight"].fill(np.nan)),
    "does not have": _edit(lambda t: t.update({f"{Q_PROJ}x.lora_A.weight": t.pop(f"{Q_PROJ}.lora_A.weight")})),
    "lora_A.weight is missing": _edit(lambda t: t.pop(f"{Q_PROJ}.lora_A.weight")),
    r"\[3, 23\], expected \[3, 24\]": _edit(
        lambda t: t.update({f"{Q_PROJ}.lora_A.weight": t[f"{Q_PROJ}.lora_A.weight"][:, :-1].copy()})
    ),
    "has no adapter, but": _edit(lambda t: [t.pop(f"{Q_PROJ}.lora_{x}.weight") for x in "AB"]),
    "begin with base_model.model": _edit(lambda t: t.update({"other": np.zeros(2, np.float32)})),
    "has rank 4": _set(r=4),
    "use_dora=True": _set(use_dora=True),
    "lora_bias=True": _set(lora_bias=True),
    "layer_replication": _set(layer_replication=[[0, 1]]),
    "bias='all'": _set(bias="all"),
    "init_lora_weights='pissa'": _set(init_lora_weights="pissa"),
    "some_new_field=1": _set(some_new_field=1),
    "peft_type='IA3'": _set(peft_type="IA3"),
    "target_modules": _set(target_modules=["v_proj"]),
    "not a regular expression|regular expressions": _set(target_modules="("),
    "adapter_config.json": lambda folder: (folder / CONFIG).unlink(),
    "neither": lambda folder: (folder / TENSORS).unlink(),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_damaged_or_foreign_folder_is_refused(message, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(FILES / "list", folder)
    DAMAGES[message](folder)
    with pytest.raises(UserError, match=message) as error:
        read_adapter(folder, tiny())
    assert re.search("adapter", str(error.value))


def test_copies_of_another_base_and_unnamed_modules_are_refused(tmp_path):
    copy = "base_model.model.lm_head.base_layer.weight"
    for message, damage in (
        ("another base", _edit(lambda t: t[copy].__iadd__(1e-3))),
        ("modules_to_save", _set(modules_to_save=["generation_aligner"])),
    ):
        folder = tmp_path / message
        shutil.copytree(FILES / "saved", folder)
        damage(folder)
        with pytest.raises(UserError, match=message):
            read_adapter(folder, tiny())


SLOW = {
    "target_modules": r"model\.(([a-z_.0-9]+)+)+#",
    "rank_pattern": {"(([a-z_.0-9]+)*)*#": 3},
}


@pytest.mark.parametrize("field", SLOW)
def test_a_pattern_that_takes_years_is_refused(field, tmp_path, monkeypatch):
    monkeypatch.setattr(strangers_patterns, "SECONDS", 0.5)
    folder = tmp_path / "adapter"
    shutil.copytree(FILES / "list", folder)
    _set(**{field: SLOW[field]})(folder)
    with pytest.raises(UserError, match=r"adapter_config.json: its regular expressions take more than 0.5 s"):
        read_adapter(folder, tiny())


def test_patterns_match_as_peft_matches_them():
    names = ["model.a.q_proj", "q_proj", "xq_proj", "model.b.k_proj", "a" * 40 + "b"]
    patterns = [r"(.*\.)?(q_proj)", r"model\..*", "a"]
    found = matching_names(patterns, names, "here")
    assert found == {pattern: {name for name in names if re.fullmatch(pattern, name)} for pattern in patterns}
    assert found[patterns[0]] == {"model.a.q_proj", "q_proj"}
    assert matching_names([], names, "here") == {}


def test_the_textbook_pattern_ends_in_time(monkeypatch):
    monkeypatch.setattr(strangers_patterns, "SECONDS", 0.5)
    with pytest.raises(UserError, match="here: its regular expressions take more than 0.5 s"):
        matching_names(["(a+)+$"], ["a" * 60 + "b"], "here")
