"""The suite `inference`: both sides decode the same tokens, the floor counts the right bytes, cases have their bars."""

import contextlib
import dataclasses
import functools
import os
import shutil

import jax
import numpy as np
import pytest
import torch

from benchmarks import floor, inference, inference_sides
from janus_jax.errors import UserError
from janus_jax.inference.decode_image import start_images, start_prompts
from janus_jax.inference.sampling import Sampling
from janus_jax.models.params import flatten
from janus_jax.models.presets import JANUS_PRO_TINY

LLAMA = JANUS_PRO_TINY.llama
# Numbers in the weight matrices and vectors of the tiny model.
LAYERS = LLAMA.depth * (4 * LLAMA.width**2 + 3 * LLAMA.width * LLAMA.mlp_dim)
NORMS = LLAMA.depth * 2 * LLAMA.width + LLAMA.width
TEXT_HEAD = LLAMA.width * LLAMA.vocab_size
IMAGE_HEAD = LLAMA.width * (96 + 128), 96 + 128  # through 96 to 128 codes
ALIGNER = 4 * LLAMA.width + LLAMA.width**2, 2 * LLAMA.width  # codes of 4 numbers, two linear layers
TOKEN = 2 * LLAMA.depth * LLAMA.width  # numbers of one token in the cache


def tiny_pipeline(dtype, stored=None):
    return pipeline_on(jax.default_backend(), dtype, stored or dtype)


@functools.cache
def pipeline_on(backend, dtype, stored):
    """The tests pretend another backend, so it is part of the key."""
    assert backend == jax.default_backend()
    return inference_sides.random_pipeline(JANUS_PRO_TINY, dtype, stored)


# On a CPU the weight matrices keep the dtype that they were stored in, and the cache is float32.
@pytest.mark.parametrize(
    ("backend", "dtype", "stored", "matrix", "other", "cached"),
    [
        ("cpu", "float32", "float32", 4, 4, 4),
        ("cpu", "float32", "bfloat16", 2, 4, 4),
        ("cpu", "bfloat16", "bfloat16", 2, 2, 4),
        ("gpu", "bfloat16", "bfloat16", 2, 2, 2),
        ("gpu", "float32", "bfloat16", 4, 4, 4),
    ],
)
def test_floor_reads_what_is_held(monkeypatch, backend, dtype, stored, matrix, other, cached):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    pipeline = tiny_pipeline(dtype, stored)
    text = matrix * (LAYERS + TEXT_HEAD) + other * NORMS
    assert floor.text_step_bytes(pipeline, rows=3, slots=7) == text + cached * 3 * 7 * TOKEN
    image = matrix * (LAYERS + IMAGE_HEAD[0] + ALIGNER[0]) + other * (NORMS + IMAGE_HEAD[1] + ALIGNER[1])
    cache = 2 * 5 * 7 + 2 * 11  # five images in both halves, the prompt once in each
    assert floor.image_step_bytes(pipeline, images=5, prompt=11, slots=7) == image + cached * cache * TOKEN


def test_cache_of_images_is_what_decoding_holds():
    pipeline = tiny_pipeline("float32")
    images = 16
    keys = jax.random.split(jax.random.key(0), images)
    model, params = pipeline.engine.model, pipeline.params
    prompts = start_prompts(model, 2, 32, None)
    state = start_images.eval_shape(model, params, prompts, np.zeros(1, np.int32), keys, 5.0, sampling=Sampling())
    held = jax.tree.leaves((state.cache.k, state.cache.v, state.prefix.k, state.prefix.v))
    result = inference.cache_case(inference_sides.Sides(pipeline, None, "tiny", True, 1.0), images)
    assert result.ours == f"{sum(leaf.size * leaf.dtype.itemsize for leaf in held) / 1e6:.1f} MB"
    assert result.value == pytest.approx(32 * (32 + 16) / (32 * 16 + 2 * 32))  # 16 codes, 32 tokens, 32 rows


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_weight_matrices_are_transposed_for_a_cpu_only(monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    leaf = flatten(tiny_pipeline("bfloat16").params["llm"]["lm_head"])
    expected = {
        "cpu": {"kernel_transposed": ((512, 96), "bfloat16")},
        "gpu": {"kernel": ((96, 512), "bfloat16")},
    }
    assert {path: (matrix.shape, matrix.dtype.name) for path, matrix in leaf.items()} == expected[backend]


def test_peer_is_on_the_device_of_jax(monkeypatch):
    assert inference_sides.peer_device() == "cpu"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert inference_sides.peer_device() == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch has no CUDA"):
        inference_sides.peer_device()
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(UserError, match="does not run on a tpu"):
        inference_sides.peer_device()


@pytest.mark.parametrize(("backend", "copies"), [("cpu", 1), ("gpu", floor.COPIES)])
def test_bandwidth_counts_what_is_read_and_written(monkeypatch, backend, copies):
    monkeypatch.setattr(floor, "COPY_BYTES", 1 << 12)
    monkeypatch.setattr(floor, "CORES", 2)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    clock = iter([0, 4, 10, 12, *[20, 25] * 5])  # the best try takes 2 seconds
    monkeypatch.setattr(floor.time, "perf_counter", lambda: next(clock))
    assert floor.copy_bandwidth() == copies * 2 * (1 << 12) / 2


# For each device: model, case, number of images or rows, bars.
BARS = {
    "cpu": [
        ("width 512 float32", "images_case", 4, {"bar": 4.0}),
        ("width 512 float32 of bfloat16", "images_case", 4, {"bar": 4.0}),
        ("width 2048 float32", "text_case", 1, {"bar": 1.5, "floor_bar": 0.7}),
        ("width 2048 float32", "images_case", 4, {"bar": 1.3}),
        ("width 2048 float32 of bfloat16", "text_case", 1, {"bar": 1.5, "floor_bar": 0.7, "compiled": False}),
        ("width 2048 float32 of bfloat16", "images_case", 4, {"bar": 1.3}),
        ("width 2048 bfloat16", "text_case", 1, {"bar": 0.8}),
    ],
    "cuda": [
        ("Janus-Pro-7B bfloat16", "images_case", 1, {"bar": 4.0, "floor_bar": 0.7}),
        ("Janus-Pro-7B bfloat16", "images_case", 16, {"bar": 5.0}),
    ],
}


@pytest.mark.parametrize("device", BARS)
def test_each_device_has_its_cases_and_bars(monkeypatch, device):
    asked = []

    def record(case):
        return lambda sides, *rows, **options: asked.append((sides, case, *rows, options)) or []

    for case in ("text_case", "images_case", "cache_case", "first_token_case", "encoders_case"):
        monkeypatch.setattr(inference, case, record(case))

    def sides(name, _, dtype, bandwidth, stored=None):
        return contextlib.nullcontext(f"{name} {dtype}" + (f" of {stored}" if stored else ""))

    monkeypatch.setattr(inference, "open_sides", sides)
    monkeypatch.setattr(inference, "peer_device", lambda: device)
    monkeypatch.setattr(floor, "copy_bandwidth", lambda: 3e9)
    monkeypatch.setattr(floor, "read_bandwidth", lambda: 2e9)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "")
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE")
    assert list(inference.run())[0].value == 3.0
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert [case for case in asked if any("bar" in name for name in case[-1])] == BARS[device]
    last = [case[1:-1] for case in asked if case[0] == BARS[device][-1][0]]
    assert {("text_case", 1), ("text_case", 8), ("first_token_case",)} <= set(last)


@pytest.mark.parametrize(("long", "rounds"), [(60.0, 3), (0.0, 1)])
def test_cases_have_three_rounds_unless_one_is_long(monkeypatch, long, rounds):
    monkeypatch.setattr(inference, "LONG", long)
    calls = []
    timing = inference.time_in_turns("case", [lambda: calls.append("a") or np.array([1, 2]), lambda: np.array([1, 3])])
    assert timing.rounds == rounds and len(calls) == 1 + rounds  # one to compile
    assert timing.same == 0.5
    assert inference.speed_ratio("case", timing, 1, "codes/s", None).ours.endswith(f"(median of {rounds})")


def test_share_of_the_floor_leaves_the_prompt_out():
    sides = inference_sides.Sides(None, None, "tiny", True, 100.0)
    timing = inference.Timing([5.0, 9.0, 1.0], 3, 1.0)  # 4 of the 5 seconds are for 8 steps
    result = inference.floor_share(sides, "case", timing, 8, 30, 0.7)  # a step takes 0.3 seconds at least
    assert result.value == pytest.approx(0.6) and result.passed is False


@pytest.mark.slow
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_both_sides_give_the_same_tokens_and_every_case_has_its_rows(monkeypatch, stored):
    monkeypatch.setattr(inference, "ROUNDS", 1)
    monkeypatch.setattr(inference_sides, "CODES_PER_SIDE", 4)
    config = inference_sides.small(width=128, mlp_dim=256)
    siglip = dataclasses.replace(config.siglip, width=64, depth=2, num_heads=4, mlp_dim=128)
    vq = dataclasses.replace(config.vq, base_channels=32, num_codes=512)
    llama = dataclasses.replace(config.llama, depth=2, vocab_size=4096)
    config = dataclasses.replace(config, llama=llama, siglip=siglip, vq=vq)
    with inference_sides.open_sides("width 128", config, "float32", 1e10, stored) as sides:
        results = [
            *inference.text_case(sides, 1),
            *inference.text_case(sides, 3),
            *inference.images_case(sides, 2),
            *inference.first_token_case(sides),
            *inference.encoders_case(sides, 4),
        ]
    compiled = [result for result in results if result.case.endswith("the peer compiled")]
    assert len(compiled) == (2 if shutil.which("g++") else 0)  # of the text, where there is a C++ compiler
    assert len(results) - len(compiled) == 3 + 3 + 3 + 2 + 2
    assert len([result for result in results if result.case.endswith("share of the bandwidth floor")]) == 3
    same = [result for result in results if "that are the peer's" in result.case]
    assert [result.passed for result in same] == [True] * 4
    assert all(result.value > 0 for result in results)
    assert all(float(result.case.split("difference ")[1].rstrip(")")) < 1e-3 for result in results[-2:])
