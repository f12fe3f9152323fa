"""Floating point operations that a training step needs, whatever the program executes: the numerator of MFU.

Two per weight and token forward; two more where the gradient of the weight is wanted, and two where a gradient passes
through. Attention counts the visible half of causal scores. Recomputation, masks, norms and optimizer count nothing.
"""

import math

from janus_jax.models.config import FamilyConfig, JanusConfig, JanusFlowConfig, LlamaConfig, ModelConfig, SiglipConfig
from janus_jax.models.params import abstract_params, flatten

FORWARD, WEIGHT_GRADIENT, INPUT_GRADIENT = 1, 1, 1  # passes of two operations each
# What makes the inputs of the LLM: where any of it is trained, a gradient passes through the LLM.
_ADAPTERS = {"aligner", "begin_of_understanding", "gen_aligner", "gen_embed", "gen_encoder"}


def step_flops(
    config: ModelConfig,
    trained: set[str],
    tasks: tuple[str, ...],
    rows: int,
    length: int,
    und_slots: int,
    gen_slots: int,
) -> float | None:
    """Of one step over `rows` rows; None for image tokenizers, which are not counted. The VAE is not counted either.

    Args:
        trained: top-level modules with trained parameters.
        tasks: which there are at any time.
        length: tokens per row.
        und_slots: understanding images per row; every slot is encoded, filled or not.
        gen_slots: generation images per row; JanusFlow computes every slot.
    """
    if not isinstance(config, FamilyConfig):
        return None
    tokens = rows * length
    draws, sees = "generate" in tasks, "understand" in tasks
    adapters = _ADAPTERS & trained if sees or draws else set()
    through_llm = bool(adapters) or "siglip" in trained or "llm" in trained
    passes = FORWARD + WEIGHT_GRADIENT * ("llm" in trained) + INPUT_GRADIENT * through_llm
    total = 2.0 * passes * tokens * layer_weights(config.llama) * config.llama.depth
    # Two products of scores; backward four, all of them gradients that pass through.
    total += 2.0 * (FORWARD + 2 * through_llm) * rows * _causal_products(config.llama, length)
    text_passes = FORWARD + WEIGHT_GRADIENT * ("llm" in trained) + INPUT_GRADIENT * through_llm
    total += 2.0 * text_passes * tokens * config.llama.width * config.llama.vocab_size
    if draws and isinstance(config, JanusFlowConfig):
        images, trains = rows * gen_slots, "gen_decoder" in trained
        drawing_passes = FORWARD + WEIGHT_GRADIENT * trains + INPUT_GRADIENT * (trains or through_llm)
        total += 2.0 * drawing_passes * images * _drawing_products(config)
        if config.alignment:  # with SigLIP's features of what is drawn, which get no gradient
            total += 2.0 * images * _encoder_products(config.siglip)
    elif draws and isinstance(config, JanusConfig):
        head_passes = FORWARD + WEIGHT_GRADIENT * ("gen_head" in trained) + INPUT_GRADIENT * through_llm
        total += 2.0 * head_passes * tokens * _image_head_weights(config)
    if sees:
        images = rows * und_slots
        encoder_passes = FORWARD + (WEIGHT_GRADIENT + INPUT_GRADIENT) * ("siglip" in trained)
        total += 2.0 * encoder_passes * images * _encoder_products(config.siglip)
    return total


def layer_weights(llama: LlamaConfig) -> int:
    """Weights of the matrix products of one layer."""
    query, key_value = llama.num_heads * llama.head_dim, llama.num_kv_heads * llama.head_dim
    return llama.width * (2 * query + 2 * key_value + 3 * llama.mlp_dim)


def _causal_products(llama: LlamaConfig, length: int) -> float:
    """Multiply-adds of q k^T and of its product with v for one row, over all layers."""
    return llama.depth * 2 * llama.num_heads * llama.head_dim * length * length / 2


def _image_head_weights(config: JanusConfig) -> int:
    return config.image_head_width * (config.llama.width + config.vq.num_codes)


def _drawing_products(config: JanusFlowConfig) -> int:
    """Multiply-adds of one image outside LLM and SigLIP: kernels run once per token, those of the time once."""
    total = 0
    for path, leaf in flatten(abstract_params(config)).items():
        if path.startswith(("gen_", "alignment_head/")) and path.endswith("/kernel"):
            of_time = "/time_embed/" in path or "/film/" in path
            total += math.prod(leaf.shape) * (1 if of_time else config.uvit.num_tokens)
    return total


def _encoder_products(siglip: SiglipConfig) -> float:
    """Multiply-adds of one image."""
    tokens = siglip.num_tokens
    weights = siglip.width * (4 * siglip.width + 2 * siglip.mlp_dim)
    return siglip.depth * (tokens * weights + 2 * tokens * tokens * siglip.width)
