"""AdamW with global-norm clipping and the papers' schedules (Janus, Table 1; Janus-Pro, Table 2)."""

import re
from typing import Any

import optax
from ml_collections import ConfigDict

from janus_jax.errors import UserError
from janus_jax.models.params import flatten, unflatten


def make_schedule(train: ConfigDict) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then constant, or a cosine down to `final_fraction` of the peak."""
    peak, warmup, steps = train.learning_rate, train.warmup_steps, train.num_steps
    if train.schedule == "constant":
        main = optax.constant_schedule(peak)
    elif train.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), alpha=train.final_fraction)
    else:
        raise UserError(f"train.schedule={train.schedule!r} is neither 'constant' nor 'cosine'")
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), main], [warmup])


def make_optimizer(train: ConfigDict) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW. Weight decay applies to the parameters that match `decay_pattern`."""
    return optax.chain(
        optax.clip_by_global_norm(train.clip_norm),
        optax.adamw(
            make_schedule(train),
            b1=train.b1,
            b2=train.b2,
            eps=train.eps,
            weight_decay=train.weight_decay,
            mask=lambda params: _decay_mask(params, train.decay_pattern),
        ),
    )


def _decay_mask(params: Any, pattern: str) -> Any:
    return unflatten({path: re.fullmatch(pattern, path) is not None for path in flatten(params)})
