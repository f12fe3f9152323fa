"""The compiled step of an image tokenizer and its discriminator: two networks, two optimizers, one program.

The order is that of LlamaGen's script (`vq_train.py`). Numbers count from 1.

1. The images go through the tokenizer, and the reconstructions through the discriminator.
2. The tokenizer takes a step down its loss, and its average, if one is kept, a step after it.
3. The discriminator takes a step down its loss on the images and on the *same* reconstructions, those from before 2.

Each of the two has its own clipping by global norm and its own moments. Before the first step with the adversarial loss
the gradient of the discriminator is zero, but its optimizer still counts its steps. The running statistics move three
times in a step: for the reconstructions, for the images, and for the reconstructions again, as the original's do.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from janus_jax.models.execution import WeightGatherer
from janus_jax.models.params import Params
from janus_jax.models.patch_discriminator import NormStatistics
from janus_jax.ops.adversarial import adaptive_weight
from janus_jax.ops.batch_norm import Statistics, update_running
from janus_jax.sharding import BATCH_SPEC, ROW_AXES
from janus_jax.training.fsdp import (
    over_rows,
    reported_by_a_step,
    row_specs,
    sum_over_parts,
    sum_over_replicas,
    whole_params,
)
from janus_jax.training.objectives.adversarial import AdversarialConfig, adversarial_terms
from janus_jax.training.objectives.base import Metrics, Objective
from janus_jax.training.objectives.vq import TokenizerLoss, tokenizer_params
from janus_jax.training.train_state import Adversary, TrainState
from janus_jax.training.train_step import compiled_step, gradient_norms, updated


def make_adversarial_step(
    objective: Objective,
    tokenizer_loss: TokenizerLoss,
    adversarial: AdversarialConfig,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    mesh: Mesh,
    weights: WeightGatherer | None = None,
    micro_batches: int = 1,
    ema: float = 0.0,
    program: str = "tokenizer_step",
) -> Any:
    """A `TrainStep` for a tokenizer and its discriminator. It is a `jax.jit` function.

    Args:
        objective: the objective of the tokenizer without its adversarial term; only its denominators are used.
        tokenizer_loss: the same loss, with the reconstructions.
        optimizer: for both networks, each with a state of its own.
        weights: see `fsdp.sharded_gradient`, as for `micro_batches`.
        ema: decay of the average of the tokenizer's parameters, if the state has one.
        program: name of the compiler's options; see `compiler_options`.
    """
    gradients = adversarial_gradients(objective, tokenizer_loss, adversarial, shardings, mesh, weights, micro_batches)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        adversary = state.adversary
        assert adversary is not None
        weight = jnp.where(state.step + 1 >= adversarial.start, adversarial.weight, 0.0)
        grads, discriminator_grads, statistics, metrics = gradients(
            state.trainable, state.fixed, adversary.params, batch, weight
        )
        updates, opt_state = optimizer.update(discriminator_grads, adversary.opt_state, adversary.params)
        fake, real = statistics
        running = adversary.statistics
        for seen in (fake, real, fake):
            running = jax.tree.map(update_running, running, seen, is_leaf=lambda node: isinstance(node, Statistics))
        new = updated(state, grads, optimizer, ema)
        params = optax.apply_updates(adversary.params, updates)
        norms = gradient_norms(grads)
        norms["grad_norm/discriminator"] = (optax.tree_utils.tree_norm(discriminator_grads), jnp.ones(()))
        return new._replace(adversary=Adversary(params, running, opt_state)), metrics | norms

    return compiled_step(step, shardings, mesh, program)


def adversarial_gradients(
    objective: Objective,
    tokenizer_loss: TokenizerLoss,
    adversarial: AdversarialConfig,
    shardings: TrainState,
    mesh: Mesh,
    weights: WeightGatherer | None,
    micro_batches: int,
) -> Any:
    """(trainable, fixed, discriminator, batch, weight) -> gradients of both networks, statistics, metrics.

    Arguments are those of `make_adversarial_step`.

    The statistics are those of the reconstructions and of the images, averaged over micro-batches, and over devices
    where each device normalises with its own.
    """
    trainable_specs, fixed_specs = row_specs(shardings.trainable), row_specs(shardings.fixed)

    def micro_batch(
        trainable: Params, fixed: Params, discriminator: Params, weight: jax.Array, denominators: Any, rows: Any
    ) -> tuple[Params, Params, tuple[NormStatistics, NormStatistics], Metrics]:
        def reconstruct(trainable: Params) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, Metrics]]:
            share = tokenizer_loss(whole_params(trainable, fixed, weights), rows, denominators)
            return (share.total, share.reconstruction), (share.pixels, reported_by_a_step(share.metrics))

        (total, reconstruction), pull_back, (pixels, metrics) = jax.vjp(reconstruct, trainable, has_aux=True)
        terms = adversarial_terms(adversarial, discriminator, pixels, reconstruction)
        part = len(pixels) / denominators["images"]  # share of the images of the step, the same on all devices
        slope = part * terms.reconstruction_slope
        factor = jnp.ones(())
        if adversarial.adaptive:

            def last_layer_norm(*slopes: jax.Array) -> jax.Array:
                """Norm of the gradient in the last layer of the decoder, over the whole micro-batch."""
                grad = tokenizer_params(pull_back(slopes)[0])["decoder"]["conv_out"]["kernel"]
                return micro_batches * optax.tree_utils.tree_norm(jax.lax.psum(grad, ROW_AXES))

            # The codebook's terms do not reach the last layer, so that the first norm is that of the other terms.
            factor = adaptive_weight(
                last_layer_norm(jnp.ones(()), jnp.zeros_like(slope)), last_layer_norm(jnp.zeros(()), slope)
            )
        (grads,) = pull_back((jnp.ones(()), weight * factor * slope))
        discriminator_grads = jax.tree.map(lambda grad: weight * part * grad, terms.discriminator_grads)
        metrics |= {name: (part * value, part * one) for name, (value, one) in terms.metrics.items()}
        metrics["loss"] = (total + part * weight * factor * terms.generator, part)
        metrics["adaptive_weight"] = (part * factor, part)
        return grads, discriminator_grads, terms.statistics, metrics

    def device(trainable: Params, fixed: Params, discriminator: Params, rows: Any, weight: jax.Array) -> Any:
        denominators = jax.lax.psum(objective.denominators(rows), ROW_AXES)
        grads, discriminator_grads, statistics, metrics = sum_over_parts(
            lambda part: micro_batch(trainable, fixed, discriminator, weight, denominators, part), rows, micro_batches
        )
        statistics = jax.lax.pmean(jax.tree.map(lambda total: total / micro_batches, statistics), ROW_AXES)
        return (
            sum_over_replicas(grads, trainable_specs),
            jax.lax.psum(discriminator_grads, ROW_AXES),
            statistics,
            jax.lax.psum(metrics, ROW_AXES),
        )

    everywhere = PartitionSpec()
    return over_rows(
        device,
        mesh,
        (trainable_specs, fixed_specs, everywhere, BATCH_SPEC, everywhere),
        out_specs=(trainable_specs, everywhere, everywhere, everywhere),
    )
