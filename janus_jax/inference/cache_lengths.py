"""Lengths of KV caches: a few that grow by about half, so that few programs are compiled.

Every length of a cache takes compiled programs of its own. The slots behind the last token are masked: they cost time
where a step reads them, and memory.
"""

import itertools
from collections.abc import Iterator

from janus_jax.inference.padding import round_up

CONVERSATION, IMAGE_PROMPT = 768, 128  # shortest caches of text with its answer, and of the prompt of images, in slots
GRANULARITY = 64  # of the lengths of the ladder
MASKED_SHARE = 0.05  # largest share of a step's bytes that may be read for masked slots


def ladder(shortest: int) -> Iterator[int]:
    """`shortest`, and lengths that grow by about half without end."""
    length = shortest
    while True:
        yield length
        length = round_up(length * 3 // 2, GRANULARITY)


def cache_length(needed: int, shortest: int, fine: int, slot_bytes: int, other_bytes: int) -> int:
    """Number of slots of a cache that needs `needed` of them: the next length of the ladder.

    Where its masked slots would cost more than `MASKED_SHARE` of a step, it is the next multiple of `fine` instead.

    Args:
        slot_bytes: bytes that a step reads for each masked slot, of all rows; 0 if it does not read them.
        other_bytes: bytes that a step reads besides the cache: the weights.
    """
    coarse = next(itertools.dropwhile(lambda length: length < needed, ladder(shortest)))
    masked = (coarse - needed) * slot_bytes
    return coarse if masked <= MASKED_SHARE * (other_bytes + needed * slot_bytes) else round_up(needed, fine)
