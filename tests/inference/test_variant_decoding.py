"""The arms of the ablation answer and generate; a semantic decoder's KV cache changes no code."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.batches import Modality
from janus_jax.errors import UserError
from janus_jax.inference.janus import JanusPipeline
from janus_jax.models.config import SemanticDecoderConfig
from janus_jax.models.params import bind, build, flatten, unflatten
from janus_jax.models.presets import ablation_arms
from janus_jax.weights.quantization import scale_path
from tests.helpers import REPOSITORY
from tests.helpers.quantized import quantize_params
from tests.helpers.small_models import DECODED, random_params
from tests.inference.conftest import BUCKETS

SEMANTIC = SemanticDecoderConfig(width=12, depth=2, num_heads=3, mlp_dim=20, norm_eps=1e-6)
ARMS = ablation_arms(DECODED, SEMANTIC)


def make_pipeline(arm, tokenizer):
    return JanusPipeline(ARMS[arm], random_params(ARMS[arm], seed=12), tokenizer, buckets=BUCKETS)


@pytest.mark.slow  # the default test of the model takes codes one at a time too
def test_greedy_codes_are_those_of_a_pass_over_all_codes(tokenizer):
    pipeline = make_pipeline("b", tokenizer)
    codes = pipeline.generate_codes(["one two"], 1, cfg_weight=1.0, temperature=0)[0]
    prompt = pipeline.engine.reader.codes(["one two"], 1)[0][0].prompt
    tokens = jnp.asarray([*prompt, *codes])[None]
    modality = jnp.asarray([Modality.TEXT] * len(prompt) + [Modality.GENERATION_IMAGE] * len(codes))[None]

    @jax.jit
    def logits(tokens):
        apply = bind(build(ARMS["b"]), random_params(ARMS["b"], seed=12))
        x = apply(tokens, modality, method="embed")
        hidden, _ = apply(x, jnp.arange(tokens.shape[1])[None], jnp.ones_like(tokens))
        return apply(hidden[0, len(prompt) - 1 : -1], method="image_logits")

    np.testing.assert_array_equal(np.argmax(logits(tokens), axis=1), codes)
    assert len(set(codes.tolist())) > 2


@pytest.mark.slow
@pytest.mark.parametrize("arm", "abcef")
def test_an_arm_has_its_tasks_after_saving_and_loading(arm, tokenizer, pictures, tmp_path):
    from janus_jax.inference.loading import from_pretrained

    pipeline = make_pipeline(arm, tokenizer)
    pipeline.save_pretrained(tmp_path / "model")
    again = from_pretrained(tmp_path / "model", buckets=BUCKETS)
    if ARMS[arm].understands:
        answer = pipeline.chat(pictures[0], "one", max_new_tokens=4)
        assert again.chat(pictures[0], "one", max_new_tokens=4) == answer
        conversation = again.conversation()
        assert conversation.ask("one", pictures[0], max_new_tokens=4).text == answer
        conversation.ask("two", pictures[1], max_new_tokens=4)
    if ARMS[arm].generates:
        codes = pipeline.generate_codes(["one", "two three"], 2, seed=3)
        np.testing.assert_array_equal(again.generate_codes(["one", "two three"], 2, seed=3), codes)
        assert again.decode_codes(codes)[0].size == (16, 16)


@pytest.mark.slow
def test_an_arm_in_8_bits_is_the_arm_with_the_rounded_weights(tokenizer, pictures, tmp_path):
    from janus_jax.inference.loading import from_pretrained

    pipeline = make_pipeline("b", tokenizer)
    pipeline.save_pretrained(tmp_path / "model")
    quantized = from_pretrained(tmp_path / "model", quantization="int8", buckets=BUCKETS)
    flat, integers = flatten(pipeline.params), flatten(quantize_params(pipeline.params))
    kernels = [path for path, leaf in integers.items() if leaf.dtype == jnp.int8]
    assert {path.split("/")[0] for path in kernels} == {"llm", "gen_head"}  # not the encoders of either task
    for path in kernels:
        flat[path] = jnp.asarray(np.asarray(integers[path], np.float64) * integers[scale_path(path)], jnp.float32)
    rounded = JanusPipeline(ARMS["b"], unflatten(flat), tokenizer, buckets=BUCKETS)
    answers = [model.chat(pictures[0], "one", max_new_tokens=4) for model in (quantized, rounded)]
    assert answers[0] == answers[1]
    codes = [model.generate_codes(["one"], 1, cfg_weight=1.0, temperature=0) for model in (quantized, rounded)]
    np.testing.assert_array_equal(*codes)


@pytest.mark.slow
def test_an_arm_with_a_semantic_tokenizer_is_the_same_on_several_devices_and_nearly_so_in_bfloat16():
    command = [sys.executable, "-m", "tests.helpers.sharded_variant"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    training, (one, four) = result["training"], result["decoding"]
    alone, sharded, rounded = training["losses"]
    assert training["sharded_leaves"] > 20 and training["semantic_gradient"] > 1e-3
    assert alone[1] < alone[0] - 0.1
    np.testing.assert_allclose(sharded, alone, rtol=0, atol=1e-6)
    assert training["gradient_difference"] < 1e-6 * max(1, training["gradient_scale"])
    np.testing.assert_allclose(rounded, alone, rtol=0, atol=0.01)
    assert rounded != alone
    assert (four["asked"], four["codes"]) == (one["asked"], one["codes"])
    assert len(set(one["asked"])) == 3 and len(set(map(tuple, one["codes"]))) == 6
    assert max(four["shares"].values()) == 2


@pytest.mark.parametrize("arm", "ce")
def test_an_arm_that_only_understands_generates_no_images(arm, tokenizer):
    with pytest.raises(UserError, match="only answers questions.*generates no images"):
        make_pipeline(arm, tokenizer).generate_images("one")


def test_an_arm_that_only_generates_answers_no_questions(tokenizer, pictures):
    with pytest.raises(UserError, match="only generates images.*answers no questions"):
        make_pipeline("f", tokenizer).chat(pictures[0], "one")


def test_another_layout_is_refused(tokenizer, tmp_path):
    with pytest.raises(UserError, match="JanusVariantConfig cannot be written in the hf layout"):
        make_pipeline("e", tokenizer).save_pretrained(tmp_path / "model", format="hf")
