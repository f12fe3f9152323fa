"""Clipping, AdamW and the schedules against PyTorch and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from configs.base import base_config
from janus_jax.errors import UserError
from janus_jax.training.optimizer import make_optimizer, make_schedule
from janus_jax.training.train_step import gradient_norms

SHAPES = {"dense": {"kernel": (4, 3), "bias": (3,)}, "norm": {"scale": (5,)}, "embed": (6, 2)}


def train_fields(**fields):
    train = base_config("test", "test").train
    train.update(fields)
    return train


def draw(rng, scale):
    return {
        "dense": {name: scale * rng.standard_normal(shape) for name, shape in SHAPES["dense"].items()},
        "norm": {"scale": scale * rng.standard_normal(SHAPES["norm"]["scale"])},
        "embed": scale * rng.standard_normal(SHAPES["embed"]),
    }


def flat(tree):
    return {"kernel": tree["dense"]["kernel"], "bias": tree["dense"]["bias"], "scale": tree["norm"]["scale"]} | {
        "embed": tree["embed"]
    }


def test_steps_equal_torch_adamw_with_clipping_warm_up_and_decay_of_kernels_only():
    train = train_fields(learning_rate=0.05, warmup_steps=3, num_steps=10, weight_decay=0.3, clip_norm=1.5)
    rng = np.random.default_rng(0)
    initial = draw(rng, 1.0)
    params = jax.tree.map(jnp.float32, initial)
    optimizer = make_optimizer(train)
    state = optimizer.init(params)

    @jax.jit
    def update(gradients, state, params):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    ours = {name: torch.tensor(value, requires_grad=True) for name, value in flat(initial).items()}
    groups = [
        {"params": [ours["kernel"]], "weight_decay": 0.3},
        {"params": [ours[name] for name in ("bias", "scale", "embed")], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8)
    norms = []
    for step in range(7):
        gradients = draw(rng, 0.05 if step % 2 else 1.0)  # clipped in the even steps only
        params, state = update(jax.tree.map(np.float32, gradients), state, params)
        for name, gradient in flat(gradients).items():
            ours[name].grad = torch.tensor(gradient)
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(ours.values()), 1.5)))
        for group in reference.param_groups:
            group["lr"] = 0.05 * min(step, 3) / 3
        reference.step()
        for name, value in flat(params).items():
            np.testing.assert_allclose(value, ours[name].detach().numpy(), rtol=0, atol=2e-6, err_msg=f"{name} {step}")
    assert min(norms[::2]) > 1.5 > max(norms[1::2])


def test_constant_schedule_stays_at_the_peak_after_the_warm_up():
    schedule = make_schedule(train_fields(learning_rate=0.4, schedule="constant", warmup_steps=4, num_steps=20))
    rates = [float(schedule(step)) for step in (0, 1, 3, 4, 5, 19)]
    assert rates == pytest.approx([0.0, 0.1, 0.3, 0.4, 0.4, 0.4], rel=1e-6)


def test_cosine_schedule_reaches_its_final_fraction_at_the_last_step():
    fields = {"learning_rate": 0.4, "schedule": "cosine", "warmup_steps": 4, "num_steps": 20, "final_fraction": 0.25}
    schedule = make_schedule(train_fields(**fields))
    # Half a cosine over the 16 steps after the warm-up, from 0.4 to 0.1: its middle is 0.25, its quarters by cos(pi/4).
    quarter = 0.15 * np.cos(np.pi / 4)
    rates = [float(schedule(step)) for step in (0, 2, 4, 8, 12, 16, 20, 30)]
    assert rates == pytest.approx([0.0, 0.2, 0.4, 0.25 + quarter, 0.25, 0.25 - quarter, 0.1, 0.1], rel=1e-6)


def test_without_warm_up_the_first_step_has_the_peak_rate():
    assert float(make_schedule(train_fields(learning_rate=0.4, schedule="cosine"))(0)) == pytest.approx(0.4, rel=1e-6)


def test_unknown_schedule_is_refused():
    with pytest.raises(UserError, match=r"train\.schedule='linear'"):
        make_optimizer(train_fields(schedule="linear"))


def test_gradient_norms_of_the_whole_and_of_each_module():
    grads = {"siglip": {"a": jnp.array([3.0]), "b": {"c": jnp.array([[0.0, 4.0]])}}, "llm": {"a": jnp.full(4, 6.0)}}
    norms = {name: float(value) for name, (value, weight) in gradient_norms(grads).items() if weight == 1}
    assert norms == {"grad_norm": 13.0, "grad_norm/siglip": 5.0, "grad_norm/llm": 12.0}
