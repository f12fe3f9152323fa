"""From a folder to the pipeline of its kind of model."""

import jax
import jax.numpy as jnp
from etils import epath
from jax.typing import DTypeLike

from janus_jax.convert import folders
from janus_jax.convert.vae_folder import load_vae
from janus_jax.errors import UserError
from janus_jax.inference.flow_pipeline import JanusFlowPipeline
from janus_jax.inference.pipeline import JanusPipeline
from janus_jax.inference.request import RequestReader
from janus_jax.models.config import JanusFlowConfig
from janus_jax.models.parameters import unflatten
from janus_jax.models.stack import unstacked_path


def from_pretrained(
    path: epath.PathLike, dtype: DTypeLike | None = None, vae: epath.PathLike | None = None, ema: bool = False
) -> JanusPipeline | JanusFlowPipeline:
    """Loads a model: a folder or training workdir of janus_jax, a Hugging Face or a DeepSeek folder.

    Args:
        dtype: of parameters and compute; None is float32 on CPU and bfloat16 on accelerators.
        vae: JanusFlow only: folder of its VAE, ours or diffusers'; None is that beside the model, if there is one.
        ema: of a training workdir, the average of the parameters over its steps (`config.train.ema`).

    Raises:
        UserError: not a model folder, not a model of the family, or damaged.
    """
    source = folders.open_folder(path, ema)
    return load(source, dtype, find_vae(source, path, vae))


def find_vae(source: folders.Source, path: epath.PathLike, vae: epath.PathLike | None) -> epath.Path | None:
    """The folder of the VAE of an opened model. Raises UserError for one that a model of codes cannot use."""
    if vae is not None:
        if not isinstance(source.config, JanusFlowConfig):
            raise UserError(f"vae={vae}: the model in {path} draws codes, only JanusFlow has a VAE")
        return epath.Path(vae)
    beside = epath.Path(path) / folders.VAE_FOLDER
    return beside if beside.exists() else None


def load(
    source: folders.Source, dtype: DTypeLike | None = None, vae: epath.Path | None = None
) -> JanusPipeline | JanusFlowPipeline:
    """`from_pretrained` of a folder that is open already. Each tensor is in memory once."""
    RequestReader(source.config, source.tokenizer)  # refuses a model that could not be asked
    if dtype is None:
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    loaded_vae = None
    if isinstance(source.config, JanusFlowConfig) and vae is not None:
        loaded_vae = load_vae(vae, dtype)
        folders.require_vae(source.config, loaded_vae[0])
    loaded: dict[str, jax.Array] = {}
    for piece, _ in folders.pieces(source.config):
        path = piece.path if piece.layer is None else unstacked_path(piece.path, piece.layer)
        values = folders.cast(source.read(piece), jax.dtypes.canonicalize_dtype(dtype), piece.path)
        loaded[path] = jnp.array(values)  # a copy: the values may be a part of a larger buffer of the reader
    params = unflatten(loaded)
    if isinstance(source.config, JanusFlowConfig):
        return JanusFlowPipeline(source.config, params, source.tokenizer, dtype, source.normalization, vae=loaded_vae)
    return JanusPipeline(source.config, params, source.tokenizer, dtype, source.normalization)
