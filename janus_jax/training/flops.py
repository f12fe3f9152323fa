"""Floating point operations that a training step needs, whatever the program executes: the numerator of MFU.

Each weight costs two operations per token in the forward pass, two more where its gradient is wanted, and two more
where a gradient passes through to its input. Attention counts the visible half of the causal scores. Recomputation,
masks, norms and the optimizer do not count.
"""

import math
from collections.abc import Set
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from janus_jax.models.config import (
    AnyConfig,
    CodeModelConfig,
    FamilyConfig,
    ImageTokenizerConfig,
    JanusFlowConfig,
    JanusVariantConfig,
    LlamaConfig,
    LPIPSConfig,
    ModelConfig,
    PatchDiscriminatorConfig,
    SemanticDecoderConfig,
    SemanticTokenizerConfig,
    SiglipConfig,
)
from janus_jax.models.encoders import encoder_name
from janus_jax.models.params import abstract_params, bind, build, flatten

FORWARD, WEIGHT_GRADIENT, INPUT_GRADIENT = 1, 1, 1  # passes with two operations per weight and token each
# Modules that make inputs of the LLM. If one of them is trained, a gradient passes through the LLM.
_ADAPTERS = {"aligner", "begin_of_understanding", "gen_aligner", "gen_embed", "gen_encoder"}


def step_flops(
    config: ModelConfig,
    trained: set[str],
    tasks: tuple[str, ...],
    rows: int,
    length: int,
    und_slots: int,
    gen_slots: int,
    adapted: Set[str] = frozenset(),
) -> float | None:
    """Operations of one step; JanusFlow's VAE is not counted.

    None for image tokenizers, which `image_tokenizer_flops` counts.

    Args:
        trained: names of the top-level modules with trained parameters.
        tasks: tasks that the run has at any time.
        rows: rows of a step, on all devices together.
        length: tokens per row.
        und_slots: understanding images per row. Every slot is encoded, filled or not.
        gen_slots: generation images per row. JanusFlow computes every slot, filled or not.
        adapted: names of the top-level modules with adapters. A gradient passes through them. The products of adapters,
            about a hundredth of the others, are not counted.
    """
    if not isinstance(config, FamilyConfig):
        return None
    tokens = rows * length
    generates, understands = "generate" in tasks, "understand" in tasks
    reached = trained | adapted  # modules that a gradient reaches
    adapters = _ADAPTERS & reached if understands or generates else set()
    through_llm = bool(adapters) or "siglip" in reached or "llm" in reached
    passes = FORWARD + WEIGHT_GRADIENT * ("llm" in trained) + INPUT_GRADIENT * through_llm
    total = 2.0 * passes * tokens * layer_weights(config.llama) * config.llama.depth
    # Attention has two products, scores and context. The backward pass has four, all gradients that pass through.
    total += 2.0 * (FORWARD + 2 * through_llm) * rows * _causal_products(config.llama, length)
    text_passes = FORWARD + WEIGHT_GRADIENT * ("llm" in trained) + INPUT_GRADIENT * through_llm
    total += 2.0 * text_passes * tokens * config.llama.width * config.llama.vocab_size
    if generates and isinstance(config, JanusFlowConfig):
        images, is_reached = rows * gen_slots, "gen_decoder" in reached
        trains = "gen_decoder" in trained
        generation_passes = FORWARD + WEIGHT_GRADIENT * trains + INPUT_GRADIENT * (is_reached or through_llm)
        total += 2.0 * generation_passes * images * _generation_products(config)
        if config.alignment:  # needs SigLIP's features of the generation images, which get no gradient
            total += 2.0 * images * _encoder_products(config.siglip)
    elif generates and not isinstance(config, JanusFlowConfig):
        head_passes = FORWARD + WEIGHT_GRADIENT * ("gen_head" in trained) + INPUT_GRADIENT * through_llm
        total += 2.0 * head_passes * tokens * _image_head_weights(config)
    encoder = config.encoder if isinstance(config, JanusVariantConfig) else config.siglip
    if understands and encoder:
        name = encoder_name(encoder)
        encoder_passes = FORWARD + WEIGHT_GRADIENT * (name in trained) + INPUT_GRADIENT * (name in reached)
        total += 2.0 * encoder_passes * rows * und_slots * _encoder_products(encoder)
    if isinstance(config, JanusVariantConfig) and config.semantic:
        # The decoder runs over as many images as a row has room for, generated, and over every slot that is read.
        images = generates * (length // config.image_tokens) + (understands and config.reads_codes) * und_slots
        semantic_passes = FORWARD + (WEIGHT_GRADIENT + INPUT_GRADIENT) * ("semantic" in trained)
        total += 2.0 * semantic_passes * rows * images * _semantic_products(config.semantic, config.image_tokens)
    return total


def image_tokenizer_flops(
    tokenizer: ImageTokenizerConfig,
    images: int,
    size: int,
    discriminator: PatchDiscriminatorConfig | None,
    lpips: LPIPSConfig | None,
) -> float:
    """Operations of one step that trains a whole image tokenizer.

    The discriminator runs on images and on reconstructions. Both give a gradient to its weights, and the second one
    also to the tokenizer. LPIPS and a teacher have no gradient of weights, and the second has none at all.

    Args:
        images: images of a step, on all devices together.
        size: side of an image in pixels.
        discriminator, lpips: None where the loss does not have them.
    """
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    products: float = (FORWARD + WEIGHT_GRADIENT + INPUT_GRADIENT) * forward_products(tokenizer, image)
    if discriminator is not None:
        generator = FORWARD + WEIGHT_GRADIENT + 2 * INPUT_GRADIENT
        products += (generator + FORWARD + WEIGHT_GRADIENT + INPUT_GRADIENT) * forward_products(discriminator, image)
    if lpips is not None:  # `forward_products` counts both images
        products += (FORWARD + INPUT_GRADIENT / 2) * forward_products(lpips, image, image)
    if isinstance(tokenizer, SemanticTokenizerConfig):
        products += FORWARD * forward_products(tokenizer.teacher, image)
    return 2.0 * images * products


def forward_products(config: AnyConfig, *inputs: jax.ShapeDtypeStruct) -> int:
    """Multiply-adds of the convolutions and matrix products of one forward pass of a network."""
    model = build(config)
    return _products(jax.make_jaxpr(lambda params, *x: bind(model, params)(*x))(abstract_params(config), *inputs).jaxpr)


def _products(jaxpr: Any) -> int:
    """Multiply-adds of a program, with those of the programs inside it."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            kernel, features = equation.invars[1].aval.shape, equation.outvars[0].aval.shape[-1]
            total += equation.outvars[0].aval.size * math.prod(kernel) // features
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += repeats * sum(_products(inner) for inner in jaxprs_in_params(equation.params))
    return total


def layer_weights(llama: LlamaConfig) -> int:
    """Number of weights in the matrix products of one layer."""
    query, key_value = llama.num_heads * llama.head_dim, llama.num_kv_heads * llama.head_dim
    return llama.width * (2 * query + 2 * key_value + 3 * llama.mlp_dim)


def _causal_products(llama: LlamaConfig, length: int) -> float:
    """Multiply-adds of scores and context for one row, in all layers."""
    return llama.depth * 2 * llama.num_heads * llama.head_dim * length * length / 2


def _image_head_weights(config: CodeModelConfig) -> int:
    assert config.vq is not None
    return config.image_head_width * (config.llama.width + config.vq.num_codes)


def _generation_products(config: JanusFlowConfig) -> int:
    """Multiply-adds of one generated image outside of the LLM and SigLIP.

    A weight is used once per token; those that only read the time embedding are used once per image.
    """
    total = 0
    for path, leaf in flatten(abstract_params(config)).items():
        if path.startswith(("gen_", "alignment_head/")) and path.endswith("/kernel"):
            reads_time = "/time_embed/" in path or "/film/" in path
            total += math.prod(leaf.shape) * (1 if reads_time else config.uvit.num_tokens)
    return total


def _semantic_products(decoder: SemanticDecoderConfig, tokens: int) -> float:
    """Multiply-adds of the causal transformer behind the codes for one image."""
    weights = decoder.width * (4 * decoder.width + 2 * decoder.mlp_dim)
    return decoder.depth * (tokens * weights + tokens * tokens * decoder.width)


def _encoder_products(siglip: SiglipConfig) -> float:
    """Multiply-adds of SigLIP for one image."""
    tokens = siglip.num_tokens
    weights = siglip.width * (4 * siglip.width + 2 * siglip.mlp_dim)
    return siglip.depth * (tokens * weights + 2 * tokens * tokens * siglip.width)
