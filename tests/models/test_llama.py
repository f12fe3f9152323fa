import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.models.execution import Execution
from janus_jax.models.llama import Llama, init_cache
from janus_jax.models.scan_layers import unstack_layers
from tests.helpers.small_models import SMALL, random_array, random_params

CONFIG = SMALL.llama
PARAMS = random_params(SMALL)["llm"]
WIDTH = CONFIG.width


@jax.jit
def hidden_states(x, positions, segment_ids):
    return Llama(CONFIG, Execution()).apply({"params": PARAMS}, x, positions, segment_ids)[0]


def run_alone(x):
    """One unpadded sample [T, D]."""
    return np.asarray(hidden_states(x[None], *places(len(x))))[0]


def places(length):
    """(positions, segment_ids) of a row that is one sample."""
    return jnp.asarray(np.arange(length)[None]), jnp.asarray(np.ones((1, length), np.int32))


@pytest.mark.parametrize("scan_layers", [True, False])
def test_cached_decoding_of_left_padded_rows_equals_the_full_forward(scan_layers):
    """Rows of 9 and 6 tokens, read in one part of six tokens and then step by step, in a cache with free slots."""
    execution = Execution(scan_layers=scan_layers)
    params = PARAMS if scan_layers else unstack_layers(PARAMS)
    step = jax.jit(lambda *args: Llama(CONFIG, execution).apply({"params": params}, *args))
    x = random_array(2, 9, WIDTH)
    segment_ids = jnp.array([[1] * 9, [0] * 3 + [1] * 6])
    positions = jnp.array([range(9), [0, 0, 0, 0, 1, 2, 3, 4, 5]])

    cache = init_cache(CONFIG, execution, batch=2, slots=12)
    parts = []
    for part in (slice(0, 6), slice(6, 7), slice(7, 8), slice(8, 9)):
        hidden, cache = step(x[:, part], positions[:, part], segment_ids[:, part], cache)
        parts.append(hidden)
    cached = np.concatenate(parts, axis=1)

    full = np.asarray(hidden_states(x, positions, segment_ids))
    np.testing.assert_allclose(cached[0], full[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(cached[1, 3:], full[1, 3:], rtol=0, atol=1e-5)
    np.testing.assert_allclose(cached[1, 3:], run_alone(x[1, 3:]), rtol=0, atol=1e-5)
    assert int(cache.length) == 9
    np.testing.assert_array_equal(cache.segment_ids, np.pad(segment_ids, ((0, 0), (0, 3))))


def test_rows_of_different_length_are_continued_each_behind_its_own_end():
    """Rows of 6 and 3 tokens get 2 more each; the slots behind the end of the second one hold its wrong tokens."""
    step = jax.jit(lambda *args: Llama(CONFIG, Execution()).apply({"params": PARAMS}, *args))
    x, ends = random_array(2, 8, WIDTH), jnp.array([[6], [3]])
    wrong = x.at[1, 3:6].set(random_array(3, WIDTH, seed=1))
    positions = jnp.tile(jnp.arange(6), (2, 1))
    _, cache = step(
        wrong[:, :6], positions, jnp.ones_like(positions), init_cache(CONFIG, Execution(), batch=2, slots=9)
    )
    cache = cache._replace(length=jnp.int32(3), sources=3 + jnp.arange(5) - ends)
    places = ends + jnp.arange(2)
    new = jnp.take_along_axis(x, places[:, :, None], axis=1)
    hidden, cache = step(new, places, jnp.ones_like(places), cache)
    for row, end in enumerate((6, 3)):
        np.testing.assert_allclose(hidden[row], run_alone(x[row, : end + 2])[end:], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(cache.positions, [[*range(8), 0], [*range(6), 0, 0, 0]])
    np.testing.assert_array_equal(cache.segment_ids, [[1] * 8 + [0], [1] * 6 + [0] * 3])


def test_a_later_token_never_changes_earlier_hidden_states():
    x = random_array(1, 8, WIDTH)
    changed = x.at[0, 5].add(1.0)
    before, after = (np.asarray(hidden_states(rows, *places(8)))[0] for rows in (x, changed))
    np.testing.assert_array_equal(after[:5], before[:5])
    assert (np.abs(after[5:] - before[5:]).max(axis=1) > 1e-2).all()


def test_two_samples_packed_in_a_row_equal_the_samples_apart():
    x = random_array(1, 10, WIDTH)
    segment_ids = jnp.array([[1] * 4 + [2] * 5 + [0]])
    positions = jnp.array([[0, 1, 2, 3, 0, 1, 2, 3, 4, 0]])
    packed = np.asarray(hidden_states(x, positions, segment_ids))[0]
    np.testing.assert_allclose(packed[:4], run_alone(x[0, :4]), rtol=0, atol=1e-5)
    np.testing.assert_allclose(packed[4:9], run_alone(x[0, 4:9]), rtol=0, atol=1e-5)
    assert np.isfinite(packed).all()


def test_order_of_tokens_matters_only_through_positions():
    """Tokens are distinguished by their positions only: permuting both permutes the output."""
    x = random_array(1, 6, WIDTH)
    positions, segment_ids = places(6)
    order = np.array([3, 0, 5, 1, 4, 2])
    straight = hidden_states(x, positions, segment_ids)[:, order]
    permuted = hidden_states(x[:, order], positions[:, order], segment_ids)
    np.testing.assert_allclose(permuted, straight, rtol=0, atol=1e-5)
    without_positions = hidden_states(x[:, order], positions, segment_ids)
    assert np.abs(without_positions - straight).max() > 0.1


def test_bfloat16_keeps_its_dtype_and_stays_near_float32():
    x = random_array(1, 6, WIDTH)
    narrow = Llama(CONFIG, Execution(dtype=jnp.bfloat16))
    hidden, cache = jax.jit(narrow.apply)(
        {"params": PARAMS},
        x.astype(jnp.bfloat16),
        *places(6),
        init_cache(CONFIG, Execution(dtype=jnp.bfloat16), batch=1, slots=6),
    )
    assert hidden.dtype == cache.k.dtype == jnp.bfloat16
    exact = np.asarray(hidden_states(x, *places(6)))
    error = np.abs(np.asarray(hidden, np.float32) - exact).mean() / np.abs(exact).mean()
    assert 1e-5 < error < 3e-2
