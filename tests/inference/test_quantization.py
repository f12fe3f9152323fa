"""Weight matrices in int8: rounding within half a scale, products with the rounded weights, distance of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.digits import data as digits
from examples.digits.benchmark import evaluate_understanding
from examples.digits.quantization import compare
from janus_jax.batches import Modality
from janus_jax.errors import UserError
from janus_jax.evaluation.quantization import image_agreement, text_agreement, weight_bytes
from janus_jax.inference.aot import abstract_decoding_params, abstract_image_loop
from janus_jax.inference.janus import JanusPipeline
from janus_jax.inference.loading import from_pretrained
from janus_jax.inference.memory import cache_bytes
from janus_jax.inference.validation import user_message
from janus_jax.models.params import bind, build, count, flatten, unflatten
from janus_jax.models.scan_layers import stack_layers
from janus_jax.sharding import MESH_AXES, make_mesh
from janus_jax.weights.quantization import is_quantized, quantize
from tests.helpers.quantized import quantize_params

QUESTIONS = ["Which digit?", "Is one odd?"]
PROMPTS = ["seven", "the digit one"]


@pytest.fixture(scope="module")
def quantized(pipeline):
    return JanusPipeline(pipeline.config, quantize_params(pipeline.params), pipeline.tokenizer)


@pytest.fixture(scope="module")
def rounded(pipeline, quantized):
    """The full model with the weights that the integers and scales stand for."""
    flat, integers = flatten(pipeline.params), flatten(quantized.params)
    for path in filter(is_quantized, flat):
        scales = integers[path.removesuffix("kernel") + "kernel_scale"]
        flat[path] = jnp.asarray(np.asarray(integers[path], np.float64) * np.asarray(scales), jnp.float32)
    return JanusPipeline(pipeline.config, unflatten(flat), pipeline.tokenizer)


def test_a_kernel_is_within_half_a_scale_of_its_integers():
    kernel = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32) * [1e-3, 1, 50, 0, 2]
    integers, scales = quantize(kernel)
    assert integers.dtype == np.int8
    assert np.all(np.abs(integers.astype(np.float64) * scales - kernel) <= scales / 2 * (1 + 1e-6))
    np.testing.assert_array_equal(np.abs(integers).max(axis=0), [127, 127, 127, 0, 127])


def test_what_every_step_reads_is_in_8_bits_and_nothing_else(pipeline, quantized):
    kinds = {path: leaf.dtype for path, leaf in flatten(quantized.params).items()}
    assert {path for path, kind in kinds.items() if kind == jnp.int8} == {
        f"llm/decoder/layers_{layer}/{name}_proj/kernel"
        for layer in (0, 1)
        for name in (*(f"attention/{x}" for x in "qkvo"), *(f"mlp/{x}" for x in ("gate", "up", "down")))
    } | {"llm/lm_head/kernel", "gen_head/proj/kernel", "gen_head/codes/kernel"}


def test_it_computes_as_the_model_of_the_rounded_weights(pipeline, quantized, rounded, pictures):
    exact = image_agreement(rounded, quantized, PROMPTS)
    assert abs(exact.divergence) < 1e-6
    assert exact.greedy == 1
    assert exact.tokens == 2 * 16
    images = [pictures[:1], []]
    for off in (
        text_agreement(pipeline, quantized, images, QUESTIONS),
        image_agreement(pipeline, quantized, PROMPTS),
    ):
        assert 1e-5 < off.divergence < 0.05


def test_divergence_and_agreement_are_those_of_their_definition(pipeline):
    """Compared with a text head of zeros, for which all tokens are equally probable and the first counts as greedy."""
    llm = pipeline.params["llm"]
    blank = llm | {"lm_head": {"kernel": jnp.zeros_like(llm["lm_head"]["kernel"])}}
    other = JanusPipeline(pipeline.config, pipeline.params | {"llm": blank}, pipeline.tokenizer)
    found = text_agreement(pipeline, other, [[]], ["Is one odd?"], max_new_tokens=1)
    answer = pipeline.answer([[user_message("Is one odd?", 0)]], [[]], max_new_tokens=1)[0]
    ids = np.asarray(answer.prompt_token_ids)[None]

    @jax.jit
    def last_hidden(params):
        apply = bind(build(pipeline.config), params)
        x = apply(ids, np.full_like(ids, Modality.TEXT), None, method="embed")
        return apply(x, jnp.arange(ids.size)[None], jnp.ones_like(ids))[0][0, -1]

    hidden = last_hidden(stack_layers(pipeline.params))
    logits = np.asarray(hidden, np.float64) @ np.asarray(llm["lm_head"]["kernel"], np.float64)
    p = np.exp(logits - logits.max()) / np.sum(np.exp(logits - logits.max()))
    np.testing.assert_allclose(found.divergence, np.sum(p * np.log(p)) + np.log(len(p)), rtol=1e-4)
    assert found.tokens == 1
    assert found.greedy == (logits.argmax() == 0)


@pytest.fixture(scope="module")
def in_bfloat16(pipeline, tmp_path_factory):
    """The full and the quantised model as a CPU holds them."""
    folder = tmp_path_factory.mktemp("bfloat16") / "model"
    pipeline.save_pretrained(folder)
    return [from_pretrained(folder, jnp.bfloat16, quantization=kind) for kind in (None, "int8")]


def test_weights_are_counted_as_they_are_held(pipeline, in_bfloat16):
    full, quantized = map(weight_bytes, in_bfloat16)
    kernels = [leaf for path, leaf in flatten(pipeline.params).items() if is_quantized(path)]
    weights, scales = sum(leaf.size for leaf in kernels), sum(leaf.shape[1] for leaf in kernels)
    assert weight_bytes(pipeline) == 4 * count(pipeline.params)
    assert full == 2 * count(pipeline.params)
    assert quantized == full - weights + 4 * scales


@pytest.mark.slow
def test_the_comparison_of_a_model_with_its_8_bits(in_bfloat16, monkeypatch):
    """With random weights, few digits, and 2 generated images of each class."""
    training, held_out = digits.load_digits()
    few = digits.Digits(held_out.intensities[:12], held_out.labels[:12])
    monkeypatch.setattr(digits, "load_digits", lambda: (training, few))
    report = compare(*in_bfloat16, images_per_class=2)
    assert report["image_tokens"] == 10 * 16
    for kind in ("text", "image"):
        assert 0 < report[f"{kind}_divergence"] < 0.05
        assert 0.8 < report[f"{kind}_greedy"] <= 1
    for kind, model in zip(("full", "quantized"), in_bfloat16, strict=True):
        assert report[f"{kind}_megabytes"] == weight_bytes(model) / 1e6
        assert report[f"{kind}_reading_accuracy"] == evaluate_understanding(model, few).accuracy
        assert 0 <= report[f"{kind}_drawing_accuracy"] < 0.5  # as of random weights
        assert report[f"{kind}_diversity"] > 0.1


def test_loading_quantises_and_a_quantised_model_is_not_saved(pipeline, quantized, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    mesh = make_mesh(dict.fromkeys(MESH_AXES, 1))
    loaded = from_pretrained(tmp_path / "model", mesh=mesh, quantization="int8")
    expected, found = flatten(quantized.params), flatten(loaded.params)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)
        assert found[path].sharding.mesh == mesh
    with pytest.raises(UserError, match="quantised to int8"):
        loaded.save_pretrained(tmp_path / "again")
    with pytest.raises(UserError, match=r"quantization='int4' is not one of \['int8'\]"):
        from_pretrained(tmp_path / "model", quantization="int4")


def test_the_abstract_step_is_that_of_the_pipeline_and_copies_no_cache(pipeline, quantized):
    mesh = make_mesh(dict.fromkeys(MESH_AXES, 1))
    for model, quantization in ((pipeline, None), (quantized, "int8")):
        found = flatten(abstract_decoding_params(pipeline.config, mesh, jnp.float32, quantization))
        expected = flatten(model.params)
        assert {path: (leaf.shape, leaf.dtype) for path, leaf in found.items()} == {
            path: (leaf.shape, leaf.dtype) for path, leaf in expected.items()
        }
    loop = abstract_image_loop(pipeline.config, mesh, images=3, prompt_length=32, dtype=jnp.float32)
    memory = loop.lower().compile().memory_analysis()
    assert memory.alias_size_in_bytes > cache_bytes(pipeline.config.llama, loop.model.execution, 6, 15)
