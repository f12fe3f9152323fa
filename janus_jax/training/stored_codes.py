"""Stored VQ codes belong to the image tokenizer that made them: a run on them must have the same one."""

from collections.abc import Mapping
from typing import Any

from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from janus_jax.data.preparation.output_folder import image_tokenizer_of
from janus_jax.errors import UserError
from janus_jax.models.config import VQConfig
from janus_jax.models.params import fingerprint


def check_stored_codes(patterns: Mapping[str, str], config: VQConfig, params: Mapping[str, Any]) -> None:
    """Compares the run's image tokenizer with that in the manifest beside each glob of generation shards.

    Shards without a manifest that names one give a warning. Every process of a run must call it.

    Args:
        patterns: of all sources, by name ("generate/0").
        params: of the image tokenizer, as the run has them.

    Raises:
        UserError: codes of another image tokenizer; names the manifest.
    """
    own = fingerprint(config, multihost_utils.process_allgather(params, tiled=True))
    for folder in sorted(
        {epath.Path(pattern).parent for name, pattern in patterns.items() if name.startswith("generate/")}
    ):
        made_by = image_tokenizer_of(folder)
        if not made_by:
            logging.warning("data.stored_codes: no manifest in %s tells which image tokenizer made the codes", folder)
        elif made_by != own:
            raise UserError(
                f"data.stored_codes: the codes in {folder} are of the image tokenizer {made_by[:12]} (manifest.json), "
                f"the run's is {own[:12]}: prepare them again with --checkpoint, or start with the same init.vq"
            )
