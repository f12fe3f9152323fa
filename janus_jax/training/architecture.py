"""The architecture that a run trains: that of a preset or of a checkpoint, with what the config changes."""

import dataclasses

from ml_collections import ConfigDict

from janus_jax.errors import UserError
from janus_jax.models.config import (
    AlignmentConfig,
    FamilyConfig,
    ImageTokenizerConfig,
    JanusFlowConfig,
    SemanticTokenizerConfig,
    VAEConfig,
)
from janus_jax.models.presets import PRESETS
from janus_jax.weights.open_model import open_model

CHECKPOINT = "checkpoint"  # value of `config.model` that stands for the architecture of `config.init.checkpoint`
MAX_CODEBOOK = {"num_codes": 2**22, "code_dim": 4096}


def model_config(config: ConfigDict) -> FamilyConfig | ImageTokenizerConfig:
    """The architecture that `config.model` names: a preset, or that of the folder `config.init.checkpoint`.

    JanusFlow gets the projector of an alignment loss with a weight, and none otherwise.

    Raises:
        UserError: A model that cannot be trained, a checkpoint that cannot be opened, or a loss that does not fit the
            model.
    """
    architecture = _named_architecture(config)
    if isinstance(architecture, ImageTokenizerConfig):
        return _with_codebook(config, architecture)
    if not isinstance(architecture, JanusFlowConfig):
        return architecture
    if missing := sorted({"alignment_weight", "time_location", "time_scale"} - set(config.loss)):
        raise UserError(f"config.loss has no {missing[0]}, which JanusFlow needs (configs/janusflow.py)")
    if not config.loss.alignment_weight:
        return dataclasses.replace(architecture, alignment=None)
    fine, coarse = architecture.uvit.grid, architecture.siglip.grid
    if fine % coarse:
        raise UserError(
            f"config.loss.alignment_weight={config.loss.alignment_weight}: {fine} x {fine} latent tokens cannot be "
            f"aligned with {coarse} x {coarse} of SigLIP, expected a multiple"
        )
    try:
        alignment = AlignmentConfig(layer=config.loss.alignment_layer, width=config.loss.alignment_width)
        return dataclasses.replace(architecture, alignment=alignment)
    except ValueError as error:
        raise UserError(f"config.loss.alignment_layer={config.loss.alignment_layer}: {error}") from error


def _with_codebook(config: ConfigDict, architecture: ImageTokenizerConfig) -> ImageTokenizerConfig:
    """The image tokenizer with the codebook of `config.codebook`; its fields are those of `VQConfig`, 0 keeps one."""
    chosen = {name: value for name, value in config.get("codebook", {}).items() if value}
    for name, value in chosen.items():
        if not 1 <= value <= MAX_CODEBOOK[name]:
            raise UserError(f"config.codebook.{name}={value}, expected 0 to {MAX_CODEBOOK[name]}")
    if isinstance(architecture, SemanticTokenizerConfig):
        return dataclasses.replace(architecture, vq=dataclasses.replace(architecture.vq, **chosen))
    return dataclasses.replace(architecture, **chosen)


def _named_architecture(config: ConfigDict) -> FamilyConfig | ImageTokenizerConfig:
    """The architecture of a preset or of a checkpoint, as it stands there."""
    if config.model == CHECKPOINT:
        if not config.init.checkpoint:
            raise UserError(
                f"config.init.checkpoint is empty, expected the folder of a model, since config.model={CHECKPOINT!r} "
                "takes the architecture from there"
            )
        try:
            return open_model(config.init.checkpoint).config
        except UserError as error:
            raise UserError(f"config.init.checkpoint={config.init.checkpoint!r}: {error}") from error
    trained = {name: preset for name, preset in PRESETS.items() if not isinstance(preset, VAEConfig)}
    if config.model not in trained:
        raise UserError(
            f"config.model={config.model!r} is not {CHECKPOINT!r} or one of {sorted(trained)}, which can be trained"
        )
    return trained[config.model]


def model_name(config: ConfigDict) -> str:
    """What messages call the model."""
    if config.model == CHECKPOINT:
        return f"config.init.checkpoint={config.init.checkpoint!r}"
    return f"config.model={config.model!r}"
