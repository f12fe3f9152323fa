"""The arms of the quickstart's ablation are compared at equal compute."""

from configs import quickstart_flow
from examples.digits.ablation import arm_configs, flops_of_step


def test_arms_do_the_same_operations_at_every_point():
    """They agree to half a step; a step of the arm without the loss costs less."""
    config = quickstart_flow.get_config("ablation")
    arms = arm_configs(config, 4)
    assert [arm.loss.alignment_weight for arm in arms.values()] == [1.0, 0.0]
    assert arms["with"].train.num_steps == config.train.num_steps < arms["without"].train.num_steps
    flops = {name: flops_of_step(arm) for name, arm in arms.items()}
    work = {name: arm.checkpoint.every_steps * flops[name] for name, arm in arms.items()}
    assert abs(work["with"] - work["without"]) <= flops["without"] / 2
    assert all(arm.train.num_steps == 4 * arm.checkpoint.every_steps for arm in arms.values())
    assert all(arm.checkpoint.keep == 4 and arm.train.schedule == "constant" for arm in arms.values())
