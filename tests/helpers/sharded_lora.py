"""A program that prints, as JSON, how training adapters on four CPU devices differs from training them on one."""

from tests.helpers.sharded_training import CONFIG, make_batch  # isort: skip  # first: it sets the devices of JAX

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from janus_jax.models.execution import Execution
from janus_jax.models.lora import INT8, Lora, LoraRule
from janus_jax.models.params import abstract_params, flatten, init_params, unflatten
from janus_jax.sharding import BATCH_SPEC, GatheredWeights, make_mesh, param_shardings
from janus_jax.training.lora import lora_mask
from janus_jax.training.objectives.factory import make_objective
from janus_jax.training.train_state import create_state, state_shardings
from janus_jax.training.train_step import make_train_step
from janus_jax.weights.quantization import is_quantized, quantize, scale_path

RULES = (LoraRule("llm/.*/kernel", 3, 6.0), LoraRule("(siglip|aligner|gen_head)/.*/kernel", 2, 2.0))
OPTIMIZER = optax.sgd(0.5)


def base_params(lora):
    """Float32 parameters and adapters whose second matrix is not zero, with the LLM's matrices in int8."""
    plain = dataclasses.replace(lora, frozen=())
    flat = {path: np.asarray(leaf) for path, leaf in flatten(init_params(CONFIG, 0, lora=plain)).items()}
    rng = np.random.default_rng(0)
    for path in list(flat):
        if path.endswith("lora_b"):
            flat[path] = 0.1 * rng.standard_normal(flat[path].shape).astype(np.float32)
        if dict(lora.frozen).get(path) == INT8:
            matrices = flat[path] if flat[path].ndim == 3 else flat[path][None]
            pairs = [np.stack(part) for part in zip(*map(quantize, matrices), strict=True)]
            flat[path], flat[scale_path(path)] = pairs if flat[path].ndim == 3 else (pairs[0][0], pairs[1][0])
    return flat


def two_steps(lora, sizes, devices):
    """Losses and adapters of two steps."""
    mesh = make_mesh(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)), devices)
    abstract = abstract_params(CONFIG, lora)
    mask = lora_mask(abstract, dict.fromkeys(flatten(abstract_params(CONFIG)), False))
    specs = {path: leaf.spec for path, leaf in flatten(param_shardings(CONFIG, mesh, lora)).items()}
    weights = GatheredWeights(jnp.float32, specs) if mesh.shape["fsdp"] > 1 else None
    loss = ConfigDict({"normalization": "tokens", "chunk_size": 4, "z_loss": 0.01, "skip_unsupervised": False})
    objective = make_objective(CONFIG, Execution(remat="full", weights=weights), loss)
    shapes = jax.eval_shape(lambda params: create_state(params, mask, OPTIMIZER), abstract)
    shardings = state_shardings(CONFIG, mask, OPTIMIZER, shapes, mesh, lora)
    flat = base_params(lora)
    params = unflatten({path: flat[path] for path in flatten(abstract)})
    state = jax.device_put(create_state(params, mask, OPTIMIZER), shardings)
    frozen = {path: np.asarray(leaf) for path, leaf in flatten(state.frozen).items()}
    step = make_train_step(objective, OPTIMIZER, shardings, mesh, weights, 1, 0.0, lora=lora)
    batch = jax.device_put(make_batch(), NamedSharding(mesh, BATCH_SPEC))
    losses = []
    for _ in range(2):
        state, metrics = jax.block_until_ready(step(state, batch))
        losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
    same = all(np.array_equal(frozen[path], np.asarray(leaf)) for path, leaf in flatten(state.frozen).items())
    sharded = sum(not leaf.is_fully_replicated for leaf in flatten(state.trainable).values())
    return losses, {path: np.asarray(leaf) for path, leaf in flatten(state.trainable).items()}, same, sharded


def main():
    frozen = {path: INT8 if is_quantized(path) else "float32" for path in flatten(abstract_params(CONFIG))}
    lora = Lora(RULES, frozen=tuple(frozen.items()))
    losses, alone, unchanged, _ = two_steps(lora, (1, 1, 1), jax.devices()[:1])
    result = {"alone": losses, "base_unchanged": unchanged}
    for sizes in ((1, 4, 1), (1, 2, 2)):
        sharded_losses, adapters, unchanged, sharded = two_steps(lora, sizes, jax.devices()[:4])
        result["x".join(map(str, sizes))] = {
            "losses": sharded_losses,
            "base_unchanged": unchanged,
            "sharded_adapters": sharded,
            "largest_difference": max(float(np.abs(adapters[path] - leaf).max()) for path, leaf in alone.items()),
            "largest_change": max(float(np.abs(leaf).max()) for leaf in alone.values()),
        }
    dropped = two_steps(dataclasses.replace(lora, dropout=0.5), (1, 4, 1), jax.devices()[:4])[0]
    again = two_steps(dataclasses.replace(lora, dropout=0.5), (1, 4, 1), jax.devices()[:4])[0]
    print(json.dumps(result | {"dropped": dropped, "dropped_again": again}))


if __name__ == "__main__":
    main()
