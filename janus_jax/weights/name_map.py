"""The names of our parameters and of theirs: one table per component, used for reading and for writing.

A row is (ours, transformers', DeepSeek's), each below the prefix of its table. It names a module, to which the names of
its weight and bias are added, or an embedding table by its full name. `{l}` stands for the layer, other braces match
one word, and `{k-1}` and `{2k}` are computed from `{k}`. The first row that matches counts.

Notes in brackets say how the tensor of DeepSeek (or diffusers) differs from ours. `qkv[1/3]` is block 1 of the 3 that
are fused along the first axis, `[0]` is the only entry of a leading axis, `[channels]` has three leading axes of one
entry, and `[linear]` is a matrix where ours is a 1x1 convolution.

A *layout* is a whole checkpoint ("hf", "deepseek", "janusflow" and its "vae"), or a pretrained part to start training
from: "siglip" (transformers' SiglipVisionModel or SiglipModel), "llm" (LlamaForCausalLM), "vq" (LlamaGen's vq_ds16), or
a network that only measures images: "inception" (pytorch-fid's file), "clip" (transformers' CLIPModel), "mask2former"
(transformers) and "mmdet" (the same network in mmdet).
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from janus_jax.errors import UserError
from janus_jax.models.config import AnyConfig, JanusFlowConfig
from janus_jax.models.params import abstract_params, flatten
from janus_jax.models.scan_layers import is_stacked
from janus_jax.weights.detector_name_map import DETECTOR_TABLES
from janus_jax.weights.janusflow_name_map import FLOW_TABLES
from janus_jax.weights.metric_name_map import METRIC_TABLES
from janus_jax.weights.reader import TensorSlice

Shape = tuple[int, ...]
_SHOWN = 10  # names in a list of an error message


class Transform(NamedTuple):
    """A change of axes and its inverse. Both return views; the dtype stays."""

    name: str
    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


class Link(NamedTuple):
    """A slice of our parameters and the foreign tensor that holds it."""

    path: str  # ours: "llm/decoder/layers/attention/q_proj/kernel"
    layer: int | None  # index on the leading axis of our stacked parameter; None: the whole parameter
    name: str  # theirs: "model.language_model.layers.3.self_attn.q_proj.weight"
    transform: Transform  # from their axes to ours, after a fused tensor is split
    part: tuple[int, int] | None  # (i, n): block i of n along the first axis of a fused tensor

    @property
    def slice(self) -> TensorSlice:
        return TensorSlice(self.path, self.layer)


_AS_IS = Transform("as is", lambda x: x, lambda x: x)
_LINEAR = Transform("transpose", lambda x: x.T, lambda x: x.T)  # [out, in] -> [in, out]
_CONV = Transform("OIHW to HWIO", lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
_NOTED = {  # by the note in the table; "linear" concerns the weight only, not the bias
    "0": Transform("drop leading axis", lambda x: x[0], lambda x: x[None]),
    "channels": Transform("drop leading axes", lambda x: x[0, 0, 0], lambda x: x[None, None, None]),
    # The four neighbours that Swin merges vary fastest in mmdet, and slowest in ours.
    "unfold": Transform("reorder merged neighbours", lambda x: _merged_first(x), lambda x: _merged_last(x)),
    "linear": Transform("transpose to 1x1 convolution", lambda x: x.T[None, None], lambda x: x[0, 0].T),
}


def _merged_first(x: np.ndarray) -> np.ndarray:
    """[..., channels * rows * columns of neighbours] -> [columns * rows * channels, ...]."""
    return x.reshape(*x.shape[:-1], -1, 2, 2).T.reshape(x.shape[-1], *x.shape[:-1])


def _merged_last(x: np.ndarray) -> np.ndarray:
    """The inverse of `_merged_first`."""
    return x.reshape(2, 2, -1, *x.shape[1:]).T.reshape(*x.shape[1:], x.shape[0])


class _Table(NamedTuple):
    ours: str
    hf: str
    deepseek: str
    rows: tuple[tuple[str, str, str], ...]


_SIGLIP = _Table(
    "siglip/",
    "model.vision_model.",
    "vision_model.vision_tower.",
    (
        ("pos_embed", "embeddings.position_embedding.weight", "pos_embed[0]"),
        ("patch_embed", "embeddings.patch_embedding", "patch_embed.proj"),
        ("layers/attention_norm", "encoder.layers.{l}.layer_norm1", "blocks.{l}.norm1"),
        ("layers/q_proj", "encoder.layers.{l}.self_attn.q_proj", "blocks.{l}.attn.qkv[0/3]"),
        ("layers/k_proj", "encoder.layers.{l}.self_attn.k_proj", "blocks.{l}.attn.qkv[1/3]"),
        ("layers/v_proj", "encoder.layers.{l}.self_attn.v_proj", "blocks.{l}.attn.qkv[2/3]"),
        ("layers/o_proj", "encoder.layers.{l}.self_attn.projection_layer", "blocks.{l}.attn.proj"),
        ("layers/mlp_norm", "encoder.layers.{l}.layer_norm2", "blocks.{l}.norm2"),
        ("layers/{fc}", "encoder.layers.{l}.mlp.{fc}", "blocks.{l}.mlp.{fc}"),
        ("norm", "post_layernorm", "norm"),
    ),
)
_ALIGNER_ROWS = (
    ("linear_0", "fc1", "layers.0"),
    ("linear_{k}", "hidden_layers.{k-1}", "layers.{2k}"),  # every second of theirs is a GELU
)
_ALIGNER = _Table("aligner/", "model.aligner.", "aligner.", _ALIGNER_ROWS)
_GEN_ALIGNER = _Table("gen_aligner/", "model.generation_aligner.", "gen_aligner.", _ALIGNER_ROWS)
_GEN_EMBED = _Table("", "model.", "", (("gen_embed", "generation_embeddings.weight", "gen_embed.weight"),))
_GEN_HEAD = _Table(
    "gen_head/",
    "model.generation_head.",
    "gen_head.",
    (("proj", "proj_out", "output_mlp_projector"), ("codes", "vision_head", "vision_head")),
)
_VQ_LEVEL_ROWS = (
    ("{i}_block_{j}/shortcut", "{i}.block.{j}.nin_shortcut", "{i}.res.{j}.nin_shortcut"),
    ("{i}_block_{j}/{m}", "{i}.block.{j}.{m}", "{i}.res.{j}.{m}"),
    ("{i}_attn_{j}/{m}", "{i}.attn.{j}.{m}", "{i}.attn.{j}.{m}"),
    ("{i}_{sample}", "{i}.{sample}.conv", "{i}.{sample}.conv"),  # downsample or upsample
)
_VQ_DOWN = _Table(
    "vq/encoder/down_", "model.vqmodel.encoder.down.", "gen_vision_model.encoder.conv_blocks.", _VQ_LEVEL_ROWS
)
_VQ_UP = _Table("vq/decoder/up_", "model.vqmodel.decoder.up.", "gen_vision_model.decoder.conv_blocks.", _VQ_LEVEL_ROWS)
_VQ = _Table(
    "vq/",
    "model.vqmodel.",
    "gen_vision_model.",
    (
        ("codebook", "quantize.embedding.weight", "quantize.embedding.weight"),
        ("quant_conv", "quant_conv", "quant_conv"),
        ("post_quant_conv", "post_quant_conv", "post_quant_conv"),
        ("{side}/mid/block_1/{m}", "{side}.mid.block_1.{m}", "{side}.mid.0.{m}"),
        ("{side}/mid/attn_1/{m}", "{side}.mid.attn_1.{m}", "{side}.mid.1.{m}"),
        ("{side}/mid/block_2/{m}", "{side}.mid.block_2.{m}", "{side}.mid.2.{m}"),
        ("{side}/{m}", "{side}.{m}", "{side}.{m}"),  # conv_in, norm_out, conv_out
    ),
)
_LLM = _Table(
    "llm/",
    "model.language_model.",
    "language_model.model.",
    (
        ("embed_tokens", "embed_tokens.weight", "embed_tokens.weight"),
        ("decoder/layers/input_norm", "layers.{l}.input_layernorm", "layers.{l}.input_layernorm"),
        ("decoder/layers/attention/{m}", "layers.{l}.self_attn.{m}", "layers.{l}.self_attn.{m}"),
        ("decoder/layers/mlp_norm", "layers.{l}.post_attention_layernorm", "layers.{l}.post_attention_layernorm"),
        ("decoder/layers/mlp/{m}", "layers.{l}.mlp.{m}", "layers.{l}.mlp.{m}"),
        ("decoder/norm", "norm", "norm"),
    ),
)
_LLM_HEAD = _Table("llm/", "", "language_model.", (("lm_head", "lm_head", "lm_head"),))
_OTHER_TABLES = (*METRIC_TABLES, *FLOW_TABLES)  # with one column of foreign names
_TABLES = (
    *(_SIGLIP, _ALIGNER, _GEN_ALIGNER, _GEN_EMBED, _GEN_HEAD, _VQ_DOWN, _VQ_UP, _VQ, _LLM, _LLM_HEAD),
    *(_Table(*table) for table in DETECTOR_TABLES),
    *(_Table(ours, "", theirs, tuple((a, "", b) for a, b in rows)) for ours, theirs, rows in _OTHER_TABLES),
)


class _Layout(NamedTuple):
    names: str  # the column of the tables that it uses
    ours: str = ""  # prefix of those of our paths that it holds
    removed: str = ""  # prefix of the column's names that its files never have
    optional: str = ""  # prefix of the remaining names that its files may lack
    renamed: tuple[str, str] = ("", "")  # a part of the column's names and what its files have instead


LAYOUTS = {
    "hf": _Layout("hf", optional="model."),
    "deepseek": _Layout("deepseek"),
    "siglip": _Layout("hf", "siglip/", "model.", "vision_model.", (".projection_layer.", ".out_proj.")),
    "llm": _Layout("deepseek", "llm/", "language_model.", "model."),
    "vq": _Layout("deepseek", "vq/", "gen_vision_model."),
    "janusflow": _Layout("deepseek", renamed=("vision_model.vision_tower.", "vision_und_enc_model.vision_tower.")),
    "vae": _Layout("deepseek"),
    "inception": _Layout("deepseek"),
    "clip": _Layout("deepseek"),
    "mask2former": _Layout("hf"),
    "mmdet": _Layout("deepseek"),
}

# Patterns of the names of tensors that our models do not have: buffers, pooling heads, SigLIP's text tower.
_BUFFERS = r"(.+\.)?(rotary_emb\.inv_freq|position_ids|quantize\.codebook_used)"
DROPPED = {
    "hf": _BUFFERS,
    "deepseek": rf"{_BUFFERS}|vision_model\.vision_tower\.attn_pool\..+",
    "siglip": rf"{_BUFFERS}|(vision_model\.)?head\..+|text_model\..+|logit_scale|logit_bias",
    "llm": _BUFFERS,
    "vq": _BUFFERS,
    "janusflow": rf"{_BUFFERS}|vision_und_enc_model\.vision_tower\.attn_pool\..+",
    "vae": _BUFFERS,
    "inception": r".+\.num_batches_tracked|fc\.bias",  # the Inception score uses logits without their bias
    "clip": _BUFFERS,
    "mask2former": r".+\.encoder\.(swin\.)?layernorm\..+|.+\.relative_position_index|criterion\.empty_weight",
    "mmdet": r".+\.relative_position_index|panoptic_head\.loss_cls\.class_weight",
}
TRAINING_ONLY = "alignment_head/"  # prefix of our parameters that no foreign layout has


def table_of(config: AnyConfig, layout: str) -> str:
    """The table of names for a whole folder; DeepSeek's layout has another one for JanusFlow."""
    return "janusflow" if layout == "deepseek" and isinstance(config, JanusFlowConfig) else layout


def links(config: AnyConfig, layout: str) -> list[Link]:
    """A link for every slice of our parameters that the layout holds."""
    rules = LAYOUTS[layout]
    shapes = _our_shapes(config)
    held = [path for path in shapes if path.startswith(rules.ours) and not path.startswith(TRAINING_ONLY)]
    return [link for path in held for link in _links_of(path, shapes[path], rules)]


def their_shapes(config: AnyConfig, layout: str) -> dict[str, Shape]:
    """Name -> shape of all tensors that a layout has for an architecture. Needs no memory."""
    shapes = {}
    for link in links(config, layout):
        ours = _our_shapes(config)[link.path]
        values = np.broadcast_to(np.float32(0), ours if link.layer is None else ours[1:])
        shape = link.transform.to_theirs(values).shape
        shapes[link.name] = (shape[0] * link.part[1], *shape[1:]) if link.part else shape
    return shapes


def match_names(
    found: Mapping[str, Shape], config: AnyConfig, layout: str, origin: str, *, any_vocabulary: bool = False
) -> dict[str, str]:
    """Finds the tensors that a layout needs among those of a checkpoint.

    A text head that is missing is tied to the embeddings. A text head that is there is used, even if config.json says
    that it is tied.

    Args:
        found: name -> shape of everything in the checkpoint.
        origin: what to call the checkpoint in an error.
        any_vocabulary: accepts other numbers of rows in the embeddings and in the text head.

    Returns:
        Name as in `links` -> name in the checkpoint; `DROPPED` tensors are left out.

    Raises:
        UserError: missing, unexpected or differently shaped tensors, all of them listed.
    """
    expected = their_shapes(config, layout)
    names = {link.path: link.name for link in links(config, layout)}
    head, table = names.get("llm/lm_head/kernel"), names.get("llm/embed_tokens")
    bare = {name: name.removeprefix(LAYOUTS[layout].optional) for name in expected}
    actual = {name: name if name in found else bare[name] for name in expected if {name, bare[name]} & found.keys()}
    unexpected = [name for name in found.keys() - set(actual.values()) if not re.fullmatch(DROPPED[layout], name)]
    if head and table in actual:
        actual.setdefault(head, actual[table])

    def fits(name: str) -> bool:
        ours, theirs = expected[name], found[actual[name]]
        first = 1 if any_vocabulary and name in (head, table) else 0
        return len(ours) == len(theirs) and ours[first:] == theirs[first:]

    problems = (
        _listed("missing", expected.keys() - actual.keys()),
        _listed("unexpected", unexpected),
        _listed(
            "of another shape",
            (f"{actual[n]} {list(found[actual[n]])} (expected {list(expected[n])})" for n in actual if not fits(n)),
        ),
    )
    if any(problems):
        raise UserError(f"{origin}: the tensors do not fit the architecture\n" + "\n".join(filter(None, problems)))
    return actual


def _links_of(path: str, shape: Shape, rules: _Layout) -> list[Link]:
    """The links of one of our parameters."""
    module, _, leaf = path.rpartition("/")
    suffix = {"kernel": ".weight", "scale": ".weight", "bias": ".bias"}.get(leaf, "")
    pattern, words = _find_row(module if suffix else path, rules.names)
    name, _, note = pattern.rstrip("]").partition("[")
    stacked = is_stacked(path)
    transform = _AS_IS
    if note in _NOTED and not (note == "linear" and leaf == "bias"):
        transform = _NOTED[note]
    elif leaf == "kernel":
        transform = _LINEAR if len(shape) - stacked == 2 else _CONV
    block, _, blocks = note.partition("/")
    part = (int(block), int(blocks)) if blocks else None

    def their_name(layer: int | None) -> str:
        return f"{name}{suffix}".format_map({**words, "l": layer}).removeprefix(rules.removed).replace(*rules.renamed)

    layers = range(shape[0]) if stacked else [None]
    return [Link(path, layer, their_name(layer), transform, part) for layer in layers]


def _find_row(module: str, names: str) -> tuple[str, dict[str, str | int]]:
    """The foreign name in the first row that matches a module of ours, and the words that fill its braces."""
    for table in _TABLES:
        for ours, hf, deepseek in table.rows:
            match = re.fullmatch(re.sub(r"{(\w+)}", r"(?P<\1>\\w+)", table.ours + ours), module)
            if match:
                words: dict[str, str | int] = dict(match.groupdict())
                if "k" in words:
                    words |= {"k-1": int(words["k"]) - 1, "2k": 2 * int(words["k"])}
                return (table.hf + hf if names == "hf" else table.deepseek + deepseek), words
    raise KeyError(f"no table has a row for the parameter {module}")


@functools.lru_cache(maxsize=8)
def _our_shapes(config: AnyConfig) -> Mapping[str, Shape]:
    return {path: leaf.shape for path, leaf in flatten(abstract_params(config)).items()}


def _listed(what: str, names: Iterable[str]) -> str:
    """One line of an error message; empty if there are no names."""
    names = sorted(names)
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"  {what} ({len(names)}): {', '.join(names[:_SHOWN])}{more}" if names else ""
