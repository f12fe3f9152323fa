"""The tensors that the code of others builds from a config.json: DeepSeek's ("deepseek") and transformers' ("hf").

Names and shapes follow the modules of that code, not the tables and architectures that this project converts with. So
`launch.convert --verify` has a second witness that an exported folder loads there.
"""

import re
from typing import NamedTuple

from etils import epath

from janus_jax.errors import UserError
from janus_jax.weights.infer_sizes import TOWER_DEFAULTS, TOWERS, selected_depth
from janus_jax.weights.janusflow_config import is_flow
from janus_jax.weights.json_fields import CONFIG_FILE, Fields, read_fields
from janus_jax.weights.llama_config import LLAMA_DEFAULTS
from janus_jax.weights.name_map import Shape
from janus_jax.weights.tensor_files import open_tensors

Shapes = dict[str, Shape]
# Tensors that DeepSeek's code makes and never uses: SigLIP's pooling head and a statistic of training.
_UNUSED = re.compile(r".*\.attn_pool\..+|.*\.quantize\.codebook_used")
_USAGE_WINDOW = 65536


def check_loads(folder: epath.PathLike) -> str:
    """Compares the tensors of a folder with those that the code it is for builds from its config.json.

    Returns:
        What was found, to be printed.

    Raises:
        UserError: a tensor is missing, unknown there, or of another shape.
    """
    folder = epath.Path(folder)
    expected = original_tensors(read_fields(folder / CONFIG_FILE))
    with open_tensors(folder) as files:
        found = {name: info.shape for name, info in files.tensors.items()}
    needed = {name: shape for name, shape in expected.items() if not _UNUSED.fullmatch(name)}
    problems = [f"{name} is missing" for name in needed.keys() - found.keys()]
    problems += [f"{name} is unknown there" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} has the shape {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    if problems:
        raise UserError(f"{folder}: does not load in the original code: {'; '.join(sorted(problems)[:10])}")
    left_out = len(expected.keys() - found.keys())
    unused = f"; {left_out} that it makes and never uses are left out" if left_out else ""
    return f"all {len(needed)} tensors that its code reads are there, in its names and shapes{unused}"


def original_tensors(top: Fields) -> Shapes:
    """Name -> shape of every tensor of the model that the other code builds from a whole config.json."""
    if top.values.get("model_type") == "janus":
        return _transformers(top)
    return _janusflow(top) if is_flow(top) else _janus(top)


def _janus(top: Fields) -> Shapes:
    """janus/models/modeling_vlm.py. The image tokenizer has fixed sizes, whatever the config says."""
    aligner, gen_aligner, head, codes = (
        top.object(name).object("params")
        for name in ("aligner_config", "gen_aligner_config", "gen_head_config", "gen_vision_config")
    )
    num_codes, hidden = head.integer("image_token_size"), head.integer("image_token_embed")
    return {
        **_tower("vision_model.vision_tower.", top.object("vision_config").object("params", TOWER_DEFAULTS)),
        **_projector("aligner.", aligner),
        **_vq("gen_vision_model.", _VQ_16, _ORIGINAL_WORDS),
        "gen_vision_model.quantize.codebook_used": (_USAGE_WINDOW,),
        **_projector("gen_aligner.", gen_aligner),
        "gen_embed.weight": (codes.integer("image_token_size"), codes.integer("n_embed")),
        **_linear("gen_head.output_mlp_projector", head.integer("n_embed"), hidden),
        **_linear("gen_head.vision_head", hidden, num_codes),
        **_llama("language_model.model.", "language_model.lm_head", top.object("language_config", LLAMA_DEFAULTS)),
    }


def _janusflow(top: Fields) -> Shapes:
    """janus/janusflow/models/modeling_vlm.py. The widths of the aligners are fixed."""
    tower, encoder, decoder = (
        top.object(f"{name}_config").object("params") for name in ("vision_und_enc", "vision_gen_enc", "vision_gen_dec")
    )
    return {
        **_tower("vision_und_enc_model.vision_tower.", tower.filled(TOWER_DEFAULTS)),
        **_linear("vision_und_enc_aligner", 1024, 2048),
        "beg_of_und_embed": (1, 2048),
        **_uvit_encoder("vision_gen_enc_model.", encoder),
        **_linear("vision_gen_enc_aligner", 768, 2048),
        **_uvit_decoder("vision_gen_dec_model.", decoder),
        "vision_gen_dec_aligner_norm.weight": (2048,),
        **_linear("vision_gen_dec_aligner", 2048, 768),
        **_llama("language_model.model.", "language_model.lm_head", top.object("language_config", LLAMA_DEFAULTS)),
    }


def _transformers(top: Fields) -> Shapes:
    """JanusForConditionalGeneration of transformers' modeling_janus.py."""
    vision, vq = top.object("vision_config"), top.object("vq_config")
    width, projected = vision.integer("hidden_size"), vq.integer("projection_dim")
    patch, mlp = vision.integer("patch_size"), int(width * vision.number("mlp_ratio"))
    tower = "model.vision_model."
    shapes = {
        **_conv(f"{tower}embeddings.patch_embedding", 3, width, patch),
        f"{tower}embeddings.position_embedding.weight": ((vision.integer("image_size") // patch) ** 2, width),
        **_norm(f"{tower}post_layernorm", width),
    }
    for layer in range(vision.integer("num_hidden_layers")):
        block = f"{tower}encoder.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "projection_layer"):
            shapes |= _linear(f"{block}self_attn.{name}", width, width)
        shapes |= _norm(f"{block}layer_norm1", width) | _norm(f"{block}layer_norm2", width)
        shapes |= _linear(f"{block}mlp.fc1", width, mlp) | _linear(f"{block}mlp.fc2", mlp, width)
    sizes = _VQSizes(
        base=vq.integer("base_channels"),
        multipliers=tuple(vq.integer_list("channel_multiplier")),
        num_res_blocks=vq.integer("num_res_blocks"),
        z_channels=vq.integer("latent_channels"),
        code_dim=vq.integer("embed_dim"),
        num_codes=vq.integer("num_embeddings"),
    )
    return {
        **shapes,
        **_hf_aligner("model.aligner.", width, vision.integer("projection_dim"), vision.integer("depth")),
        **_vq("model.vqmodel.", sizes, _HF_WORDS),
        "model.generation_embeddings.weight": (sizes.num_codes, sizes.code_dim),
        **_hf_aligner("model.generation_aligner.", sizes.code_dim, projected, vq.integer("num_hidden_layers")),
        **_linear("model.generation_head.proj_out", vq.integer("image_token_embed_dim"), projected),
        **_linear("model.generation_head.vision_head", projected, sizes.num_codes),
        **_llama("model.language_model.", "lm_head", top.object("text_config", LLAMA_DEFAULTS)),
    }


def _tower(prefix: str, params: Fields) -> Shapes:
    """janus/models/siglip_vit.py. It builds as many blocks as `select_layer` tells."""
    tower = TOWERS[params.choice("model_name", TOWERS)]
    width, mlp = tower.width, tower.mlp_dim
    shapes = {
        f"{prefix}pos_embed": (1, (params.integer("image_size") // tower.patch_size) ** 2, width),
        **_conv(f"{prefix}patch_embed.proj", 3, width, tower.patch_size),
        **_norm(f"{prefix}norm", width),
        f"{prefix}attn_pool.latent": (1, 1, width),
        **_linear(f"{prefix}attn_pool.q", width, width),
        **_linear(f"{prefix}attn_pool.kv", width, 2 * width),
        **_linear(f"{prefix}attn_pool.proj", width, width),
        **_norm(f"{prefix}attn_pool.norm", width),
        **_linear(f"{prefix}attn_pool.mlp.fc1", width, mlp),
        **_linear(f"{prefix}attn_pool.mlp.fc2", mlp, width),
    }
    for layer in range(selected_depth(params, tower.depth)):
        block = f"{prefix}blocks.{layer}."
        shapes |= _norm(f"{block}norm1", width) | _norm(f"{block}norm2", width)
        shapes |= _linear(f"{block}attn.qkv", width, 3 * width) | _linear(f"{block}attn.proj", width, width)
        shapes |= _linear(f"{block}mlp.fc1", width, mlp) | _linear(f"{block}mlp.fc2", mlp, width)
    return shapes


def _projector(prefix: str, params: Fields) -> Shapes:
    """The "mlp_gelu" of janus/models/projector.py: every second layer is an activation."""
    width = params.integer("n_embed")
    shapes = _linear(f"{prefix}layers.0", params.integer("input_dim"), width)
    for layer in range(1, params.integer("depth")):
        shapes |= _linear(f"{prefix}layers.{2 * layer}", width, width)
    return shapes


def _hf_aligner(prefix: str, inputs: int, width: int, depth: int) -> Shapes:
    shapes = _linear(f"{prefix}fc1", inputs, width)
    for layer in range(depth - 1):
        shapes |= _linear(f"{prefix}hidden_layers.{layer}", width, width)
    return shapes


def _llama(prefix: str, head: str, fields: Fields) -> Shapes:
    """transformers' LlamaForCausalLM."""
    width, mlp, vocab = (fields.integer(name) for name in ("hidden_size", "intermediate_size", "vocab_size"))
    heads = fields.integer("num_attention_heads")
    fields = fields.filled({"num_key_value_heads": heads, "head_dim": width // heads})
    head_dim, kv_heads = fields.integer("head_dim"), fields.integer("num_key_value_heads")
    shapes = {f"{prefix}embed_tokens.weight": (vocab, width), f"{prefix}norm.weight": (width,)}
    for layer in range(fields.integer("num_hidden_layers")):
        block = f"{prefix}layers.{layer}."
        shapes |= {f"{block}{name}.weight": (width,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {
            f"{block}self_attn.q_proj.weight": (heads * head_dim, width),
            f"{block}self_attn.k_proj.weight": (kv_heads * head_dim, width),
            f"{block}self_attn.v_proj.weight": (kv_heads * head_dim, width),
            f"{block}self_attn.o_proj.weight": (width, heads * head_dim),
            f"{block}mlp.gate_proj.weight": (mlp, width),
            f"{block}mlp.up_proj.weight": (mlp, width),
            f"{block}mlp.down_proj.weight": (width, mlp),
        }
    return shapes | {f"{head}.weight": (vocab, width)}


class _VQSizes(NamedTuple):
    base: int
    multipliers: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    code_dim: int
    num_codes: int


class _VQWords(NamedTuple):
    """How a code names the modules of the image tokenizer."""

    down: str
    up: str
    block: str
    middle: tuple[str, str, str]


_VQ_16 = _VQSizes(128, (1, 1, 2, 2, 4), 2, 256, 8, 16384)  # janus/models/vq_model.py
_ORIGINAL_WORDS = _VQWords("conv_blocks", "conv_blocks", "res", ("mid.0", "mid.1", "mid.2"))
_HF_WORDS = _VQWords("down", "up", "block", ("mid.block_1", "mid.attn_1", "mid.block_2"))


def _vq(prefix: str, sizes: _VQSizes, words: _VQWords) -> Shapes:
    levels = [sizes.base * multiplier for multiplier in sizes.multipliers]
    encoder, decoder, depth = f"{prefix}encoder.", f"{prefix}decoder.", len(levels)
    shapes = _conv(f"{encoder}conv_in", 3, sizes.base, 3)
    channels = sizes.base
    for i, width in enumerate(levels):
        level = f"{encoder}{words.down}.{i}."
        shapes |= _vq_blocks(level, words, channels, width, sizes.num_res_blocks, attends=i == depth - 1)
        if i < depth - 1:
            shapes |= _conv(f"{level}downsample.conv", width, width, 3)
        channels = width
    shapes |= _vq_middle(encoder, words, channels)
    shapes |= _norm(f"{encoder}norm_out", channels) | _conv(f"{encoder}conv_out", channels, sizes.z_channels, 3)
    shapes |= _conv(f"{decoder}conv_in", sizes.z_channels, channels, 3) | _vq_middle(decoder, words, channels)
    for i, width in enumerate(reversed(levels)):
        level = f"{decoder}{words.up}.{i}."
        shapes |= _vq_blocks(level, words, channels, width, sizes.num_res_blocks + 1, attends=i == 0)
        if i < depth - 1:
            shapes |= _conv(f"{level}upsample.conv", width, width, 3)
        channels = width
    return {
        **shapes,
        **_norm(f"{decoder}norm_out", channels),
        **_conv(f"{decoder}conv_out", channels, 3, 3),
        f"{prefix}quantize.embedding.weight": (sizes.num_codes, sizes.code_dim),
        **_conv(f"{prefix}quant_conv", sizes.z_channels, sizes.code_dim, 1),
        **_conv(f"{prefix}post_quant_conv", sizes.code_dim, sizes.z_channels, 1),
    }


def _vq_blocks(level: str, words: _VQWords, inputs: int, width: int, count: int, attends: bool) -> Shapes:
    shapes: Shapes = {}
    for j in range(count):
        shapes |= _vq_block(f"{level}{words.block}.{j}.", inputs if j == 0 else width, width)
        if attends:
            shapes |= _vq_attention(f"{level}attn.{j}.", width)
    return shapes


def _vq_middle(side: str, words: _VQWords, width: int) -> Shapes:
    first, attention, second = words.middle
    return {
        **_vq_block(f"{side}{first}.", width, width),
        **_vq_attention(f"{side}{attention}.", width),
        **_vq_block(f"{side}{second}.", width, width),
    }


def _vq_block(block: str, inputs: int, width: int) -> Shapes:
    return {
        **_norm(f"{block}norm1", inputs),
        **_conv(f"{block}conv1", inputs, width, 3),
        **_norm(f"{block}norm2", width),
        **_conv(f"{block}conv2", width, width, 3),
        **(_conv(f"{block}nin_shortcut", inputs, width, 1) if inputs != width else {}),
    }


def _vq_attention(block: str, width: int) -> Shapes:
    shapes = _norm(f"{block}norm", width)
    for name in ("q", "k", "v", "proj_out"):
        shapes |= _conv(f"{block}{name}", width, width, 1)
    return shapes


def _uvit_encoder(prefix: str, params: Fields) -> Shapes:
    """ShallowUViTEncoder of janus/janusflow/models/uvit.py."""
    (width,), time = params.integer_list("block_out_channels"), params.integer("hidden_size")
    return {
        **_linear(f"{prefix}time_embed.linear_1", width, time),
        **_linear(f"{prefix}time_embed.linear_2", time, time),
        **_conv(f"{prefix}in_conv", params.integer("input_channels"), width, params.integer("kernel_size")),
        **_convnext(prefix, width, time, params.integer("layers_in_middle")),
    }


def _uvit_decoder(prefix: str, params: Fields) -> Shapes:
    """ShallowUViTDecoder. The long skip doubles the channels of its blocks."""
    (width,), upsampling = params.integer_list("block_out_channels"), 2 ** params.integer("upsamples")
    inputs, outputs = params.integer("in_channels"), params.integer("out_channels") * upsampling**2
    return {
        f"{prefix}input_norm.weight": (inputs,),
        **_convnext(prefix, inputs + width, params.integer("hidden_size"), params.integer("layers_in_middle")),
        f"{prefix}out_convs.0.norm.weight": (inputs + width,),
        **_conv(f"{prefix}out_convs.0.unpatch_conv", inputs + width, outputs, 1),
    }


def _convnext(prefix: str, width: int, time: int, depth: int) -> Shapes:
    shapes: Shapes = {}
    for i in range(depth):
        block = f"{prefix}mid_block.res_blocks.{i}."
        shapes |= _conv(f"{block}depthwise", 1, width, 7) | {f"{block}norm.weight": (width,)}
        shapes |= _linear(f"{block}channelwise_linear_1", width, 4 * width)
        shapes |= {f"{block}channelwise_norm.{name}": (1, 1, 1, 4 * width) for name in ("weight", "bias")}
        shapes |= _linear(f"{block}channelwise_linear_2", 4 * width, width)
        shapes |= _linear(f"{block}cond_embeds_mapper", time, 2 * width)
    return shapes


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _conv(name: str, inputs: int, outputs: int, size: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, size, size), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
