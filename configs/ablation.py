"""The arms of the ablation of Janus at full size (arXiv 2410.13848, section 4.3, Table 5): `a` to `f`; `d` is Janus.

All arms with a task see equally many samples of it: arms with both tasks take as many steps as those with one take
together. The paper states no steps. These, and the ratio of the tasks, are those of the same comparison in JanusFlow
(arXiv 2411.07975, Table 6). The image tokenizers are frozen; `init.vq` names one trained by `vq16.py` or, for `b` and
`c`, by `semantic_vq16.py`.
"""

from ml_collections import ConfigDict

from configs.base import base_config, lock, ratio
from janus_jax.errors import UserError

FROZEN = {"a": "vq", "b": "vq|semantic", "c": "vq|semantic", "d": "vq", "e": "", "f": "vq"}
UNDERSTANDING, GENERATION = 13_000, 37_000  # steps of the arms with one task, at the same number of rows
SHARES = {"c": (1, 0), "e": (1, 0), "f": (0, 1)}  # of understanding and generation, where an arm has one task


def get_config(arm: str = "b") -> ConfigDict:
    if arm not in FROZEN:
        raise UserError(f"configs/ablation.py:{arm}: expected one of {', '.join(FROZEN)}")
    config = base_config(f"ablation_{arm}", f"janus_1p3b_arm_{arm}")
    understand, generate = SHARES.get(arm, (1, 1))
    config.trainable = ((f"({FROZEN[arm]})/.*", False), (".*", True)) if FROZEN[arm] else ((".*", True),)
    config.data.ratio = ratio(float(UNDERSTANDING * understand), 0.0, float(GENERATION * generate))
    config.data.update(und_slots=7 * understand, gen_slots=7 * generate)
    config.train.update(
        num_steps=UNDERSTANDING * understand + GENERATION * generate,
        batch_size=512,  # Janus, Table 1, stage II
        learning_rate=1e-4,  # Janus, Table 1, stage II; constant, so that it does not depend on the number of steps
        warmup_steps=2_000,
    )
    return lock(config)
