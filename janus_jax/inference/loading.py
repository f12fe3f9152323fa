"""Opens a model folder and makes the pipeline for its kind of model."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh
from jax.typing import DTypeLike

from janus_jax.errors import UserError
from janus_jax.inference.adapters import Adapters
from janus_jax.inference.janus import JanusPipeline
from janus_jax.inference.janusflow import JanusFlowPipeline
from janus_jax.inference.padding import BUCKETS, Buckets, check_buckets
from janus_jax.inference.validation import RequestReader
from janus_jax.models.config import JanusFlowConfig
from janus_jax.models.params import Params
from janus_jax.sharding import decoding_shardings
from janus_jax.weights.adapter import Adapter, merged_model
from janus_jax.weights.load import floating_dtype, load_params, loaded_shapes
from janus_jax.weights.open_model import open_model
from janus_jax.weights.peft import read_adapter
from janus_jax.weights.quantization import QUANTIZATIONS
from janus_jax.weights.reader import ModelReader
from janus_jax.weights.vae import find_vae, load_vae, require_vae

AdapterFolders: TypeAlias = epath.PathLike | Mapping[str, epath.PathLike] | None  # see `from_pretrained`


def from_pretrained(
    path: epath.PathLike,
    dtype: DTypeLike | None = None,
    vae: epath.PathLike | None = None,
    ema: bool = False,
    *,
    mesh: Mesh | None = None,
    quantization: str | None = None,
    buckets: Buckets = BUCKETS,
    adapter: AdapterFolders = None,
) -> JanusPipeline | JanusFlowPipeline:
    """Loads a model and makes it ready to answer questions and generate images.

    Args:
        path: a model folder or training workdir of janus_jax, or a Hugging Face or DeepSeek folder.
        dtype: the dtype of parameters and of the computation; None is float32 on a CPU and bfloat16 on accelerators.
            On a CPU, the weight matrices that every decoding step reads keep a narrower dtype in which they are stored
            (`weights.weight_layout`), which changes results by rounding at most.
        vae: for JanusFlow, the folder of its VAE, ours or diffusers'; None is the VAE in the model's folder, if there
            is one.
        ema: loads the average of the parameters over the steps of a training workdir (`config.train.ema`).
        mesh: a mesh of devices of this process, over which the model is divided (`sharding.make_mesh`).
        quantization: "int8" stores the weight matrices of the language model and its heads as int8 with one scale per
            output channel (`weights.quantization`).
        buckets: the lengths of prompts and answers that get a compiled program are multiples of these.
        adapter: a folder of PEFT, which is merged in float32 before `dtype` and `quantization` apply. Or folders by
            name, which stay beside the weights: the first one is used, and `use_adapter` changes to another or to none.

    Raises:
        UserError: not a model folder, not a model of the family, or damaged; a mesh that does not divide it, a dtype
            that is not floating-point, an unknown quantization, or buckets that are not whole numbers from 1.
    """
    reader = open_model(path, ema)
    vae = find_vae(reader, path, vae)
    return load(reader, dtype, vae, mesh=mesh, quantization=quantization, buckets=buckets, adapter=adapter)


def load(
    reader: ModelReader,
    dtype: DTypeLike | None = None,
    vae: epath.Path | None = None,
    *,
    mesh: Mesh | None = None,
    quantization: str | None = None,
    buckets: Buckets = BUCKETS,
    adapter: AdapterFolders = None,
    compile_ahead: Callable[[Any], None] | None = None,
) -> JanusPipeline | JanusFlowPipeline:
    """Does what `from_pretrained` does, for a model that is open already. Each tensor is in memory once.

    Args:
        compile_ahead: called before the weights are read, with an engine whose parameters are shapes; it lets programs
            be compiled meanwhile (`Engine.compile_answer_ahead`). Not called for a model on a mesh.
    """
    config = reader.config
    RequestReader(config, reader.tokenizer)  # raises UserError for a model to which no request could be made
    check_buckets(buckets)
    if quantization not in (None, *QUANTIZATIONS):
        raise UserError(f"quantization={quantization!r} is not one of {sorted(QUANTIZATIONS)}")
    shardings = None if mesh is None else decoding_shardings(config, mesh)
    on_cpu = jax.default_backend() == "cpu"
    dtype = jax.dtypes.canonicalize_dtype(floating_dtype(default_dtype() if dtype is None else dtype))
    loaded_vae = None
    if isinstance(config, JanusFlowConfig) and vae is not None:
        loaded_vae = load_vae(vae, dtype)
        require_vae(config, loaded_vae[0])
    apart: dict[str, Adapter] = {}
    if isinstance(adapter, Mapping):
        apart = {name: read_adapter(folder, reader) for name, folder in adapter.items()}
    elif adapter is not None:
        reader = merged_model(reader, read_adapter(adapter, reader))
    transposed = on_cpu and mesh is None
    layout: dict[str, Any] = {
        "unrolled": not transposed or bool(apart),
        "quantization": quantization,
        "transposed": transposed,
    }

    def pipeline(params: Params) -> JanusPipeline | JanusFlowPipeline:
        common = (params, reader.tokenizer, dtype, reader.normalization)
        if isinstance(config, JanusFlowConfig):
            return JanusFlowPipeline(config, *common, mesh=mesh, buckets=buckets, vae=loaded_vae)
        return JanusPipeline(config, *common, mesh=mesh, buckets=buckets)

    if compile_ahead is not None and mesh is None and not apart:
        compile_ahead(pipeline(loaded_shapes(reader, dtype, **layout)).engine)
    loaded = pipeline(load_params(reader, dtype, shardings=shardings, **layout))
    if apart:
        loaded.adapters = Adapters(loaded.params, apart, dtype, mesh)
        loaded.use_adapter(loaded.adapters.names[0])
    return loaded


def default_dtype() -> jnp.dtype:
    """The dtype of a model that is loaded without one: float32 on a CPU and bfloat16 on accelerators."""
    return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
