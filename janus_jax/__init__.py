"""janus_jax: training and inference of the Janus family in JAX."""

from janus_jax.errors import UserError
from janus_jax.inference.pipeline import JanusPipeline, from_pretrained
from janus_jax.models.config import JANUS_1P3B, JANUS_PRO_1B, JANUS_PRO_7B, PRESETS

__version__ = "0.1.0"
__all__ = ["JANUS_1P3B", "JANUS_PRO_1B", "JANUS_PRO_7B", "PRESETS", "JanusPipeline", "UserError", "from_pretrained"]
