"""janus_jax: training and inference of the Janus family in JAX."""

from janus_jax.errors import UserError
from janus_jax.inference.janusflow import JanusFlowPipeline
from janus_jax.inference.loading import from_pretrained
from janus_jax.inference.pipeline import JanusPipeline
from janus_jax.models.presets import JANUS_1P3B, JANUS_PRO_1B, JANUS_PRO_7B, JANUSFLOW_1P3B, PRESETS

__version__ = "0.1.0"
__all__ = [
    "JANUS_1P3B",
    "JANUS_PRO_1B",
    "JANUS_PRO_7B",
    "JANUSFLOW_1P3B",
    "PRESETS",
    "JanusFlowPipeline",
    "JanusPipeline",
    "UserError",
    "from_pretrained",
]
