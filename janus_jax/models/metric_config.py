"""Architectures of the networks that only evaluation uses, to measure images; `models.config` has the others."""

import dataclasses


def require_multiple(name: str, value: int, of_name: str, of: int) -> None:
    """Raises ValueError unless a size is a positive multiple of another one."""
    if of <= 0 or value <= 0 or value % of:
        raise ValueError(f"{name}={value} must be a positive multiple of {of_name}={of}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTowerConfig:
    """The transformer of either tower of CLIP."""

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    norm_eps: float
    activation: str  # a key of `models.layers.ACTIVATIONS`

    def __post_init__(self):
        require_multiple("width", self.width, "num_heads", self.num_heads)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """CLIP, which embeds images and texts in one space. Only evaluation uses it."""

    vision: ClipTowerConfig
    text: ClipTowerConfig
    image_size: int
    patch_size: int
    vocab_size: int
    max_length: int  # longest text in tokens, start and end included
    # Token whose first place in a text gives the features of the text. None: the largest id in the text.
    end_id: int | None
    embed_dim: int  # width of the common space

    def __post_init__(self):
        require_multiple("image_size", self.image_size, "patch_size", self.patch_size)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of an image: its patches and the class token."""
        return 1 + (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class InceptionConfig:
    """Inception v3 in the variant of the Fréchet distance. Only evaluation uses it."""

    num_classes: int
    norm_eps: float
    width_divisor: int  # number by which all widths are divided; 1 in the published network

    def __post_init__(self):
        require_multiple("16 (the greatest common divisor of all widths)", 16, "width_divisor", self.width_divisor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """A Swin Transformer, the backbone of a detector."""

    width: int  # of the first stage; each further stage has twice the width of the one before
    depths: tuple[int, ...]  # number of blocks of each stage
    num_heads: tuple[int, ...]  # of each stage
    window_size: int
    mlp_ratio: int
    norm_eps: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask2FormerConfig:
    """Mask2Former, the detector of GenEval. Only evaluation uses it."""

    swin: SwinConfig
    width: int  # of all parts but the backbone
    encoder_depth: int
    encoder_mlp_dim: int
    decoder_depth: int
    decoder_mlp_dim: int
    num_heads: int
    num_queries: int
    num_classes: int

    def __post_init__(self):
        require_multiple("width", self.width, "32 (groups of channels)", 32)
        require_multiple("width", self.width, "num_heads", self.num_heads)
