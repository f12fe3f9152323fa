"""A run on stored VQ codes must have the image tokenizer that made the codes."""

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
    """Compares the run's image tokenizer with the one that the manifest beside each source of images to generate names.

    Logs a warning for a source without such a manifest. Every process of a run must call it.

    Args:
        patterns: the file pattern of every source by its name ("generate/0").
        config: the architecture of the image tokenizer.
        params: the parameters of the image tokenizer in this run.

    Raises:
        UserError: codes were made by another image tokenizer; names the manifest.
    """
    of_run = fingerprint(config, multihost_utils.process_allgather(params, tiled=True))
    folders = {epath.Path(pattern).parent for name, pattern in patterns.items() if name.startswith("generate/")}
    for folder in sorted(folders):
        made_by = image_tokenizer_of(folder)
        if not made_by:
            logging.warning("data.stored_codes: no manifest in %s tells which image tokenizer made the codes", folder)
        elif made_by != of_run:
            raise UserError(
                f"data.stored_codes: the codes in {folder} are of the image tokenizer {made_by[:12]} (manifest.json), "
                f"the run's is {of_run[:12]}: prepare them again with --checkpoint, or start with the same init.vq"
            )
