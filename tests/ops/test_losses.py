import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from janus_jax.ops.losses import chunked_cross_entropy, vq_loss

TOKENS, WIDTH, CLASSES = 23, 6, 11


def problem(groups=2):
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((TOKENS, WIDTH), np.float32)
    head = rng.standard_normal((WIDTH, CLASSES), np.float32)
    targets = rng.integers(0, CLASSES, TOKENS).astype(np.int32)
    weights = rng.random((groups, TOKENS), np.float32) * (rng.random((groups, TOKENS)) < 0.6)
    return hidden, head, jnp.asarray(targets), jnp.asarray(weights, jnp.float32)


def torch_cross_entropy(logits, targets):
    return torch.nn.functional.cross_entropy(logits, torch.tensor(np.array(targets)).long(), reduction="none")


def linear(head, hidden):
    return hidden @ head


@pytest.mark.parametrize(
    # Chunks of one token, with padding, with one token left, of exactly all tokens, and of more than all.
    ("chunk_size", "z_loss", "skip"),
    [(1, 0.1, True), (8, 0.0, False), (8, 0.1, True), (22, 0.1, False), (23, 0.0, True), (1000, 0.1, False)],
)
def test_value_and_gradient_equal_torch_for_every_chunk_size(chunk_size, z_loss, skip):
    hidden, head, targets, weights = problem()
    rng = np.random.default_rng(3)
    scales = (rng.standard_normal(TOKENS) * (rng.random(TOKENS) < 0.5)).astype(np.float32)

    def total(hidden, head):
        value, out = chunked_cross_entropy(
            linear, head, hidden, targets, jnp.asarray(scales), weights, chunk_size, z_loss, skip
        )
        return 3 * value, out

    gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    (value, out), (hidden_gradient, head_gradient) = gradient(jnp.asarray(hidden), jnp.asarray(head))

    torch_hidden, torch_head = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (hidden, head))
    logits = torch_hidden @ torch_head
    per_token = torch_cross_entropy(logits, targets)
    per_group = (torch.tensor(np.array(weights, np.float64)) * per_token).sum(1)
    torch_total = 3 * (torch.tensor(scales) * (per_token + z_loss * torch.logsumexp(logits, 1) ** 2)).sum()
    torch_total.backward()

    assert float(value) == pytest.approx(float(torch_total.detach()), rel=1e-5)
    np.testing.assert_allclose(out.loss, per_group.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(hidden_gradient, torch_hidden.grad.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(head_gradient, torch_head.grad.numpy(), rtol=0, atol=2e-5)
    hits = logits.detach().numpy().argmax(1) == targets
    np.testing.assert_allclose(out.correct, (weights * hits).sum(1), rtol=1e-5)
    np.testing.assert_allclose(out.weight, weights.sum(1), rtol=1e-6)


def test_tokens_without_weight_do_not_count_even_with_huge_logits():
    hidden, head, targets, weights = problem(groups=1)
    weights = weights.at[0, 5].set(0)

    @jax.jit
    def loss(hidden):
        total, out = chunked_cross_entropy(linear, jnp.asarray(head), hidden, targets, weights[0], weights, 8)
        return total, out.loss

    expected = loss(jnp.asarray(hidden))
    hidden[5] = 1e6
    for after, before in zip(loss(jnp.asarray(hidden)), expected, strict=True):
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("weighted", [0, 8, 16])
def test_chunks_without_weight_are_not_computed(weighted):
    hidden, head, targets, weights = problem(groups=1)
    chosen = np.zeros(TOKENS, bool)
    chosen[np.random.default_rng(1).permutation(TOKENS)[:weighted]] = True
    hidden[~chosen] = np.nan
    weights = jnp.where(chosen, 0.5 + weights, 0)

    def loss(hidden, head):
        return chunked_cross_entropy(linear, head, hidden, targets, weights[0], weights, 8, skip_unweighted=True)

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, out), gradients = gradient(jnp.asarray(hidden), jnp.asarray(head))

    per_token = torch_cross_entropy(torch.tensor(hidden[chosen] @ head), targets[chosen]).numpy()
    assert float(value) == pytest.approx(np.sum(np.asarray(weights[0])[chosen] * per_token), rel=1e-5)
    assert float(out.weight[0]) == pytest.approx(float(weights.sum()))
    assert all(np.isfinite(leaf).all() for leaf in gradients)
    assert np.all((np.abs(gradients[0]) > 0).any(axis=1) == chosen)


def test_cross_entropy_of_bfloat16_logits_is_summed_in_float32():
    _, _, targets, weights = problem(groups=1)
    logits = jnp.asarray(np.random.default_rng(1).standard_normal((TOKENS, CLASSES)) * 8, jnp.bfloat16)
    _, out = chunked_cross_entropy(lambda _, logits: logits, None, logits, targets, weights[0], weights, 8)
    loss = out.loss
    assert loss.dtype == jnp.float32
    per_token = torch_cross_entropy(torch.tensor(np.array(logits, np.float64)), targets).numpy()
    np.testing.assert_allclose(loss, np.asarray(weights) @ per_token, rtol=1e-5)


def test_vq_loss_equals_its_definition():
    rng = np.random.default_rng(1)
    latents, quantized = (rng.standard_normal((2, 3, 4, 8)) for _ in range(2))
    mean = np.mean((latents - quantized) ** 2)
    codebook_term, commitment_term = vq_loss(
        jnp.asarray(latents, jnp.float32), jnp.asarray(quantized, jnp.float32), 0.25
    )
    assert float(codebook_term) == pytest.approx(mean, rel=1e-6)
    assert float(commitment_term) == pytest.approx(0.25 * mean, rel=1e-6)


def test_codebook_term_reaches_only_the_codebook_and_commitment_only_the_latent():
    rng = np.random.default_rng(2)
    latents, quantized = (jnp.asarray(rng.standard_normal((5, 8), np.float32)) for _ in range(2))

    def gradients(term):
        return jax.jit(jax.grad(lambda z, e: vq_loss(z, e, 0.25)[term], argnums=(0, 1)))(latents, quantized)

    slope = 2 * (np.asarray(quantized) - np.asarray(latents)) / latents.size
    codebook_term, commitment_term = gradients(0), gradients(1)
    np.testing.assert_array_equal(codebook_term[0], np.zeros_like(latents))
    np.testing.assert_allclose(codebook_term[1], slope, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(commitment_term[0], -0.25 * slope, rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(commitment_term[1], np.zeros_like(quantized))
