"""What the TPU compiler makes of the training step of a small model on four chips: traffic, buffers, sharding.

Text alone takes half a minute to compile, images and VQ codes too 90 seconds. No TPU is needed.
"""

import dataclasses
import math
import re
from collections import Counter

import jax
import pytest

from configs import janus_pro_7b
from janus_jax.compile_check.estimate import estimate
from janus_jax.compile_check.hlo import parse
from janus_jax.compile_check.program import compile_program, topology_devices
from janus_jax.errors import UserError
from janus_jax.models.params import flatten
from janus_jax.models.presets import JANUS_PRO_TINY, PRESETS
from janus_jax.sharding import local_bytes
from janus_jax.training.plan import abstract_batch, make_plan

pytest.importorskip("libtpu", reason="the TPU compiler, of Linux only")

CHIPS, ROWS, LENGTH, VOCAB = 4, 2, 1024, 4096  # rows of a chip
LLAMA = {"vocab_size": VOCAB, "width": 512, "num_heads": 4, "num_kv_heads": 4, "head_dim": 128, "mlp_dim": 1408}
SMALL = dataclasses.replace(
    JANUS_PRO_TINY, llama=dataclasses.replace(JANUS_PRO_TINY.llama, **LLAMA), image_head_width=512
)
SENT = (CHIPS - 1) / CHIPS  # share of a whole bfloat16 array that a chip sends to gather it or to scatter its sum


@pytest.fixture(scope="module", autouse=True)
def small_model():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "small", SMALL)
        yield


def small_plan(stage, fsdp, tensor):
    config = janus_pro_7b.get_config(f"{stage}:debug").unlock()
    config.model, config.dtype, config.remat = "small", "bfloat16", "projections"
    config.train.batch_size, config.data.row_length, config.loss.chunk_size = ROWS * CHIPS, LENGTH, LENGTH
    config.mesh.update(fsdp=fsdp, tensor=tensor)
    plan = make_plan(config, topology_devices("v5e:2x2"))
    return plan, abstract_batch(config, plan)


@pytest.fixture(scope="module", params=["text_only", pytest.param("stage2", marks=pytest.mark.slow)])
def plan(request):
    return small_plan(request.param, CHIPS, 1)


@pytest.fixture(scope="module")
def program(plan):
    plan, batch = plan
    lowered = plan.make_step().lower(plan.state, batch)
    program, reason = compile_program(lowered, list(plan.mesh.devices.flat), {})
    assert program is not None, reason
    return program


@pytest.fixture(scope="module")
def traffic(program):
    return estimate(program).wire_bytes


@pytest.fixture(scope="module")
def cut(plan):
    """(trained, path) -> bytes in bfloat16 of each whole matrix that is used and divided over the chips."""
    state = plan[0].state
    trees = [(True, state.trainable), (False, state.frozen)]
    if not plan[1].und_pixels.size:  # text alone: nothing frozen is in use
        trees.pop()
    return {
        (trained, path): 2 * leaf.size
        for trained, tree in trees
        for path, leaf in flatten(tree).items()
        if "fsdp" in leaf.sharding.spec and path.split("/")[-1] != "bias" and not path.startswith("vq/")
    }


def test_a_weight_is_gathered_once_per_layer_and_pass(traffic, cut):
    """The backward pass gathers the layers of the LLM again. The frozen encoder has no backward pass."""
    once = sum(cut.values())
    again = sum(size for (trained, path), size in cut.items() if trained and "/layers/" in path)
    assert traffic["all-gather"] == pytest.approx(SENT * (once + again), rel=1e-3)


def test_gradients_leave_as_reduce_scatter(traffic, cut):
    """Only norms, biases and scalars are left for all-reduces."""
    trained = sum(size for (is_trained, _), size in cut.items() if is_trained)
    assert traffic["reduce-scatter"] == pytest.approx(SENT * trained, rel=1e-3)
    assert traffic["all-reduce"] < 0.01 * trained


def test_logits_never_exist_for_all_tokens(program):
    """Logits of a chunk do exist; those of all tokens do not, in any order of axes."""
    module = parse(program.hlo)
    shapes = {shape for part in module.computations.values() for inst in part.values() for shape in inst.shapes}
    with_vocabulary = [shape for shape in shapes if VOCAB in shape.dims]
    assert [shape for shape in with_vocabulary if LENGTH in shape.dims]
    assert not [shape for shape in with_vocabulary if math.prod(shape.dims) >= ROWS * LENGTH * VOCAB]


def test_no_large_parameter_or_moment_is_whole_on_a_chip(plan, program):
    """The inputs of the compiled program show it, not the shardings that were asked for."""
    state, batch = plan[0].state, plan[1]
    module = parse(program.hlo)
    inputs = [i.shapes[0].dims for i in module.computations[module.entry].values() if i.op == "parameter"]
    leaves = jax.tree.leaves((state, batch))
    used = Counter(leaf.sharding.shard_shape(leaf.shape) for leaf in leaves)
    assert not Counter(inputs) - used
    whole = {leaf.shape for leaf in jax.tree.leaves(state) if leaf.size * leaf.dtype.itemsize > 1 << 20}
    assert whole
    assert not whole & set(inputs)


def test_the_new_state_takes_the_place_of_the_old_one(plan, program):
    """Every array of the state is donated; otherwise a run would need memory for two states."""
    state = plan[0].state
    assert program.hlo.splitlines()[0].count("may-alias") == len(jax.tree.leaves(state))
    assert program.memory.aliased >= local_bytes(state)


def test_the_kernels_divide_their_heads_over_tensor():
    """The step lowers for a TPU, which cannot divide a kernel itself, and every kernel has the heads of one chip."""
    plan, batch = small_plan("text_only", fsdp=2, tensor=2)
    text = plan.make_step().lower(plan.state, batch).as_text()
    kernels = [line for line in text.splitlines() if "@tpu_custom_call" in line]
    names = Counter(re.search(r'kernel_name = "(\w+)"', line)[1] for line in kernels)
    assert names.keys() == {"rope", "flash_attention_forward", "flash_attention_backward"}
    rows, width = ROWS * CHIPS // 2, LLAMA["num_heads"] * LLAMA["head_dim"] // 2
    for line in kernels:
        assert f"-> tensor<{rows}x{LENGTH}x{width}xbf16>" in line.replace("(", ""), line[-300:]


def test_heads_that_tensor_does_not_divide_are_refused(monkeypatch):
    one = dataclasses.replace(SMALL.llama, num_heads=2, num_kv_heads=1)
    monkeypatch.setitem(PRESETS, "small", dataclasses.replace(SMALL, llama=one))
    with pytest.raises(UserError, match=r"mesh\.tensor=2 does not divide llama\.num_kv_heads=1"):
        small_plan("text_only", fsdp=2, tensor=2)
