"""The text tokenizer: a checkpoint's own `tokenizer.json`, whose special tokens are looked up by name."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from etils import epath

from janus_jax.data import prompts
from janus_jax.errors import UserError
from janus_jax.storage import write_whole

SPECIAL_TOKENS = (
    prompts.BOS,
    prompts.EOS,
    prompts.PAD,
    prompts.IMAGE_PLACEHOLDER,
    prompts.BEGIN_OF_IMAGE,
    prompts.END_OF_IMAGE,
)
FILE_NAME = "tokenizer.json"
# What has to be the same after encoding and decoding. The accents are single characters, since a tokenizer may compose
# them. The Chinese comma has a width of its own, which some tokenizers change.
_PROBES = {
    "spaces": "a  b   c ",
    "line breaks": "a\n\nb\r\n\tc\n",
    "accents": "Élan, naïf",
    "Chinese": "中文，你好",
    "emoji": "😀👩‍🔬",
    "digits": "0123456789",
}


class Tokenizer:
    """Encodes text with exactly one BOS in front. Ids differ between checkpoints, so none is hard-coded."""

    def __init__(self, backend: tokenizers.Tokenizer, origin: str = "tokenizer"):
        """Raises UserError when a special token of the family is missing."""
        backend.no_truncation()  # A file may hold either from its last use; here they would corrupt prompts.
        backend.no_padding()
        found = [backend.token_to_id(token) for token in SPECIAL_TOKENS]
        ids = [id for id in found if id is not None]
        if len(ids) < len(SPECIAL_TOKENS):
            missing = [token for token, id in zip(SPECIAL_TOKENS, found, strict=True) if id is None]
            raise UserError(f"{origin}: the vocabulary lacks special token(s): {', '.join(missing)}")
        self.backend = backend
        self.origin = origin
        self.bos_id, self.eos_id, self.pad_id, self.image_id, self.begin_of_image_id, self.end_of_image_id = ids

    @classmethod
    def from_file(cls, path: epath.PathLike) -> "Tokenizer":
        """Reads a `tokenizer.json`.

        Raises:
            UserError: The file is missing or damaged, lacks a special token, or changes text (`check_lossless`).
        """
        path = epath.Path(path)
        try:
            backend = tokenizers.Tokenizer.from_str(path.read_text())
        except Exception as error:  # The Rust library raises bare Exception.
            raise UserError(f"{path}: not a readable tokenizer.json ({error})") from error
        tokenizer = cls(backend, origin=str(path))
        tokenizer.check_lossless()
        return tokenizer

    def check_lossless(self) -> None:
        """Raises UserError unless text is the same after encoding and decoding, alone and around each special token.

        Every tokenizer of the family is lossless, and so is one of `train_tokenizer`, however small: its tokens are
        sequences of bytes. A file that another program has read and saved may not be: it then gives other ids than
        the model was trained with, and no other check notices.
        """
        styles = prompts.STYLES.values()
        roles = [role for style in styles for role in (style.user, style.assistant) if role.startswith("<|")]
        special = {token: self.backend.token_to_id(token) for token in (*SPECIAL_TOKENS, *roles)}
        special = {token: id for token, id in special.items() if id is not None}
        changes = []
        for name, probe in _PROBES.items():
            for token in ("", *special):
                text = f"{probe}{token} {probe}"
                ids = self.backend.encode(text, add_special_tokens=False).ids
                decoded = self.decode(id for id in ids if id not in special.values())
                found = [id for id in ids if id in special.values()]
                if decoded != f"{probe} {probe}" or found != ([special[token]] if token else []):
                    before, after = (repr(each).replace(" ", "␣") for each in (text, decoded))  # no space gets lost
                    changes.append(f"{name}{f' around {token}' if token else ''}: {before} becomes {after}")
                    break
        if changes:
            raise UserError(
                f"{self.origin}: changes text when it encodes and decodes it ({'; '.join(changes)}); expected a file "
                "as it was released with the model, which no other program has saved again"
            )

    def check_roles(self, style: prompts.PromptStyle) -> None:
        """Raises UserError when a role that must be one token (such as `<|User|>`) is not in the vocabulary."""
        roles = (style.user, style.assistant)
        missing = [role for role in roles if role.startswith("<|") and self.backend.token_to_id(role) is None]
        if missing:
            raise UserError(f"{self.origin}: the vocabulary lacks role token(s) of the prompts: {', '.join(missing)}")

    def save(self, path: epath.PathLike) -> None:
        write_whole(path, self.backend.to_str())

    def fingerprint(self) -> str:
        """A short hash that two tokenizers share only if they give the same ids."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()[:12]

    @property
    def vocab_size(self) -> int:
        """Number of embedding rows that the ids need. It follows from the largest id, since ids may have gaps."""
        return max(self.backend.get_vocab().values()) + 1

    def encode(self, text: str) -> list[int]:
        """Ids with BOS first, whatever the file's own post-processor would do."""
        return self.encode_with_offsets(text)[0]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids with BOS first, and the (start, end) characters of each; BOS has (0, 0)."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        ids, offsets = list(encoding.ids), list(encoding.offsets)
        if ids[:1] != [self.bos_id]:
            ids, offsets = [self.bos_id, *ids], [(0, 0), *offsets]
        return ids, offsets

    def expand_images(self, ids: Sequence[int] | np.ndarray, tokens_per_image: int) -> np.ndarray:
        """Replaces each placeholder by begin-of-image, `tokens_per_image` placeholders and end-of-image; int32."""
        ids = np.asarray(ids, np.int32)
        is_image = ids == self.image_id
        expanded = np.repeat(ids, np.where(is_image, tokens_per_image + 2, 1))
        first = np.flatnonzero(is_image) + np.arange(is_image.sum()) * (tokens_per_image + 1)
        expanded[first] = self.begin_of_image_id
        expanded[first + tokens_per_image + 1] = self.end_of_image_id
        return expanded

    def unconditional(self, ids: Sequence[int]) -> list[int]:
        """The prompt without its condition, for guidance: padding between BOS and the last token (Janus, 3.4)."""
        return [ids[0], *[self.pad_id] * (len(ids) - 2), ids[-1]]

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text of some ids, without special tokens."""
        return self.backend.decode([int(id) for id in ids], skip_special_tokens=True)


def train_tokenizer(texts: Iterable[str], vocab_size: int, extra_special_tokens: Sequence[str] = ()) -> Tokenizer:
    """Trains a byte-level BPE with the special tokens of the Janus family, for models that start from scratch."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *extra_special_tokens],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend)
