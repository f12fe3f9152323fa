"""Decoding as the specification words it: one full forward pass per token, no cache, no batch, no left padding."""

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.batches import Modality
from janus_jax.models.execution import Execution
from janus_jax.models.params import bind, build
from janus_jax.models.scan_layers import stack_layers

LENGTH = 96  # all sequences are padded on the right to this


class Reference:
    """The stacked layout of the layers, where the pipeline unrolls them."""

    def __init__(self, pipeline):
        self._tokenizer, self._slots = pipeline.tokenizer, 2
        self._size = pipeline.config.siglip.image_size
        self.num_codes = pipeline.config.image_tokens
        model = build(pipeline.config, Execution(scan_layers=True))

        @jax.jit
        def text(params, *inputs):
            return self._forward(model, params, *inputs, head="text_logits")

        @jax.jit
        def image(params, *inputs):
            return self._forward(model, params, *inputs, None, head="image_logits")

        self._text, self._image = text, image

    @staticmethod
    def _forward(model, params, tokens, modality, pixels, head):
        apply = bind(model, stack_layers(params))
        x = apply(tokens, modality, pixels, method="embed")
        positions = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
        hidden, _ = apply(x, positions, (modality > 0).astype(jnp.int32))
        return apply(hidden, method=head)

    def greedy_text(self, params, ids, images, max_new_tokens):
        """The answer's ids, without end-of-sentence; `images` are uint8 arrays."""
        pixels = np.zeros((1, self._slots, self._size, self._size, 3), np.float32)
        for slot, image in enumerate(images):
            pixels[0, slot] = image / 127.5 - 1
        answer = []
        while len(answer) < max_new_tokens:
            row = [*ids, *answer]
            tokens, modality = np.zeros((1, LENGTH), np.int32), np.zeros((1, LENGTH), np.int32)
            tokens[0, : len(row)] = row
            modality[0, : len(row)] = Modality.TEXT
            modality[tokens == self._tokenizer.image_id] = Modality.UNDERSTANDING_IMAGE
            logits = np.asarray(self._text(params, tokens, modality, pixels))[0, len(row) - 1]
            if logits.argmax() == self._tokenizer.eos_id:
                break
            answer.append(int(logits.argmax()))
        return answer

    def image_logits(self, params, ids, codes):
        """Logits of the code that follows `codes`, of the conditional and the unconditional row (spec 5.2)."""
        unconditional = [ids[0], *[self._tokenizer.pad_id] * (len(ids) - 2), ids[-1]]
        end = len(ids) + len(codes)
        tokens, modality = np.zeros((2, LENGTH), np.int32), np.zeros((2, LENGTH), np.int32)
        tokens[:, :end] = [[*ids, *codes], [*unconditional, *codes]]
        modality[:, : len(ids)] = Modality.TEXT
        modality[:, len(ids) : end] = Modality.GENERATION_IMAGE
        return np.asarray(self._image(params, tokens, modality), np.float64)[:, end - 1]

    def greedy_codes(self, params, ids, combine):
        """Codes of one image; `combine(conditional, unconditional)` are the logits to choose from."""
        codes = []
        while len(codes) < self.num_codes:
            codes.append(int(combine(*self.image_logits(params, ids, codes)).argmax()))
        return codes
