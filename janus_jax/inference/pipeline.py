"""The public API that all models of the family have in common: questions, conversations and saving."""

from collections.abc import Sequence
from typing import Any, Unpack, overload

import jax
import jax.numpy as jnp
from etils import epath
from jax.typing import DTypeLike

from janus_jax.data.prompts import Message
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import UserError
from janus_jax.inference.adapters import Adapters
from janus_jax.inference.chat_session import Conversation
from janus_jax.inference.engine import Engine
from janus_jax.inference.requests import Answer, Image, TextOptions, check_image_lists, is_image
from janus_jax.inference.validation import user_message
from janus_jax.models.config import FamilyConfig
from janus_jax.models.lora import is_trained_adapter
from janus_jax.models.params import Params, flatten
from janus_jax.models.scan_layers import stack_layers
from janus_jax.weights.reader import model_in_memory
from janus_jax.weights.weight_layout import undo_transposed
from janus_jax.weights.write_model import write_model


class Pipeline:
    """A model that answers questions about images, and can be saved.

    Attributes:
        engine: does the work.
        adapters: named adapters that the model can use; None for a model that was loaded without.
    """

    adapters: Adapters | None = None

    def __init__(self, engine: Engine):
        self.engine = engine

    def use_adapter(self, name: str | None, scale: float = 1.0) -> None:
        """Changes to one of the adapters that the model was loaded with, or with None to the model itself.

        Conversations that have begun should end before, since they keep what the model before has computed.

        Args:
            scale: factor on what the adapter adds.

        Raises:
            UserError: the model was loaded without adapters or has none of this name, or the scale is not finite.
        """
        if self.adapters is None:
            raise UserError("use_adapter: the model was loaded without adapter={name: folder}")
        self.engine.params = self.adapters.params(name, scale)

    @property
    def config(self) -> FamilyConfig:
        """The architecture."""
        return self.engine.config

    @property
    def params(self) -> Params:
        """The parameters, as `Engine` holds them."""
        return self.engine.params

    @property
    def tokenizer(self) -> Tokenizer:
        """The text tokenizer."""
        return self.engine.tokenizer

    @overload
    def chat(  # type: ignore[overload-overlap]  # a str is a sequence of str, too
        self, images: Image | Sequence[Image], prompt: str, **options: Unpack[TextOptions]
    ) -> str: ...
    @overload
    def chat(
        self, images: Sequence[Sequence[Image]], prompt: Sequence[str], **options: Unpack[TextOptions]
    ) -> list[str]: ...

    def chat(self, images: Any, prompt: str | Sequence[str], **options: Unpack[TextOptions]) -> str | list[str]:
        """Answers a question about images.

        Args:
            images: an image or a list of images for one question; for a list of questions a list of lists of images.
            prompt: a question, or a list of questions.
            options: max_new_tokens, temperature, top_p, top_k, seed and prompt_numbers; see `TextOptions`.

        Returns:
            The answer; a list of answers for a list of questions.

        Raises:
            UserError: empty prompt, unreadable image, a prompt that does not fit the context, or images in another
                form than described.
        """
        if isinstance(prompt, str):
            return self.chat([[images] if is_image(images) else images], [prompt], **options)[0]
        check_image_lists(images, prompt)
        conversations = [[user_message(text, len(attached))] for text, attached in zip(prompt, images, strict=True)]
        return [answer.text for answer in self.answer(conversations, images, **options)]

    def answer(
        self,
        conversations: Sequence[Sequence[Message]],
        images: Sequence[Sequence[Image]],
        **options: Unpack[TextOptions],
    ) -> list[Answer]:
        """Continues conversations that end with a user's message.

        A sampled answer depends on its conversation, seed and prompt number alone, not on the batch; rounding aside,
        which may differ between batches of other shapes.

        Args:
            conversations: messages whose texts hold an `<image_placeholder>` per image.
            images: those of each conversation, in the order of the placeholders.
            options: those of `chat`.

        Raises:
            UserError: bad option, unreadable image, a prompt that does not fit the context, or a batch that does not
                fit the memory.
        """
        requests, sampling = self.engine.reader.text(conversations, images, **options)
        return self.engine.answer(requests, sampling)

    def conversation(self) -> Conversation:
        """Starts a conversation of several questions, which keeps its key-value cache and streams its answers."""
        return Conversation(self.engine)

    def save_pretrained(self, folder: epath.PathLike, format: str = "orbax", dtype: DTypeLike | None = None) -> None:
        """Writes a complete model folder, which `janus_jax.from_pretrained` reads.

        Args:
            folder: new or empty.
            format: "orbax" (ours), "hf" (transformers' JanusForConditionalGeneration) or "deepseek" (the original).
            dtype: dtype of the saved parameters; None keeps that of `self.params`.

        Raises:
            UserError: unknown format, one that cannot hold this model, a quantised model, a folder that is not empty,
                or a full disk.
        """
        self._write(folder, format, dtype)

    def _write(self, folder: epath.PathLike, format: str, dtype: DTypeLike | None, vae: Any = None) -> None:
        """Writes the folder of `save_pretrained`, with a VAE in it if there is one."""
        engine = self.engine
        if any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(engine.params)):
            raise UserError("the model is quantised to int8, expected one in full precision to save")
        if any(is_trained_adapter(path) for path in flatten(engine.params)):
            raise UserError("the model uses an adapter beside its weights, expected use_adapter(None) or a merged one")
        params = undo_transposed(engine.params, engine.model.execution.dtype)
        params = stack_layers(params, join=tuple)  # the writer reads layer by layer
        reader = model_in_memory(engine.config, params, engine.tokenizer, engine.normalization)
        write_model(reader, folder, format, dtype, vae=vae)
