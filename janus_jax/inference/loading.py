"""From a folder to the pipeline of its kind of model."""

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jax.typing import DTypeLike

from janus_jax.errors import UserError
from janus_jax.inference.janus import JanusPipeline
from janus_jax.inference.janusflow import JanusFlowPipeline
from janus_jax.inference.padding import BUCKETS, Buckets, check_buckets
from janus_jax.inference.quantization import QUANTIZATIONS, is_quantized, quantize, scale_path
from janus_jax.inference.validation import RequestReader
from janus_jax.inference.weight_layout import is_read_by_steps, transposed_path
from janus_jax.models.config import JanusFlowConfig
from janus_jax.models.params import unflatten
from janus_jax.models.scan_layers import unstacked_path
from janus_jax.sharding import decoding_shardings
from janus_jax.weights import open_model
from janus_jax.weights.vae import load_vae


def from_pretrained(
    path: epath.PathLike,
    dtype: DTypeLike | None = None,
    vae: epath.PathLike | None = None,
    ema: bool = False,
    *,
    mesh: Mesh | None = None,
    quantization: str | None = None,
    buckets: Buckets = BUCKETS,
) -> JanusPipeline | JanusFlowPipeline:
    """Loads a model: a folder or training workdir of janus_jax, a Hugging Face or a DeepSeek folder.

    Args:
        dtype: of parameters and compute; None is float32 on CPU and bfloat16 on accelerators. On a CPU kernels that
            every step reads stay in fewer bits if they were stored so (`inference.weight_layout`): results differ by
            rounding at most.
        vae: JanusFlow only: folder of its VAE, ours or diffusers'; None is that beside the model, if there is one.
        ema: of a training workdir, the average of the parameters over its steps (`config.train.ema`).
        mesh: of devices of this process, over which the model is divided (`sharding.make_mesh`).
        quantization: "int8" holds what every step of decoding reads in 8 bits (`inference.quantization`).
        buckets: the lengths of prompts and answers that get a compiled program are multiples of these.

    Raises:
        UserError: not a model folder, not a model of the family, or damaged; a mesh that does not divide it, an
            unknown quantization, or buckets that are not whole numbers from 1.
    """
    source = open_model.open_folder(path, ema)
    return load(source, dtype, find_vae(source, path, vae), mesh=mesh, quantization=quantization, buckets=buckets)


def find_vae(source: open_model.Source, path: epath.PathLike, vae: epath.PathLike | None) -> epath.Path | None:
    """The folder of the VAE of an opened model. Raises UserError for one that a model of codes cannot use."""
    if vae is not None:
        if not isinstance(source.config, JanusFlowConfig):
            raise UserError(f"vae={vae}: the model in {path} draws codes, only JanusFlow has a VAE")
        return epath.Path(vae)
    beside = epath.Path(path) / open_model.VAE_FOLDER
    return beside if beside.exists() else None


def load(
    source: open_model.Source,
    dtype: DTypeLike | None = None,
    vae: epath.Path | None = None,
    *,
    mesh: Mesh | None = None,
    quantization: str | None = None,
    buckets: Buckets = BUCKETS,
) -> JanusPipeline | JanusFlowPipeline:
    """`from_pretrained` of a folder that is open already. Each tensor is in memory once."""
    RequestReader(source.config, source.tokenizer)  # refuses a model that could not be asked
    check_buckets(buckets)
    if quantization not in (None, *QUANTIZATIONS):
        raise UserError(f"quantization={quantization!r} is not one of {sorted(QUANTIZATIONS)}")
    shardings = None if mesh is None else decoding_shardings(source.config, mesh)
    if dtype is None:
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    loaded_vae = None
    if isinstance(source.config, JanusFlowConfig) and vae is not None:
        loaded_vae = load_vae(vae, dtype)
        open_model.require_vae(source.config, loaded_vae[0])
    transposed = mesh is None and jax.default_backend() == "cpu"
    loaded: dict[str, jax.Array] = {}

    def place(path: str, values: np.ndarray) -> None:  # as a copy: they may be a part of a larger buffer of the reader
        if transposed and is_read_by_steps(path):
            loaded[transposed_path(path)] = jnp.array(values.T)
        elif shardings is None:
            loaded[path] = jnp.array(values)
        else:
            own = shardings[path]
            loaded[path] = jax.make_array_from_callback(values.shape, own, lambda index: np.array(values[index]))

    for piece, _ in open_model.pieces(source.config):
        path = piece.path if piece.layer is None else unstacked_path(piece.path, piece.layer)
        values = source.read(piece)
        if quantization is not None and is_quantized(path):
            kernel, scales = quantize(open_model.cast(values, np.dtype(np.float32), piece.path))
            place(path, kernel)
            place(scale_path(path), scales)
        elif transposed and is_read_by_steps(path) and jnp.promote_types(values.dtype, dtype) == dtype:
            place(path, values)  # as it was stored: exact, and in less memory
        else:
            place(path, open_model.cast(values, dtype, piece.path))
    params, rest = unflatten(loaded), (source.tokenizer, dtype, source.normalization)
    if isinstance(source.config, JanusFlowConfig):
        return JanusFlowPipeline(source.config, params, *rest, mesh=mesh, buckets=buckets, vae=loaded_vae)
    return JanusPipeline(source.config, params, *rest, mesh=mesh, buckets=buckets)
