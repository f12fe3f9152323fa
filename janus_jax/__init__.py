"""janus_jax: training and inference of the Janus family in JAX.

The names below are imported when they are first used. So the data pipeline, whose worker processes import this package
too, starts without the models.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
_HOME = {
    "JANUS_1P3B": "models.presets",
    "JANUS_PRO_1B": "models.presets",
    "JANUS_PRO_7B": "models.presets",
    "JANUSFLOW_1P3B": "models.presets",
    "PRESETS": "models.presets",
    "JanusFlowPipeline": "inference.janusflow",
    "JanusPipeline": "inference.janus",
    "UserError": "errors",
    "from_pretrained": "inference.loading",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
