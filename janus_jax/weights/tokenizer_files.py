"""The files of a model folder that belong to its tokenizer and to the format of its prompts.

Reading them checks that a folder asks for what our code does. Writing them makes the complete set for transformers
("hf") or for DeepSeek's code ("deepseek"), preprocessor and chat template included.
"""

import functools
from collections.abc import Mapping
from typing import Any

import tokenizers
from absl import logging
from etils import epath

from janus_jax.data import prompts
from janus_jax.data.images import JANUS_NORMALIZATION, Normalization
from janus_jax.data.prompts import STYLES, PromptStyle
from janus_jax.data.tokenizer import FILE_NAME, Tokenizer
from janus_jax.errors import UserError
from janus_jax.models.config import FamilyConfig, JanusFlowConfig
from janus_jax.storage import write_json
from janus_jax.weights import preprocessor
from janus_jax.weights.json_fields import read_fields

PROCESSOR_FILE = "processor_config.json"
_SYSTEM_PROMPT_FIELD = "use_default_system_prompt"
SPECIAL_TOKENS = {"bos_token": prompts.BOS, "eos_token": prompts.EOS, "pad_token": prompts.PAD}
IMAGE_TOKENS = {
    "image_token": prompts.IMAGE_PLACEHOLDER,
    "boi_token": prompts.BEGIN_OF_IMAGE,
    "eoi_token": prompts.END_OF_IMAGE,
}

# The content of a message is a string or a list of items. A line break separates an image from its neighbours, a space
# separates two texts. As in the released template, the last message is followed by a separator only if an answer is
# asked for. The default system prompt is not in the template: JanusProcessor puts it in front of questions.
_CHAT_TEMPLATE = r"""
{%- for message in messages -%}
  {%- set content = namespace(text='', ends_with_image=false) -%}
  {%- if message['content'] is string -%}
    {%- set content.text = message['content'] -%}
  {%- else -%}
    {%- for item in message['content'] -%}
      {%- set is_image = item['type'] == 'image' -%}
      {%- if not loop.first -%}
        {%- set content.text = content.text ~ ('\n' if is_image or content.ends_with_image else ' ') -%}
      {%- endif -%}
      {%- set content.text = content.text ~ (image_placeholder if is_image else item['text']) -%}
      {%- set content.ends_with_image = is_image -%}
    {%- endfor -%}
  {%- endif -%}
  {%- set text = content.text | trim -%}
  {%- if message['role'] == 'system' -%}
    {{- text ~ '\n\n' -}}
  {%- else -%}
    {{- roles.get(message['role'], message['role'] | capitalize) ~ ':' ~ (' ' ~ text if text else '') -}}
    {%- if not loop.last or add_generation_prompt -%}
      {{- '\n\n' if message['role'] == 'user' else end_of_sentence -}}
    {%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- roles['assistant'] ~ ':' -}}
{%- endif -%}
"""


def read_tokenizer(folder: epath.PathLike) -> tuple[Tokenizer, str]:
    """The tokenizer of a folder of any layout, and its prompt style, a key of `STYLES`.

    A vocabulary with the role tokens of Janus-Pro means the roles of Janus-Pro. The field `use_default_system_prompt`
    of transformers' processor says whether the system prompt precedes a question. DeepSeek's processor always puts it
    there, so a missing field means that it does.

    Raises:
        UserError: no readable tokenizer.json, or one without the family's special tokens.
    """
    folder = epath.Path(folder)
    tokenizer = Tokenizer.from_file(folder / FILE_NAME)
    has_system_prompt = True
    if (folder / PROCESSOR_FILE).exists():
        fields = read_fields(folder / PROCESSOR_FILE).filled({_SYSTEM_PROMPT_FIELD: True})
        has_system_prompt = fields.values[_SYSTEM_PROMPT_FIELD]
        if type(has_system_prompt) is not bool:
            raise fields.wrong(_SYSTEM_PROMPT_FIELD, "true or false")
    return tokenizer, _style_name(tokenizer, has_system_prompt)


def check_vocabulary(origin: object, tokenizer: Tokenizer, config: FamilyConfig) -> None:
    """Raises UserError when the tokenizer has an id beyond the rows of the embeddings, which would be read as NaN.

    Warns when it uses less than half of the rows: it may then be the tokenizer of another model. A command that opens
    a model more than once, such as one that reads what it has written, gives the same remark once.

    Args:
        origin: folder, or field and value, that names the tokenizer in the message.
    """
    tokens, rows = tokenizer.vocab_size, config.llama.vocab_size
    if tokens > rows:
        raise UserError(f"{origin}: {tokens} tokens in {FILE_NAME}, but the model embeds only {rows}")
    if 2 * tokens < rows:
        remark(tokens, rows)


@functools.cache
def remark(tokens: int, rows: int) -> None:
    """Warns that a tokenizer is suspiciously small; once for the same sizes, as a run reads it in several places."""
    logging.warning(
        "%d tokens in %s, but the model embeds %d: is this the tokenizer of the model?", tokens, FILE_NAME, rows
    )


def check_style(layout: str, config: FamilyConfig, tokenizer: Tokenizer) -> None:
    """Raises UserError when the model, written in a layout, would be read again with another prompt style."""
    wanted = STYLES[config.prompt_style]
    if layout == "deepseek" and not wanted.system_prompt:
        raise UserError(
            f"prompt_style={config.prompt_style!r} cannot be written in the deepseek layout: "
            "its processor puts the system prompt in front of every question"
        )
    found = _style_name(tokenizer, bool(wanted.system_prompt))
    if STYLES[found] != wanted:
        raise UserError(
            f"prompt_style={config.prompt_style!r} cannot be written in the {layout} layout with this tokenizer: "
            f"the role tokens in its vocabulary mean {found!r}"
        )


def tokenizer_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids that the configuration files repeat; "image" is the placeholder, "boi" is begin-of-image."""
    return {
        "bos": tokenizer.bos_id,
        "eos": tokenizer.eos_id,
        "pad": tokenizer.pad_id,
        "image": tokenizer.image_id,
        "boi": tokenizer.begin_of_image_id,
    }


def write_hf_files(
    folder: epath.PathLike,
    config: FamilyConfig,
    tokenizer: Tokenizer,
    normalization: Normalization = JANUS_NORMALIZATION,
) -> None:
    """Writes the files that transformers' JanusProcessor, AutoTokenizer and GenerationConfig load."""
    path, style, size = epath.Path(folder), STYLES[config.prompt_style], config.understanding.image_size
    _write_tokenizer(path, config, tokenizer, "PreTrainedTokenizerFast", "JanusProcessor", IMAGE_TOKENS)
    preprocessor.write_preprocessor(path, normalization, **preprocessor.hf_fields(size))
    processor = {
        "processor_class": "JanusProcessor",
        "num_image_tokens": config.understanding.num_tokens,
        _SYSTEM_PROMPT_FIELD: bool(style.system_prompt),
    }
    ids = tokenizer_ids(tokenizer)
    generation = {
        **{f"{name}_token_id": ids[name] for name in ("bos", "eos", "pad")},
        "guidance_scale": 5.0,  # for generating images; answering ignores it
        "temperature": 1.0,
        "generation_kwargs": {"boi_token_id": ids["boi"]},
    }
    write_json(path / PROCESSOR_FILE, processor)
    write_json(path / "generation_config.json", generation)
    (path / "chat_template.jinja").write_text(_chat_template(style))


def write_deepseek_files(
    folder: epath.PathLike,
    config: FamilyConfig,
    tokenizer: Tokenizer,
    normalization: Normalization = JANUS_NORMALIZATION,
) -> None:
    """Writes the files that the VLChatProcessor of DeepSeek's code loads."""
    path = epath.Path(folder)
    _write_tokenizer(path, config, tokenizer, "LlamaTokenizerFast", "VLChatProcessor", {})
    preprocessor.write_preprocessor(
        path,
        normalization,
        image_processor_type="VLMImageProcessor",
        processor_class="VLChatProcessor",
        image_size=config.understanding.image_size,
    )
    processor = {
        "processor_class": "VLChatProcessor",
        "image_tag": prompts.IMAGE_PLACEHOLDER,
        "num_image_tokens": config.understanding.num_tokens,
        "add_special_token": False,
        "sft_format": "deepseek",
        "mask_prompt": True,
        "ignore_id": -100,
    }
    if isinstance(config, JanusFlowConfig):
        processor["image_gen_tag"] = (
            prompts.BEGIN_OF_IMAGE
        )  # in JanusFlow the embedding of the time takes this token's place
    write_json(path / PROCESSOR_FILE, processor)


def _style_name(tokenizer: Tokenizer, has_system_prompt: bool) -> str:
    """The prompt style of a folder, a key of `STYLES`."""
    is_pro = tokenizer.backend.token_to_id(STYLES["janus_pro"].user) is not None
    if has_system_prompt:
        return "janus_pro" if is_pro else "janus"
    return "janus_pro_tiny" if is_pro else "janus_plain"


def _write_tokenizer(
    folder: epath.Path,
    config: FamilyConfig,
    tokenizer: Tokenizer,
    tokenizer_class: str,
    processor_class: str,
    image_tokens: Mapping[str, str],
) -> None:
    _adding_bos(tokenizer).save(folder / FILE_NAME)
    settings: dict[str, Any] = {
        "tokenizer_class": tokenizer_class,
        "processor_class": processor_class,
        **SPECIAL_TOKENS,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.llama.max_length,
        "padding_side": "left",
    }
    if image_tokens:
        settings["extra_special_tokens"] = dict(image_tokens)
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", {**SPECIAL_TOKENS, **image_tokens})


def _adding_bos(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer whose file adds one BOS in front of a text, which other readers expect and ours does not need."""
    backend = tokenizer.backend
    plain = backend.encode("a", add_special_tokens=False).ids
    if backend.encode("a").ids == [tokenizer.bos_id, *plain]:
        return tokenizer
    copy = tokenizers.Tokenizer.from_str(backend.to_str())
    copy.post_processor = tokenizers.processors.TemplateProcessing(
        single=[prompts.BOS, "$A"], special_tokens=[(prompts.BOS, tokenizer.bos_id)]
    )
    return Tokenizer(copy)


def _chat_template(style: PromptStyle) -> str:
    constants = {
        "roles": {"user": style.user, "assistant": style.assistant},
        "image_placeholder": prompts.IMAGE_PLACEHOLDER,
        "end_of_sentence": prompts.EOS,
    }
    return "\n".join(f"{{%- set {name} = {value!r} -%}}" for name, value in constants.items()) + _CHAT_TEMPLATE
