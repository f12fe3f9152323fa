"""Architectures: frozen dataclasses without defaults, and the presets of the released models.

A constant of a checkpoint (theta, eps, vocabulary) has no default on purpose: a missing one is an error, not a
silent wrong guess. How a model is *run* (dtype, remat, scan) is `Execution`, which never changes its function.
Sources: Janus, Table 1; Janus-Pro, Table 1; JanusFlow, sections 3.2 and 4.1; the released config.json files.
"""

import dataclasses
from typing import Any, Protocol

import jax.numpy as jnp
from jax.typing import DTypeLike


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """How to run a model: the same parameters and the same function, other cost."""

    dtype: DTypeLike = jnp.float32  # compute dtype; norms, softmax, RoPE angles and losses stay float32
    scan_layers: bool = True  # False: layers unrolled over unstacked parameters (`models.scan_layers.unstack_layers`)
    unroll_scan: bool = False  # write the scan's steps out: faster on a CPU, which copies what a scan slices
    remat: str = "none"  # a key of `models.scan_layers.REMAT_POLICIES`
    attention: str = "xla"  # of packed rows: a key of `ops.attention.BACKENDS`
    few_rows: bool = False  # decode with the products of `ops.cpu.gemv`: faster on a CPU
    fusion_barriers: bool = False  # keep XLA:TPU from slowing products down (`models.layers.apart`)
    weights: "Weights | None" = None  # how a device gets whole weights from its shards; None: it has them


class Weights(Protocol):
    """Turns the local shards of a subtree of parameters into whole arrays (`sharding.GatheredWeights`)."""

    def __call__(self, path: tuple[str, ...], shards: dict[str, Any]) -> dict[str, Any]: ...

    def outside_stacks(self, shards: dict[str, Any]) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    vocab_size: int
    width: int
    depth: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    max_length: int  # longest sequence the model may see
    rope_theta: float
    norm_eps: float
    init_std: float  # of all matrices when trained from scratch

    def __post_init__(self):
        _require_multiple("num_heads", self.num_heads, "num_kv_heads", self.num_kv_heads)
        _require_multiple("head_dim", self.head_dim, "2 (RoPE rotates pairs)", 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiglipConfig:
    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    norm_eps: float

    def __post_init__(self):
        _require_multiple("image_size", self.image_size, "patch_size", self.patch_size)
        _require_multiple("width", self.width, "num_heads", self.num_heads)

    @property
    def num_tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQConfig:
    image_size: int  # the size the training data has; the network itself is fully convolutional
    base_channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int  # per level of the encoder; the decoder has one more
    z_channels: int
    code_dim: int
    num_codes: int
    norm_groups: int
    norm_eps: float
    commitment: float  # weight of the commitment loss

    def __post_init__(self):
        _require_multiple("base_channels", self.base_channels, "norm_groups", self.norm_groups)
        _require_multiple("image_size", self.image_size, "the downsampling factor", self.downsampling)

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def grid(self) -> int:
        return self.image_size // self.downsampling

    @property
    def num_tokens(self) -> int:
        return self.grid**2


@dataclasses.dataclass(frozen=True, kw_only=True)
class JanusConfig:
    llama: LlamaConfig
    siglip: SiglipConfig
    vq: VQConfig
    aligner_depth: int  # linear layers of the understanding adaptor
    gen_aligner_depth: int  # linear layers of the generation adaptor
    image_head_width: int  # hidden width of the image head (`image_token_embed` of the released config)
    prompt_style: str  # a key of `data.prompts.STYLES`

    @property
    def image_tokens(self) -> int:
        """Tokens per generated image."""
        return self.vq.num_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """A variational autoencoder of latent diffusion: the SDXL VAE, or a smaller one."""

    base_channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int  # per level of the encoder; the decoder has one more
    latent_channels: int
    norm_groups: int
    norm_eps: float
    scaling_factor: float  # latents times this have about unit variance

    def __post_init__(self):
        _require_multiple("base_channels", self.base_channels, "norm_groups", self.norm_groups)

    @property
    def z_channels(self) -> int:
        """What the encoder ends with: mean and log-variance."""
        return 2 * self.latent_channels

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.channel_multipliers) - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UViTConfig:
    """The generation encoder and decoder of JanusFlow."""

    latent_size: int  # rows and columns of the latents; the networks themselves are fully convolutional
    latent_channels: int
    patch_size: int  # latents per token, in each direction
    width: int  # of a token; the decoder's blocks have twice as many channels, because of the long skip
    time_width: int  # of the time embedding, which is also a token of the LLM
    encoder_depth: int  # ConvNeXt blocks
    decoder_depth: int
    norm_eps: float

    def __post_init__(self):
        _require_multiple("latent_size", self.latent_size, "patch_size", self.patch_size)
        _require_multiple("width", self.width, "2 (cosines and sines)", 2)

    @property
    def grid(self) -> int:
        return self.latent_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        return self.grid**2


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """The projector of JanusFlow's alignment loss, which only training uses; released models have none."""

    layer: int  # after how many blocks of the LLM its features are taken
    width: int  # of the hidden layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class JanusFlowConfig:
    """The VAE is not part of it: it is trained apart and never changes."""

    llama: LlamaConfig
    siglip: SiglipConfig
    uvit: UViTConfig
    prompt_style: str  # a key of `data.prompts.STYLES`
    alignment: AlignmentConfig | None = None

    def __post_init__(self):
        if self.alignment and not 0 < self.alignment.layer < self.llama.depth:
            raise ValueError(f"alignment.layer={self.alignment.layer} of {self.llama.depth} blocks")
        if self.uvit.time_width != self.llama.width:
            raise ValueError(f"uvit.time_width={self.uvit.time_width} must be llama.width={self.llama.width}")

    @property
    def image_tokens(self) -> int:
        """Positions of a generated image: the time, then its latents."""
        return 1 + self.uvit.num_tokens


FamilyConfig = JanusConfig | JanusFlowConfig  # whole models: they answer and draw
ModelConfig = JanusConfig | JanusFlowConfig | VQConfig | VAEConfig


def _require_multiple(name: str, value: int, of_name: str, of: int) -> None:
    if of <= 0 or value <= 0 or value % of:
        raise ValueError(f"{name}={value} must be a positive multiple of {of_name}={of}")


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

# Small enough for a laptop CPU, the same code: 32 px images, 4 x 4 tokens each.
VQ_TINY = VQConfig(
    image_size=32,
    base_channels=8,
    channel_multipliers=(1, 2, 4, 8),
    num_res_blocks=1,
    z_channels=32,
    code_dim=4,  # with 8, as in VQ-16, a run this short uses even fewer of the codes
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

VAE_TINY = VAEConfig(  # 32 px images, 8 x 8 latents
    base_channels=16,
    channel_multipliers=(1, 2, 2),
    num_res_blocks=1,
    latent_channels=4,
    norm_groups=8,
    norm_eps=1e-6,
    scaling_factor=1.0,
)

JANUSFLOW_TINY = JanusFlowConfig(  # no VAE: its latents are the pixels of 16 x 16 images, 4 x 4 tokens of 4 x 4 each
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

PRESETS: dict[str, ModelConfig] = {
    "janus_1p3b": JANUS_1P3B,
    "janus_pro_1b": JANUS_PRO_1B,
    "janus_pro_7b": JANUS_PRO_7B,
    "janus_pro_tiny": JANUS_PRO_TINY,
    "janusflow_1p3b": JANUSFLOW_1P3B,
    "janusflow_tiny": JANUSFLOW_TINY,
    "sdxl_vae": SDXL_VAE,
    "vae_tiny": VAE_TINY,
    "vq16": VQ_16,
    "vq_tiny": VQ_TINY,
}
