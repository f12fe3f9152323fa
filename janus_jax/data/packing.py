"""First-fit packing of samples into rows of fixed shape, so that no compute goes to padding.

Letters: B rows, L tokens per row, I and G image slots per row.
"""

import grain

# Per-token features that follow `tokens` and need no segment ids of their own.
_TOKEN_FEATURES = ("modality", "targets", "text_weights", "image_weights")


def pack(
    samples: grain.IterDataset, *, row_length: int, und_slots: int, gen_slots: int, bins: int, seed: int
) -> grain.IterDataset:
    """Samples (`data.samples.Sample`) -> single rows: dicts with the fields of `PackedBatch` without the leading B.

    A sample goes into the first open row that has room for all its tokens and images, so the images of a row never
    exceed its slots and stay in the order of their positions. `bins` rows are filled at a time.
    """
    lengths = {"tokens": row_length, "und_pixels": und_slots, "gen_pixels": gen_slots}
    lengths |= dict.fromkeys(_TOKEN_FEATURES, row_length)
    packed = grain.experimental.FirstFitPackIterDataset(
        samples, length_struct=lengths, num_packing_bins=bins, seed=seed, meta_features=_TOKEN_FEATURES
    )
    return packed.map(_to_row)


def _to_row(packed: dict) -> dict:
    row = {name: packed[name] for name in (*_TOKEN_FEATURES, "tokens", "und_pixels", "gen_pixels")}
    return row | {"segment_ids": packed["tokens_segment_ids"], "positions": packed["tokens_positions"]}
