"""Model folders of others: transformers' JanusForConditionalGeneration ("hf") and DeepSeek's original ("deepseek").

transformers has no JanusFlow; DeepSeek's layout holds both models.
"""

import functools
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from etils import epath

from janus_jax.models.config import AnyConfig, FamilyConfig
from janus_jax.models.presets import JANUS_PRO_1B, JANUSFLOW_1P3B
from janus_jax.weights import preprocessor, token_ids, tokenizer_files
from janus_jax.weights.deepseek_config import read_deepseek_config
from janus_jax.weights.hf_config import read_hf_config
from janus_jax.weights.janusflow_config import is_flow, read_flow_config
from janus_jax.weights.json_fields import CONFIG_FILE, checked_sizes, read_fields
from janus_jax.weights.name_map import Link, Shape, links, match_names, table_of, their_shapes
from janus_jax.weights.reader import ModelReader, TensorInfo, TensorSlice
from janus_jax.weights.tensor_files import TensorFiles, open_tensors


class ForeignTensors:
    """A reader of our parameters in the files of others."""

    def __init__(
        self,
        files: TensorFiles,
        config: AnyConfig,
        layout: str,
        folder: epath.Path,
        *,
        any_vocabulary: bool = False,
        stored_names: Mapping[str, str] | None = None,
    ):
        """Finds the tensor of every parameter.

        Args:
            config: our architecture of the model.
            layout: the table of names, one of `name_map.LAYOUTS`.
            folder: what to call the files in an error.
            any_vocabulary: accepts other numbers of rows in the embeddings and in the text head.
            stored_names: name that the table knows -> name in the files; None where they are the same.

        Raises:
            UserError: tensors are missing, left over, of another shape, or not floating point.
        """
        self._files = files
        stored = stored_names or {name: name for name in files.tensors}
        shapes = {name: files.tensors[stored[name]].shape for name in stored}
        names = match_names(shapes, config, layout, str(folder), any_vocabulary=any_vocabulary)
        self._links = {link.slice: link for link in links(config, layout)}
        self._names = {part: stored[names[link.name]] for part, link in self._links.items()}
        for name in self._names.values():
            files.tensors[name].check_floating(folder, name)
        self.parameters = self._find_parameters()

    def read(self, part: TensorSlice) -> np.ndarray:
        return block_of(self._files.read(self._names[part]), self._links[part])

    def origin(self, part: TensorSlice) -> str:
        link = self._links[part]
        block = f"[{link.part[0]}/{link.part[1]}]" if link.part else ""
        return f"{self._names[part]}{block} ({link.transform.name})"

    def _find_parameters(self) -> dict[str, TensorInfo]:
        """Shape and dtype of our parameters, with the narrowest dtype that holds every layer exactly."""
        slices: dict[str, list[TensorSlice]] = {}
        for part in self._links:
            slices.setdefault(part.path, []).append(part)
        parameters = {}
        for path, parts in slices.items():
            stored = [self._files.tensors[self._names[part]] for part in parts]
            dtype = functools.reduce(jnp.promote_types, [info.dtype for info in stored])
            shape = block_of(np.broadcast_to(np.float32(0), stored[0].shape), self._links[parts[0]]).shape
            parameters[path] = TensorInfo(shape if parts[0].layer is None else (len(parts), *shape), dtype)
        return parameters


def open_foreign_model(folder: epath.Path) -> ModelReader:
    """Opens a Hugging Face or DeepSeek folder; see `open_model.open_model`."""
    files = open_tensors(folder)
    shapes = {name: info.shape for name, info in files.tensors.items()}
    tokenizer, prompt_style = tokenizer_files.read_tokenizer(folder)
    layout, config = read_config(folder, shapes, prompt_style=prompt_style)
    normalization = preprocessor.read_preprocessor(folder, config)
    tokenizer_files.check_vocabulary(folder, tokenizer, config)
    token_ids.check_tokens(folder, layout, config, tokenizer)
    tensors = ForeignTensors(files, config, table_of(config, layout), folder)
    return ModelReader(layout, config, tokenizer, normalization, tensors)


def read_config(
    folder: epath.PathLike, shapes: Mapping[str, Shape] | None = None, *, prompt_style: str = "janus_pro"
) -> tuple[str, FamilyConfig]:
    """The layout of a folder ("hf" or "deepseek") and its architecture, from its config.json.

    Args:
        shapes: name -> shape of the folder's tensors. The deepseek layout needs them where SigLIP and the VQ have other
            sizes than released; `name_map.match_names` compares all other sizes with them.
        prompt_style: of the result; config.json does not contain it.

    Raises:
        UserError: no readable config.json, not a Janus model, or one that our code cannot represent.
    """
    top = read_fields(epath.Path(folder) / CONFIG_FILE)
    kind = top.values.get("model_type")
    if kind not in ("janus", "multi_modality"):
        raise top.wrong("model_type", '"janus" (transformers) or "multi_modality" (DeepSeek)')
    with checked_sizes(top.path):
        if is_flow(top):
            shapes = their_shapes(JANUSFLOW_1P3B, "janusflow") if shapes is None else shapes
            return "deepseek", read_flow_config(top, shapes, prompt_style)
        if kind == "janus":
            return "hf", read_hf_config(top, prompt_style)
        shapes = their_shapes(JANUS_PRO_1B, "deepseek") if shapes is None else shapes
        return "deepseek", read_deepseek_config(top, shapes, prompt_style)


def block_of(tensor: np.ndarray, link: Link) -> np.ndarray:
    """The slice of ours that a foreign tensor holds."""
    if link.part:
        index, number = link.part
        tensor = np.split(tensor, number)[index]
    return link.transform.to_ours(tensor)
