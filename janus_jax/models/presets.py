"""The architectures of the released models, and small ones for laptops and tests.

Sources: Janus, Table 1; Janus-Pro, Table 1; JanusFlow, sections 3.2 and 4.1; the released config.json files.
"""

import dataclasses

from janus_jax.models.config import (
    JanusConfig,
    JanusFlowConfig,
    JanusVariantConfig,
    LlamaConfig,
    LPIPSConfig,
    ModelConfig,
    SemanticDecoderConfig,
    SemanticTokenizerConfig,
    SiglipConfig,
    UViTConfig,
    VAEConfig,
    VQConfig,
)

_SIGLIP_LARGE_16_384 = SiglipConfig(
    image_size=384, patch_size=16, width=1024, depth=24, num_heads=16, mlp_dim=4096, norm_eps=1e-6
)

VQ_16 = VQConfig(
    image_size=384,
    base_channels=128,
    channel_multipliers=(1, 1, 2, 2, 4),
    num_res_blocks=2,
    z_channels=256,
    code_dim=8,
    num_codes=16384,
    norm_groups=32,
    norm_eps=1e-6,
    commitment=0.25,
)

# The paper gives depth, heads and width (appendix A), and the teacher; a resolution and other sizes are not stated.
SEMANTIC_VQ_16 = SemanticTokenizerConfig(
    vq=VQ_16,
    decoder=SemanticDecoderConfig(width=768, depth=12, num_heads=12, mlp_dim=3072, norm_eps=1e-6),
    teacher=_SIGLIP_LARGE_16_384,
)

_DEEPSEEK_LLM_1P3B = LlamaConfig(
    vocab_size=102400,
    width=2048,
    depth=24,
    num_heads=16,
    num_kv_heads=16,
    head_dim=128,
    mlp_dim=5632,
    max_length=16384,
    rope_theta=10000.0,
    norm_eps=1e-6,
    init_std=0.02,
)

JANUS_1P3B = JanusConfig(
    llama=_DEEPSEEK_LLM_1P3B,
    siglip=_SIGLIP_LARGE_16_384,
    vq=VQ_16,
    aligner_depth=2,
    gen_aligner_depth=2,
    image_head_width=2048,
    prompt_style="janus",
)

JANUS_PRO_1B = dataclasses.replace(JANUS_1P3B, prompt_style="janus_pro")

JANUS_PRO_7B = dataclasses.replace(
    JANUS_PRO_1B,
    llama=dataclasses.replace(_DEEPSEEK_LLM_1P3B, width=4096, depth=30, num_heads=32, num_kv_heads=32, mlp_dim=11008),
    image_head_width=4096,
)

SDXL_VAE = VAEConfig(
    base_channels=128,
    channel_multipliers=(1, 2, 4, 4),
    num_res_blocks=2,
    latent_channels=4,
    norm_groups=32,
    norm_eps=1e-6,
    scaling_factor=0.13025,
)

JANUSFLOW_1P3B = JanusFlowConfig(
    llama=_DEEPSEEK_LLM_1P3B,
    siglip=_SIGLIP_LARGE_16_384,
    uvit=UViTConfig(
        latent_size=48,
        latent_channels=4,
        patch_size=2,
        width=768,
        time_width=2048,
        encoder_depth=2,
        decoder_depth=2,
        norm_eps=1e-6,
    ),
    prompt_style="janus",
)

LPIPS_VGG = LPIPSConfig(widths=(64, 128, 256, 512, 512))
LPIPS, TEACHER = "lpips", "teacher"  # names of the perceptual network and of a SigLIP in a training state
# Networks that only a loss uses and that no architecture names. They come from files of others, and are never trained.
LOSS_NETWORKS: dict[str, LPIPSConfig] = {LPIPS: LPIPS_VGG}

# Small models for a laptop's CPU, which run the same code: images of 32 px with 4 x 4 tokens each.
VQ_TINY = VQConfig(
    image_size=32,
    base_channels=8,
    channel_multipliers=(1, 2, 4, 8),
    num_res_blocks=1,
    z_channels=32,
    code_dim=4,  # with 8, as in VQ-16, so short a run uses even fewer of the codes
    num_codes=128,
    norm_groups=8,
    norm_eps=1e-6,
    commitment=0.25,
)

JANUS_PRO_TINY = JanusConfig(
    llama=LlamaConfig(
        vocab_size=512,
        width=96,
        depth=3,
        num_heads=2,
        num_kv_heads=2,
        head_dim=48,
        mlp_dim=256,
        max_length=1024,
        rope_theta=10000.0,
        norm_eps=1e-6,
        init_std=0.1,  # about 1 / sqrt(width); 0.02 learns slowly at this width
    ),
    siglip=SiglipConfig(image_size=32, patch_size=8, width=64, depth=3, num_heads=4, mlp_dim=256, norm_eps=1e-6),
    vq=VQ_TINY,
    aligner_depth=2,
    gen_aligner_depth=2,
    image_head_width=96,
    prompt_style="janus_pro_tiny",
)

# The same for scans of 8 x 8 pixels, which 16 px show as well: the quickstart's. An image has 4 x 4 codes, and 2 x 2
# patches to understand: with 4 x 4, training needs several times as many steps until it begins to tell digits apart.
VQ_DIGITS = dataclasses.replace(VQ_TINY, image_size=16, channel_multipliers=(1, 2, 4))
JANUS_PRO_DIGITS = dataclasses.replace(
    JANUS_PRO_TINY, siglip=dataclasses.replace(JANUS_PRO_TINY.siglip, image_size=16, patch_size=8), vq=VQ_DIGITS
)
# The same with 12 x 12 codes in images of 48 px, to see how codes depend on their neighbours.
VQ_DIGITS_LARGE = dataclasses.replace(VQ_DIGITS, image_size=48)
JANUS_PRO_DIGITS_LARGE = dataclasses.replace(JANUS_PRO_DIGITS, vq=VQ_DIGITS_LARGE)

SEMANTIC_VQ_TINY = SemanticTokenizerConfig(
    vq=VQ_TINY,
    decoder=SemanticDecoderConfig(width=64, depth=2, num_heads=2, mlp_dim=256, norm_eps=1e-6),
    teacher=JANUS_PRO_TINY.siglip,
)


def ablation_arms(janus: JanusConfig, semantic: SemanticDecoderConfig) -> dict[str, JanusConfig | JanusVariantConfig]:
    """The models that the paper's ablation compares with Janus (section 4.3, Table 5), and Janus itself as D.

    A and B have one image tokenizer for both tasks, C has that of B. C and E understand only, F generates only.
    """
    full = JanusVariantConfig(
        encoder=None,
        semantic=None,
        understands=True,
        generates=True,
        shared_aligner=True,
        **{field.name: getattr(janus, field.name) for field in dataclasses.fields(janus) if field.name != "siglip"},
    )
    return {
        "a": full,
        "b": dataclasses.replace(full, semantic=semantic),
        "c": dataclasses.replace(full, semantic=semantic, generates=False),
        "d": janus,
        "e": dataclasses.replace(full, encoder=janus.siglip, vq=None, generates=False),
        "f": dataclasses.replace(full, understands=False),
    }


# Unlike the tiny one it can be written in the layout of Hugging Face, which fixes 32 normalisation groups of the image
# tokenizer. It is for rehearsals with random weights, so it has the system prompt of the released models.
JANUS_PRO_MINI = dataclasses.replace(
    JANUS_PRO_TINY,
    llama=dataclasses.replace(JANUS_PRO_TINY.llama, vocab_size=384),  # the tokenizer for rehearsals has 359
    vq=dataclasses.replace(VQ_TINY, base_channels=32, channel_multipliers=(1, 1, 1, 1), norm_groups=32),
    prompt_style="janus_pro",
)

VAE_TINY = VAEConfig(  # 8 x 8 latents for images of 32 px
    base_channels=16,
    channel_multipliers=(1, 2, 2),
    num_res_blocks=1,
    latent_channels=4,
    norm_groups=8,
    norm_eps=1e-6,
    scaling_factor=1.0,
)

# It has no VAE: its latents are the pixels of 16 x 16 images, cut into 4 x 4 tokens of 4 x 4 pixels.
JANUSFLOW_TINY = JanusFlowConfig(
    llama=JANUS_PRO_TINY.llama,
    siglip=dataclasses.replace(JANUS_PRO_TINY.siglip, image_size=16, patch_size=4),
    uvit=UViTConfig(
        latent_size=16,
        latent_channels=3,
        patch_size=4,
        width=64,
        time_width=96,
        encoder_depth=2,
        decoder_depth=2,
        norm_eps=1e-6,
    ),
    prompt_style="janus_pro_tiny",
)

# The quickstart's, with 2 x 2 patches to understand as JANUS_PRO_DIGITS, and for the same reason.
JANUSFLOW_DIGITS = dataclasses.replace(JANUSFLOW_TINY, siglip=JANUS_PRO_DIGITS.siglip)

PRESETS: dict[str, ModelConfig] = {
    "janus_1p3b": JANUS_1P3B,
    "janus_pro_1b": JANUS_PRO_1B,
    "janus_pro_7b": JANUS_PRO_7B,
    "janus_pro_digits": JANUS_PRO_DIGITS,
    "janus_pro_digits_large": JANUS_PRO_DIGITS_LARGE,
    "janus_pro_mini": JANUS_PRO_MINI,
    "janus_pro_tiny": JANUS_PRO_TINY,
    **{f"janus_1p3b_arm_{arm}": config for arm, config in ablation_arms(JANUS_1P3B, SEMANTIC_VQ_16.decoder).items()},
    **{
        f"janus_pro_tiny_arm_{arm}": config
        for arm, config in ablation_arms(JANUS_PRO_TINY, SEMANTIC_VQ_TINY.decoder).items()
    },
    "janusflow_1p3b": JANUSFLOW_1P3B,
    "janusflow_digits": JANUSFLOW_DIGITS,
    "janusflow_tiny": JANUSFLOW_TINY,
    "sdxl_vae": SDXL_VAE,
    "semantic_vq16": SEMANTIC_VQ_16,
    "semantic_vq_tiny": SEMANTIC_VQ_TINY,
    "vae_tiny": VAE_TINY,
    "vq16": VQ_16,
    "vq_digits": VQ_DIGITS,
    "vq_digits_large": VQ_DIGITS_LARGE,
    "vq_tiny": VQ_TINY,
}
