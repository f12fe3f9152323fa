"""The loss of Janus against cross-entropies in float64 NumPy of the model's own logits, on packed real data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from janus_jax.batches import Modality
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import UserError
from janus_jax.models.execution import Execution
from janus_jax.models.params import bind, build, init_params
from janus_jax.ops.pixels import normalize
from janus_jax.training.freezing import merge, split, trainable_mask
from janus_jax.training.objectives.factory import make_objective
from janus_jax.training.objectives.janus import janus_objective, with_codes
from tests.helpers.tiny_runs import MICRO_JANUS

MODEL = build(MICRO_JANUS, Execution())
NUM_CODES_PER_IMAGE = 16
HEADS = ((".*/lm_head/.*|gen_head/.*|llm/decoder/norm/.*", True), (".*", False))


@pytest.fixture(scope="module")
def params():
    return init_params(MICRO_JANUS, seed=2)


@pytest.fixture(scope="module")
def encode(params):
    return jax.jit(lambda pixels: bind(MODEL, params)(pixels, method="encode_codes"))


@pytest.fixture(scope="module")
def coded(batch, encode):
    """The batch with its codes put in by two loops, as by a data preparation job."""
    codes = [encode(normalize(jnp.asarray(images), jnp.float32)) for images in batch.gen_pixels]  # row by row
    tokens, targets = batch.tokens.copy(), batch.targets.copy()
    for row, modality in enumerate(batch.modality):
        places = np.flatnonzero(modality == Modality.GENERATION_IMAGE)
        for n, place in enumerate(places):
            code = codes[row][n // NUM_CODES_PER_IMAGE, n % NUM_CODES_PER_IMAGE]
            tokens[row, place] = code
            targets[row, place - 1] = code
    return batch._replace(tokens=tokens, targets=targets, gen_pixels=None)


@pytest.fixture(scope="module")
def expected(params, coded):
    """Sums, weights and hits per task, from log-softmax in float64."""

    @jax.jit
    def logits(batch):
        apply = bind(MODEL, params)
        x = apply(batch.tokens, batch.modality, normalize(batch.und_pixels, jnp.float32), method="embed")
        hidden, _ = apply(x, batch.positions, batch.segment_ids)
        return apply(hidden, method="text_logits"), apply(hidden, method="image_logits")

    text_logits, image_logits = (np.asarray(x, np.float64) for x in logits(coded))
    tasks = {task: {"loss": 0.0, "weight": 0.0, "correct": 0.0} for task in ("understand", "text", "generate")}
    for row, place in np.ndindex(coded.tokens.shape):
        segment = coded.segment_ids[row] == coded.segment_ids[row, place]
        with_image = np.any(coded.modality[row][segment] == Modality.UNDERSTANDING_IMAGE)
        for weight, scores, task in (
            (coded.text_weights[row, place], text_logits[row, place], "understand" if with_image else "text"),
            (coded.image_weights[row, place], image_logits[row, place], "generate"),
        ):
            if weight:
                target = coded.targets[row, place]
                tasks[task]["loss"] += weight * (np.log(np.sum(np.exp(scores - scores.max()))) + scores.max())
                tasks[task]["loss"] -= weight * scores[target]
                tasks[task]["weight"] += weight
                tasks[task]["correct"] += weight * (scores.argmax() == target)
    return tasks


def settings(normalization, chunk_size=1024, skip=False):
    return ConfigDict(dict(normalization=normalization, chunk_size=chunk_size, z_loss=0.0, skip_unsupervised=skip))


@pytest.fixture(scope="module")
def losses():
    """Compiled (params, batch) -> (loss, metrics) for both normalisations."""
    return {
        name: jax.jit(make_objective(MICRO_JANUS, Execution(), settings(name, chunk_size, skip)))
        for name, chunk_size, skip in (("tokens", 1024, False), ("tasks", 50, True))
    }


def test_the_batch_mixes_all_tasks_in_packed_rows(batch, expected):
    assert batch.segment_ids.max() >= 3
    assert all(task["weight"] > 0 for task in expected.values())


def test_codes_are_the_tokenizers_and_each_state_predicts_the_next_one(batch, encode, coded, data_folder):
    actual = jax.jit(lambda batch: with_codes(batch, encode))(batch)
    np.testing.assert_array_equal(actual.tokens, coded.tokens)
    np.testing.assert_array_equal(actual.targets, coded.targets)
    assert actual.gen_pixels is None
    assert len(np.unique(coded.tokens[coded.modality == Modality.GENERATION_IMAGE])) > 4
    # The first supervised state of an image is `<begin_of_image>`, the last is its last code but one.
    tokenizer = Tokenizer.from_file(data_folder / "tokenizer.json")
    is_code = batch.modality == Modality.GENERATION_IMAGE
    np.testing.assert_array_equal(batch.image_weights[:, :-1], is_code[:, 1:])
    first = (batch.image_weights > 0) & ~is_code
    assert set(batch.tokens[first]) == {tokenizer.begin_of_image_id}
    assert batch.image_weights.sum() == NUM_CODES_PER_IMAGE * first.sum()


def test_each_task_equals_its_float64_cross_entropy(params, batch, expected, losses):
    _, metrics = losses["tokens"](params, batch)
    for task, want in expected.items():
        np.testing.assert_allclose(metrics[f"loss/{task}"], (want["loss"], want["weight"]), rtol=2e-6)
    for task in ("understand", "generate"):
        np.testing.assert_array_equal(
            metrics[f"accuracy/{task}"], (expected[task]["correct"], expected[task]["weight"])
        )
    images = sum(
        len(np.unique(segments[modality == kind]))
        for segments, modality in zip(batch.segment_ids, batch.modality, strict=True)
        for kind in (Modality.UNDERSTANDING_IMAGE, Modality.GENERATION_IMAGE)
    )
    assert metrics["images"] == (images, 1)
    for task, want in expected.items():
        assert metrics[f"tokens/{task}"] == (want["weight"], 1)  # all weights of the batch are 0 or 1
    np.testing.assert_allclose(metrics["fill"][0], np.mean(batch.segment_ids > 0), rtol=1e-6)


@pytest.mark.parametrize("absent", [None, "text", "image"])
def test_total_follows_the_normalization(params, batch, expected, losses, absent):
    """Also when a batch has nothing for one of the heads."""
    parts = {"text": ("understand", "text"), "image": ("generate",)}
    if absent:
        batch = batch._replace(**{f"{absent}_weights": np.zeros_like(batch.text_weights)})
        parts.pop(absent)
    sums = {head: sum(expected[task]["loss"] for task in tasks) for head, tasks in parts.items()}
    weights = {head: sum(expected[task]["weight"] for task in tasks) for head, tasks in parts.items()}
    totals = {name: float(loss(params, batch)[0]) for name, loss in losses.items()}
    assert totals["tokens"] == pytest.approx(sum(sums.values()) / sum(weights.values()), rel=2e-6)
    assert totals["tasks"] == pytest.approx(sum(sums[head] / weights[head] for head in parts), rel=2e-6)


def test_precomputed_codes_give_the_same_loss_as_codes_computed_in_the_step(params, batch, coded, losses):
    in_step, precomputed = (losses["tokens"](params, each) for each in (batch, coded))
    assert float(in_step[0]) == pytest.approx(float(precomputed[0]), rel=1e-6)
    for name, pair in in_step[1].items():
        np.testing.assert_allclose(pair, precomputed[1][name], rtol=1e-6, err_msg=name)


def test_codes_do_not_depend_on_the_dtype_of_the_run(batch, coded, params):
    """In bfloat16 the tokenizer would choose other codes; the loss depends on every one of them."""
    rounding = bind(build(MICRO_JANUS, Execution(dtype=jnp.bfloat16)), params)
    other = jax.jit(lambda batch: with_codes(batch, lambda pixels: rounding(pixels, method="encode_codes")))(batch)
    assert np.any(np.asarray(other.tokens) != coded.tokens)
    loss = settings("tokens")
    compiled = jax.jit(make_objective(MICRO_JANUS, Execution(dtype=jnp.bfloat16), loss))
    in_step, precomputed, with_others = (compiled(params, each)[1] for each in (batch, coded, other))
    np.testing.assert_allclose(in_step["loss/generate"], precomputed["loss/generate"], rtol=1e-6)
    assert abs(with_others["loss/generate"][0] / precomputed["loss/generate"][0] - 1) > 1e-5


def test_chunk_size_changes_neither_value_nor_gradient(params, coded):
    """50 does not divide the 384 tokens; the gradient of the final norm sums up that of all hidden states."""
    coded = jax.tree.map(jnp.asarray, coded)
    trainable, frozen = split(params, trainable_mask(params, HEADS))
    results = []
    for chunk_size, skip in ((1024, False), (50, False), (50, True)):
        loss = janus_objective(MICRO_JANUS, Execution(), settings("tokens", chunk_size, skip))
        gradient = jax.value_and_grad(lambda heads, loss=loss: loss(merge(heads, frozen), coded)[0])
        results.append(jax.jit(gradient)(trainable))
    value, gradients = results[0]
    assert len(jax.tree.leaves(gradients)) == 6
    for chunked_value, chunked_gradients in results[1:]:
        assert float(value) == pytest.approx(float(chunked_value), rel=1e-6)
        for whole, chunked in zip(jax.tree.leaves(gradients), jax.tree.leaves(chunked_gradients), strict=True):
            np.testing.assert_allclose(chunked, whole, rtol=0, atol=2e-6)
            assert np.abs(whole).max() > 1e-3


def test_unknown_normalization_is_refused():
    with pytest.raises(UserError, match=r"loss\.normalization='samples'"):
        janus_objective(MICRO_JANUS, Execution(), settings("samples"))
