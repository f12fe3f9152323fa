"""Training adapters equals PyTorch: losses of 20 steps of AdamW, and the adapters after them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from ml_collections import ConfigDict

from janus_jax.batches import Modality, PackedBatch
from janus_jax.models.execution import Execution
from janus_jax.models.layers import LORA_A, LORA_B
from janus_jax.models.lora import Lora, LoraRule, is_trained_adapter
from janus_jax.models.params import abstract_params, flatten, init_params
from janus_jax.training.freezing import merge, split
from janus_jax.training.objectives.janus import janus_objective
from tests.helpers.torch_weights import make_pair

STEPS, LENGTH, RATE = 20, 12, 3e-3
RULES = (LoraRule("llm/(decoder/.*|lm_head)/kernel", 3, 6.0), LoraRule("gen_(head|aligner)/.*/kernel", 5, 5.0))
# Our module -> transformers'; the numbers of layers are put in front of ours.
MODULES = {
    **{f"attention/{x}_proj": f"self_attn.{x}_proj" for x in "qkvo"},
    **{f"mlp/{x}_proj": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
}
SINGLE = {
    "llm/lm_head": "lm_head",
    "gen_head/proj": "model.generation_head.proj_out",
    "gen_head/codes": "model.generation_head.vision_head",
    "gen_aligner/linear_0": "model.generation_aligner.fc1",
    "gen_aligner/linear_1": "model.generation_aligner.hidden_layers.0",
}


class TorchLora(torch.nn.Module):
    """y = W x + b + scale * B A x, as in section 4.1 of the paper of LoRA."""

    def __init__(self, linear, a, b, scale):
        super().__init__()
        self.linear, self.scale = linear, scale
        self.a, self.b = torch.nn.Parameter(torch.tensor(a.T)), torch.nn.Parameter(torch.tensor(b.T))

    def forward(self, x):
        return self.linear(x) + self.scale * (x @ self.a.T @ self.b.T)


def torch_modules(depth):
    """Ours and the layer -> name of the module of transformers."""
    for ours, theirs in MODULES.items():
        for layer in range(depth):
            yield (f"llm/decoder/layers/{ours}", layer), f"model.language_model.layers.{layer}.{theirs}"
    yield from (((ours, None), theirs) for ours, theirs in SINGLE.items())


def sample_batch(config):
    """A row of text, whose second half is learned, and a caption with as many codes as the rest of its row has room."""
    rng = np.random.default_rng(0)
    text, generated = np.full(LENGTH, Modality.TEXT), np.full(LENGTH, Modality.TEXT)
    generated[5:] = Modality.GENERATION_IMAGE
    modality = np.stack([text, generated]).astype(np.int8)
    tokens = rng.integers(6, config.llama.vocab_size, (2, LENGTH))
    tokens[1, 5:] = rng.integers(0, config.vq.num_codes, LENGTH - 5)
    text_weights, image_weights = np.zeros((2, 2, LENGTH), np.float32)
    text_weights[0, 5:-1], image_weights[1, 4:-1] = 1, 1
    return PackedBatch(
        tokens=jnp.asarray(tokens),
        modality=jnp.asarray(modality),
        segment_ids=jnp.ones((2, LENGTH), jnp.int32),
        positions=jnp.tile(jnp.arange(LENGTH), (2, 1)),
        targets=jnp.asarray(np.roll(tokens, -1, axis=1)),
        text_weights=jnp.asarray(text_weights),
        image_weights=jnp.asarray(image_weights),
        und_pixels=jnp.zeros((2, 0, 0, 0, 3), jnp.uint8),
        gen_pixels=None,
    )


def torch_losses(model, batch):
    """Text loss and image loss, each a mean over its tokens."""
    inner = model.model
    tokens, targets = (torch.tensor(np.asarray(x)).long() for x in (batch.tokens, batch.targets))
    codes = inner.generation_aligner(inner.generation_embeddings(tokens[1:, 5:]))
    words = inner.language_model.embed_tokens(tokens[1:, :5])
    x = torch.cat([inner.language_model.embed_tokens(tokens[:1]), torch.cat([words, codes], dim=1)])
    hidden = inner.language_model(inputs_embeds=x).last_hidden_state
    text = torch.nn.functional.cross_entropy(model.lm_head(hidden[0, 5:-1]), targets[0, 5:-1])
    image = torch.nn.functional.cross_entropy(inner.generation_head(hidden[1, 4:-1]), targets[1, 4:-1])
    return text + image


@pytest.mark.slow
def test_twenty_steps_equal_those_of_pytorch():
    model, config, base = make_pair(
        text={
            "vocab_size": 60,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 40,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
        },
        vision={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
            "mlp_ratio": 2,
            "projection_dim": 24,
            "depth": 2,
        },
        vq={
            "embed_dim": 4,
            "num_embeddings": 32,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "latent_channels": 8,
            "num_hidden_layers": 2,
            "projection_dim": 24,
            "image_token_embed_dim": 24,
            "num_patches": 2,
        },
        seed=0,
    )
    lora = Lora(RULES, frozen=tuple((path, "float32") for path in flatten(abstract_params(config))))
    params = flatten(init_params(config, 0, known=flatten(base), lora=lora))
    rng = np.random.default_rng(1)
    for path in params:
        if path.endswith(LORA_B):  # zero in a fresh adapter, whose A then has no gradient in the first step
            params[path] = jnp.asarray(0.1 * rng.standard_normal(params[path].shape), jnp.float32)
    trainable, frozen = split(params, {path: is_trained_adapter(path) for path in params})

    twins = {}
    model.requires_grad_(False)
    for (ours, layer), theirs in torch_modules(config.llama.depth):
        a, b, scale = (np.asarray(params[f"{ours}/{name}"]) for name in (LORA_A, LORA_B, "lora_scale"))
        if layer is not None:
            a, b, scale = a[layer], b[layer], scale[layer]
        parent, _, name = theirs.rpartition(".")
        twins[ours, layer] = TorchLora(model.get_submodule(theirs), a, b, float(scale))
        setattr(model.get_submodule(parent) if parent else model, name, twins[ours, layer])

    batch = sample_batch(config)
    loss = ConfigDict({"normalization": "tasks", "chunk_size": 8, "z_loss": 0.0, "skip_unsupervised": False})
    objective = janus_objective(config, Execution(), loss, ("text", "generate"))
    optimizer = optax.adamw(RATE, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.01)
    state = optimizer.init(trainable)

    @jax.jit
    def step(trainable, state):
        value, gradients = jax.value_and_grad(lambda x: objective(merge(x, frozen), batch)[0])(trainable)
        updates, state = optimizer.update(gradients, state, trainable)
        return optax.apply_updates(trainable, updates), state, value

    adapters = [weight for twin in twins.values() for weight in (twin.a, twin.b)]
    torch_optimizer = torch.optim.AdamW(adapters, lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01)
    losses = []
    for _ in range(STEPS):
        trainable, state, value = step(trainable, state)
        torch_optimizer.zero_grad()
        expected = torch_losses(model, batch)
        expected.backward()
        torch_optimizer.step()
        losses.append((float(value), expected.item()))
    ours, theirs = np.array(losses).T
    assert ours[-1] < ours[0] - 0.5
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    trained = flatten(trainable)
    assert len(trained) == 2 * (len(MODULES) + len(SINGLE))
    for (module, layer), twin in twins.items():
        for name, weight in ((LORA_A, twin.a), (LORA_B, twin.b)):
            found = trained[f"{module}/{name}"] if layer is None else trained[f"{module}/{name}"][layer]
            np.testing.assert_allclose(found, weight.detach().numpy().T, atol=1e-4)
