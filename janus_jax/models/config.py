"""Architectures as frozen dataclasses without defaults.

A constant of a checkpoint (theta, eps, vocabulary) has no default on purpose: a missing one is an error, not a silent
wrong guess. How a model is *run* is `models.execution.Execution`; the released models are in `models.presets`.
"""

import dataclasses

from janus_jax.models.metric_config import ClipConfig, InceptionConfig, Mask2FormerConfig, require_multiple


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """A Llama language model."""

    vocab_size: int
    width: int
    depth: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    max_length: int  # longest sequence that the model may see
    rope_theta: float
    norm_eps: float
    init_std: float  # standard deviation of all fresh weight matrices

    def __post_init__(self):
        require_multiple("num_heads", self.num_heads, "num_kv_heads", self.num_kv_heads)
        require_multiple("head_dim", self.head_dim, "2 (RoPE rotates pairs)", 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiglipConfig:
    """A SigLIP vision transformer, the understanding encoder."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    norm_eps: float

    def __post_init__(self):
        require_multiple("image_size", self.image_size, "patch_size", self.patch_size)
        require_multiple("width", self.width, "num_heads", self.num_heads)

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        return self.grid**2

    @property
    def activation(self) -> str:
        """A key of `models.layers.ACTIVATIONS`, the same in every model of the family."""
        return "gelu"


EncoderConfig = SiglipConfig  # an encoder of understanding images: `models.encoders` has the modules


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQConfig:
    """An image tokenizer with a codebook (VQ-16 of LlamaGen)."""

    image_size: int  # size of the images in training; the network itself is fully convolutional
    base_channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int  # number per level of the encoder; the decoder has one more
    z_channels: int
    code_dim: int
    num_codes: int
    norm_groups: int
    norm_eps: float
    commitment: float  # factor of the commitment loss

    def __post_init__(self):
        require_multiple("base_channels", self.base_channels, "norm_groups", self.norm_groups)
        require_multiple("image_size", self.image_size, "the downsampling factor", self.downsampling)

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
class SemanticDecoderConfig:
    """The causal transformer that turns codes into semantic features (Janus, appendix A)."""

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    norm_eps: float

    def __post_init__(self):
        require_multiple("width", self.width, "num_heads", self.num_heads)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SemanticTokenizerConfig:
    """An image tokenizer whose codes are decoded to pixels and to the features of a SigLIP (Janus, appendix A).

    The SigLIP is the teacher of its training. It is not part of the model.
    """

    vq: VQConfig
    decoder: SemanticDecoderConfig
    teacher: SiglipConfig

    def __post_init__(self):
        if self.teacher.num_tokens != self.vq.num_tokens or self.teacher.image_size != self.vq.image_size:
            raise ValueError(
                f"teacher: {self.teacher.num_tokens} features of an image of {self.teacher.image_size} pixels, but vq "
                f"has {self.vq.num_tokens} codes of {self.vq.image_size} pixels: expected the same"
            )

    @property
    def image_size(self) -> int:
        return self.vq.image_size

    @property
    def downsampling(self) -> int:
        return self.vq.downsampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class JanusConfig:
    """Janus and Janus-Pro, which generate images as codes."""

    llama: LlamaConfig
    siglip: SiglipConfig
    vq: VQConfig
    aligner_depth: int  # number of linear layers of the understanding adaptor
    gen_aligner_depth: int  # number of linear layers of the generation adaptor
    image_head_width: int  # hidden width of the image head (`image_token_embed` of the released config)
    prompt_style: str  # a key of `data.prompts.STYLES`

    @property
    def understanding(self) -> SiglipConfig:
        """What gives an understanding image its size and its number of tokens."""
        return self.siglip

    @property
    def image_tokens(self) -> int:
        """Number of tokens of a generated image."""
        return self.vq.num_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class JanusVariantConfig:
    """Janus with its encoders and tasks as choices, for comparisons such as Table 5 of Janus.

    Understanding images are read by an encoder of their own, or as codes of the image tokenizer. The language model
    sees codes, read or generated, as vectors of a table or as features of a semantic decoder.
    """

    llama: LlamaConfig
    encoder: EncoderConfig | None  # of understanding images; None: they are read as codes
    vq: VQConfig | None  # image tokenizer; None: the model has no codes
    semantic: SemanticDecoderConfig | None  # embeds codes; None: a table does
    understands: bool  # whether it answers questions about images
    generates: bool  # whether it generates images
    shared_aligner: bool  # whether codes that were read pass the generation adaptor, too (paper: not stated)
    aligner_depth: int  # number of linear layers of the understanding adaptor
    gen_aligner_depth: int  # number of linear layers of the adaptor of codes
    image_head_width: int  # hidden width of the image head
    prompt_style: str  # a key of `data.prompts.STYLES`

    def __post_init__(self):
        if not (self.understands or self.generates):
            raise ValueError("understands=False and generates=False, expected at least one task")
        if (self.generates or self.semantic or not self.encoder) and self.vq is None:
            raise ValueError("vq is missing, expected an image tokenizer for a model that reads or generates codes")
        if self.encoder and not self.understands:
            raise ValueError("encoder is that of understanding images, but understands=False")

    @property
    def reads_codes(self) -> bool:
        """Whether understanding images are read as codes."""
        return self.understands and self.encoder is None

    @property
    def has_aligner(self) -> bool:
        """Whether understanding images have an adaptor of their own."""
        return self.understands and not (self.reads_codes and self.shared_aligner)

    @property
    def understanding(self) -> EncoderConfig | VQConfig:
        """What gives an understanding image its size and its number of tokens."""
        encoder = self.encoder or self.vq
        assert encoder is not None  # see __post_init__
        return encoder

    @property
    def image_tokens(self) -> int:
        """Number of tokens of a generated image; 0 for a model without codes."""
        return self.vq.num_tokens if self.vq else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """A variational autoencoder of latent diffusion: the SDXL VAE, or a smaller one."""

    base_channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int  # number per level of the encoder; the decoder has one more
    latent_channels: int
    norm_groups: int
    norm_eps: float
    scaling_factor: float  # factor that gives the latents about unit variance

    def __post_init__(self):
        require_multiple("base_channels", self.base_channels, "norm_groups", self.norm_groups)

    @property
    def z_channels(self) -> int:
        """Channels of the encoder's output, which is mean and log-variance."""
        return 2 * self.latent_channels

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.channel_multipliers) - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UViTConfig:
    """The generation encoder and decoder of JanusFlow."""

    latent_size: int  # number of rows and columns of latents; the networks themselves are fully convolutional
    latent_channels: int
    patch_size: int  # number of latents per token, in each direction
    width: int  # width of a token; the long skip gives the decoder's blocks twice as many channels
    time_width: int  # width of the time embedding, which is also a token of the LLM
    encoder_depth: int  # number of ConvNeXt blocks
    decoder_depth: int
    norm_eps: float

    def __post_init__(self):
        require_multiple("latent_size", self.latent_size, "patch_size", self.patch_size)
        require_multiple("width", self.width, "2 (cosines and sines)", 2)

    @property
    def grid(self) -> int:
        return self.latent_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        return self.grid**2


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """The projector of JanusFlow's representation alignment. Only training uses it; released models have none."""

    layer: int  # number of blocks of the LLM that compute the features to align
    width: int  # width of its hidden layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class JanusFlowConfig:
    """JanusFlow, which generates images as latents.

    Its VAE is not part of the model: it was trained separately and never changes.
    """

    llama: LlamaConfig
    siglip: SiglipConfig
    uvit: UViTConfig
    prompt_style: str  # a key of `data.prompts.STYLES`
    alignment: AlignmentConfig | None = None

    def __post_init__(self):
        if self.alignment and not 0 < self.alignment.layer < self.llama.depth:
            raise ValueError(f"alignment.layer={self.alignment.layer}, expected 1 to {self.llama.depth - 1}")
        if self.uvit.time_width != self.llama.width:
            raise ValueError(f"uvit.time_width={self.uvit.time_width} must be llama.width={self.llama.width}")

    @property
    def understanding(self) -> SiglipConfig:
        """What gives an understanding image its size and its number of tokens."""
        return self.siglip

    @property
    def image_tokens(self) -> int:
        """Number of positions of a generated image: one for the time, then its latents."""
        return 1 + self.uvit.num_tokens

    @property
    def latents_are_pixels(self) -> bool:
        """Whether the latents have the size and channels of an image, so that no VAE is needed."""
        return (self.uvit.latent_size, self.uvit.latent_channels) == (self.siglip.image_size, 3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchDiscriminatorConfig:
    """The discriminator with which an image tokenizer is trained. Only training uses it."""

    base_channels: int
    num_layers: int  # number of convolutions with stride 2
    norm_eps: float

    def __post_init__(self):
        if self.base_channels < 1 or self.num_layers < 1:
            raise ValueError(f"base_channels={self.base_channels}, num_layers={self.num_layers}, expected at least 1")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels after each convolution but the last one, which has one: at most eight times the first."""
        return tuple(self.base_channels * min(2**i, 8) for i in range(self.num_layers + 1))

    def grid(self, side: int) -> int:
        """Number of logits along a side of an image with `side` pixels; below 1 if the image is too small."""
        for _ in range(self.num_layers):
            side = (side - 2) // 2 + 1
        return side - 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class LPIPSConfig:
    """The perceptual distance LPIPS on a VGG-16. Only training and evaluation of image tokenizers use it."""

    widths: tuple[int, ...]  # channels of each stage, with the convolutions of `VGG_CONVOLUTIONS`

    def __post_init__(self):
        if len(self.widths) != len(VGG_CONVOLUTIONS):
            raise ValueError(f"widths={self.widths}, expected {len(VGG_CONVOLUTIONS)} stages")


VGG_CONVOLUTIONS = (2, 2, 3, 3, 3)  # number of convolutions of each stage of VGG-16, with a pooling between two stages

CodeModelConfig = JanusConfig | JanusVariantConfig  # models whose images are codes
FamilyConfig = JanusConfig | JanusVariantConfig | JanusFlowConfig  # models that answer questions and generate images
ImageTokenizerConfig = VQConfig | SemanticTokenizerConfig
ModelConfig = FamilyConfig | ImageTokenizerConfig | VAEConfig
LossNetworkConfig = PatchDiscriminatorConfig | LPIPSConfig | SiglipConfig  # networks that only the loss uses
MetricConfig = ClipConfig | InceptionConfig | Mask2FormerConfig  # networks that measure images
AnyConfig = ModelConfig | LossNetworkConfig | MetricConfig
