"""The batches that the data stream makes and the training step eats. No JAX here, so that `data` stays free of it.

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

    tokens: Any  # [B, L] int32: text ids; VQ codes at generation positions (0 while not computed); 0 elsewhere
    modality: Any  # [B, L] int8, see `Modality`
    segment_ids: Any  # [B, L] int32: 0 padding, 1, 2, ... one per packed sample
    positions: Any  # [B, L] int32, from 0 in each segment; a dropped caption of JanusFlow leaves a gap
    targets: Any  # [B, L] int32: id of the next token, text or VQ code
    text_weights: Any  # [B, L] float32: loss mask of the text head
    image_weights: Any  # [B, L] float32: loss mask of the image head
    und_pixels: Any  # [B, I, image, image, 3] uint8 in order of appearance; unused slots are zero
    gen_pixels: Any = (
        None  # [B, G, image, image, 3] uint8 in order of appearance; None: `tokens` already hold the codes
    )


class FlowBatch(NamedTuple):
    """Rows for JanusFlow, with the latents of their images and all that is random in the loss."""

    rows: PackedBatch
    latents: Any  # [B, G, H, W, Z] float32, of unit scale
    noise: Any  # [B, G, H, W, Z] float32, standard normal
    time: Any  # [B, G] float32 in (0, 1)


class ImageBatch(NamedTuple):
    """Training images of the VQ tokenizer."""

    pixels: Any  # [B, size, size, 3] uint8
    weights: Any = None  # [B] float32: 1 for an image, 0 for padding; None: all are images (always so in training)
