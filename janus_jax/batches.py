"""The batches that the data stream makes and the training step reads. They need no JAX, since `data` imports none.

Letters: B rows, L tokens per row, I understanding and G generation image slots per row.
"""

import enum
from typing import Any, NamedTuple


class Modality(enum.IntEnum):
    """What a position of a row holds."""

    PADDING = 0
    TEXT = 1
    UNDERSTANDING_IMAGE = 2  # a SigLIP feature
    GENERATION_IMAGE = 3  # a VQ code; JanusFlow: the time or a latent


class PackedBatch(NamedTuple):
    """Rows of fixed shape; NumPy arrays on the host, sharded on the leading axis on device."""

    # [B, L] int32: text ids; VQ codes at generation positions, 0 while they are not computed; 0 at other positions.
    tokens: Any
    modality: Any  # [B, L] int8: `Modality` of each position
    segment_ids: Any  # [B, L] int32: 0 for padding, then 1, 2, ... for each packed sample
    positions: Any  # [B, L] int32: from 0 in each segment; a dropped caption of JanusFlow leaves a gap
    targets: Any  # [B, L] int32: id of the next token, text or VQ code
    text_weights: Any  # [B, L] float32: weights of the loss of the text head
    image_weights: Any  # [B, L] float32: weights of the loss of the image head
    und_pixels: Any  # [B, I, image, image, 3] uint8 in order of appearance; unused slots are zero
    gen_pixels: Any = None  # [B, G, image, image, 3] uint8 in order of appearance; None if `tokens` have the codes


class FlowBatch(NamedTuple):
    """Rows for JanusFlow, with the latents of their images and all random numbers of the loss."""

    rows: PackedBatch
    latents: Any  # [B, G, H, W, Z] float32, scaled to about unit variance
    noise: Any  # [B, G, H, W, Z] float32, standard normal
    time: Any  # [B, G] float32 in (0, 1)


class ImageBatch(NamedTuple):
    """Training images of the VQ tokenizer."""

    pixels: Any  # [B, size, size, 3] uint8
    weights: Any = None  # [B] float32: 1 for an image, 0 for padding; None: all are images (always so in training)
