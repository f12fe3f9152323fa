"""The discriminator of an image tokenizer: in a workdir of ours, and in the names and axes of LlamaGen's files."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from janus_jax.errors import UserError
from janus_jax.models.config import PatchDiscriminatorConfig
from janus_jax.models.params import Params, abstract_params, flatten, unflatten
from janus_jax.models.patch_discriminator import NormStatistics
from janus_jax.ops.batch_norm import Statistics
from janus_jax.weights.native import params_path
from janus_jax.weights.orbax_io import OrbaxReader
from janus_jax.weights.reader import TensorSlice
from janus_jax.weights.tensor_files import TensorFiles

NORM_EPS = 1e-5  # PyTorch's default, which LlamaGen has


def find_discriminator(
    location: epath.PathLike, config: PatchDiscriminatorConfig | None = None
) -> tuple[PatchDiscriminatorConfig, Params, NormStatistics] | None:
    """Architecture, parameters and running statistics beside an image tokenizer; None where there is no discriminator.

    Args:
        location: LlamaGen's file, or a folder of ours: a training workdir or an exported model, which has none.
        config: the architecture that is expected; None: any.

    Raises:
        UserError: the discriminator there has other sizes than `config`, or is damaged.
    """
    location = epath.Path(location)
    if location.is_file():
        if location.suffix == ".safetensors":
            return None
        with TensorFiles([location], "discriminator") as files:
            tensors = {name: files.read(name) for name in files.tensors}
        if not tensors:
            return None
        if config is None:
            widths = [len(value) for name, value in tensors.items() if name.endswith("running_mean")]
            config = _measured(len(tensors.get("main.0.weight", [])), len(widths), str(location))
        return config, *from_llamagen(tensors, config, str(location))
    folder = params_path(location).parent / "adversary"
    if not folder.exists():
        return None
    reader = OrbaxReader(folder)
    if config is None:
        norms = {path.split("/")[1] for path in reader.parameters if path.startswith("statistics/")}
        kernel = reader.parameters.get("params/conv_0/kernel")
        config = _measured(kernel.shape[-1] if kernel else 0, len(norms), str(location))
    wanted = {f"params/{path}": leaf.shape for path, leaf in flatten(abstract_params(config)).items()}
    for norm, size in _norms(config).items():
        wanted |= {f"statistics/{norm}/{kind}": (size,) for kind in Statistics._fields}
    found = {path: info.shape for path, info in reader.parameters.items() if not path.startswith("opt_state/")}
    if found != wanted:
        raise UserError(f"{location}: {_difference(found, wanted, config)}")
    flat = {path: jnp.asarray(reader.read(TensorSlice(path))) for path in wanted}
    params = {path.removeprefix("params/"): value for path, value in flat.items() if path.startswith("params/")}
    statistics = {
        norm: Statistics(*(flat[f"statistics/{norm}/{kind}"] for kind in Statistics._fields)) for norm in _norms(config)
    }
    return config, unflatten(params), statistics


def from_llamagen(
    tensors: Mapping[str, np.ndarray], config: PatchDiscriminatorConfig, origin: str
) -> tuple[Params, NormStatistics]:
    """Parameters and running statistics from LlamaGen's state dict of a discriminator.

    Raises:
        UserError: a tensor is missing, left over or has another shape; `origin` is what it calls the file.
    """
    expected = {their_name(path, config): (path, leaf.shape) for path, leaf in flatten(abstract_params(config)).items()}
    norms = _norms(config)
    buffers = {_running_name(norm, kind): size for norm, size in norms.items() for kind in ("mean", "var")}
    counters = {_running_name(norm, "mean").replace("running_mean", "num_batches_tracked") for norm in norms}
    shapes = {name: _their_shape(shape) for name, (_, shape) in expected.items()}
    shapes |= {name: (size,) for name, size in buffers.items()}
    found = {name: value.shape for name, value in tensors.items() if name not in counters}
    if found != shapes:
        raise UserError(f"{origin}: {_difference(found, shapes, config)}")
    params = {path: _to_ours(tensors[name]) for name, (path, _) in expected.items()}
    statistics = {
        norm: Statistics(*(jnp.asarray(tensors[_running_name(norm, kind)], jnp.float32) for kind in ("mean", "var")))
        for norm in norms
    }
    return unflatten(params), statistics


def to_llamagen(params: Params, statistics: NormStatistics, config: PatchDiscriminatorConfig) -> dict[str, np.ndarray]:
    """The inverse of `from_llamagen`. The counter of batches, which nothing reads, is 0."""
    tensors: dict[str, np.ndarray] = {}
    for path, values in flatten(params).items():
        values = np.asarray(values)
        tensors[their_name(path, config)] = values.transpose(3, 2, 0, 1) if values.ndim == 4 else values
    for norm, running in statistics.items():
        tensors[_running_name(norm, "mean")] = np.asarray(running.mean)
        tensors[_running_name(norm, "var")] = np.asarray(running.variance)
        tensors[_running_name(norm, "mean").replace("running_mean", "num_batches_tracked")] = np.array(0, np.int64)
    return tensors


def their_name(path: str, config: PatchDiscriminatorConfig) -> str:
    """The name that LlamaGen gives to one of our parameters. Each of its layers and activations has a number."""
    module, leaf = path.split("/")
    if module == "logits":
        number = 3 * config.num_layers + 2
    else:
        kind, i = module.split("_")
        number = 3 * int(i) - (kind == "conv" and int(i) > 0)
    return f"main.{number}.{'bias' if leaf == 'bias' else 'weight'}"


def _running_name(norm: str, kind: str) -> str:
    return f"main.{3 * int(norm.removeprefix('norm_'))}.running_{kind}"


def _their_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape


def _to_ours(values: np.ndarray) -> jax.Array:
    return jnp.asarray(values.transpose(2, 3, 1, 0) if values.ndim == 4 else values, jnp.float32)


def _measured(channels: int, norms: int, origin: str) -> PatchDiscriminatorConfig:
    """The architecture with so many channels in the first layer and so many norms."""
    if not channels or not norms:
        raise UserError(f"{origin}: its discriminator is not a PatchGAN of LlamaGen")
    return PatchDiscriminatorConfig(base_channels=channels, num_layers=norms, norm_eps=NORM_EPS)


def _norms(config: PatchDiscriminatorConfig) -> dict[str, int]:
    """Name and number of channels of each norm."""
    return {f"norm_{i}": channels for i, channels in enumerate(config.channels[1:], start=1)}


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any], config: PatchDiscriminatorConfig) -> str:
    """The first tensor that is not as it should be."""
    name = min(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    return (
        f"{name} of the discriminator has the shape {found.get(name)}, expected {wanted.get(name)}, with "
        f"{config.base_channels} channels and {config.num_layers} layers"
    )
