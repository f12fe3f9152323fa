"""Programs that are compiled for shapes, while the weights are read, are those that the model then takes."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from janus_jax import phases
from janus_jax.inference.compiled_programs import Program
from janus_jax.inference.engine import Engine
from janus_jax.inference.janus import JanusPipeline
from janus_jax.inference.loading import load
from janus_jax.inference.padding import Buckets
from janus_jax.inference.validation import user_message
from janus_jax.models.params import flatten
from janus_jax.weights.load import load_params, loaded_shapes
from janus_jax.weights.open_model import open_model
from janus_jax.weights.reader import model_in_memory
from tests.helpers.small_models import DECODED, random_params


@pytest.fixture
def shown():
    """The phases of a call as (name, total, amounts)."""
    seen = []

    @contextlib.contextmanager
    def display(name, total, unit):
        amounts = []
        seen.append((name, total, amounts))
        yield amounts.append

    phases.show_with(display)
    yield seen
    phases.show_with(phases.nothing)


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize(("unrolled", "transposed"), [(True, False), (True, True), (False, True)])
def test_shapes_are_those_of_the_loaded_parameters(saved, quantization, unrolled, transposed):
    reader, options = open_model(saved), dict(unrolled=unrolled, quantization=quantization, transposed=transposed)
    for dtype in ("float32", "bfloat16"):
        expected = flatten(load_params(reader, dtype, **options))
        found = flatten(loaded_shapes(reader, dtype, **options))
        assert {path: (leaf.shape, leaf.dtype) for path, leaf in found.items()} == {
            path: (leaf.shape, leaf.dtype) for path, leaf in expected.items()
        }


@pytest.mark.slow  # the shapes that programs are compiled for are a default test
def test_a_question_and_an_image_take_what_was_compiled_while_the_weights_were_read(tokenizer, pictures, shown):
    config = dataclasses.replace(DECODED, llama=dataclasses.replace(DECODED.llama, depth=1))
    pipeline = JanusPipeline(config, random_params(config, seed=12), tokenizer, buckets=Buckets(32, 16))
    reader = model_in_memory(config, random_params(config, seed=12), tokenizer)
    requests = pipeline.engine.reader
    (asked,), sampling = requests.text([[user_message("Which?", 1)]], [pictures[:1]], max_new_tokens=5, temperature=0.0)
    images, options = requests.codes(["one"], 2, temperature=1.0, seed=3)

    def ahead(engine):
        Engine.compile_answer_ahead(engine, asked, sampling)
        engine.compile_images_ahead(images, 2, **options)

    loaded = load(reader, np.dtype("float32"), buckets=pipeline.engine.buckets, compile_ahead=ahead)
    ((_, total, amounts),) = [each for each in shown if each[0] == "reading weights"]
    assert total == sum(amounts) == sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
    answer = loaded.engine.answer([asked], sampling)
    codes = loaded.engine.generate(images, 2, **options)
    decoded = loaded.engine.decode(codes.reshape(2, -1))
    compiled = [name for name, _, _ in shown if name.startswith("compiling")]
    assert len(compiled) == len(set(compiled)) == 7  # each of the programs once
    assert answer == pipeline.engine.answer([asked], sampling)
    np.testing.assert_array_equal(codes, pipeline.engine.generate(images, 2, **options))
    np.testing.assert_array_equal(decoded, pipeline.engine.decode(codes.reshape(2, -1)))


def test_an_error_of_the_compiler_is_raised_by_the_call(pipeline):
    def fails(x):
        raise ValueError("no such operation")

    program = Program("fails", fails)
    program.compile_ahead(np.zeros(3))
    with pytest.raises(ValueError, match="no such operation"):
        program(np.ones(3))
