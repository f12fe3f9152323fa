"""The files of a checkpoint folder besides config.json and the tensors: tokenizer, preprocessing, chat template.

Readers check that a folder wants what our code does; writers make the complete set for transformers ("hf") and for
DeepSeek's code ("deepseek").
"""

import json
from collections.abc import Mapping
from typing import Any

import tokenizers
from absl import logging
from etils import epath

from janus_jax.convert.json_fields import Fields, read_fields
from janus_jax.data import prompts
from janus_jax.data.images import JANUS_NORMALIZATION, MIN_SIZE, Normalization
from janus_jax.data.prompts import STYLES, PromptStyle
from janus_jax.data.tokenizer import FILE_NAME, Tokenizer
from janus_jax.models.config import JanusConfig

_PREPROCESSOR_FILE = "preprocessor_config.json"
_SPECIAL_TOKENS = {"bos_token": prompts.BOS, "eos_token": prompts.EOS, "pad_token": prompts.PAD}
_IMAGE_TOKENS = {
    "image_token": prompts.IMAGE_PLACEHOLDER,
    "boi_token": prompts.BEGIN_OF_IMAGE,
    "eoi_token": prompts.END_OF_IMAGE,
}

# Content is a string or a list of items, where a line break parts an image from its neighbours and a space two texts.
# As in the released template, the last message has no separator unless an answer is asked for. The default system
# prompt is not here: JanusProcessor puts it in front of questions.
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
    """Tokenizer of a folder of any layout, and the prompt style: only the role tokens of Janus-Pro tell it.

    Raises:
        UserError: no readable tokenizer.json, or one without the family's special tokens.
    """
    tokenizer = Tokenizer.from_file(epath.Path(folder) / FILE_NAME)
    is_pro = tokenizer.backend.token_to_id(STYLES["janus_pro"].user) is not None
    return tokenizer, "janus_pro" if is_pro else "janus"


def tokenizer_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids that the configuration files repeat; "image" is the placeholder, "boi" begin-of-image."""
    return {
        "bos": tokenizer.bos_id,
        "eos": tokenizer.eos_id,
        "pad": tokenizer.pad_id,
        "image": tokenizer.image_id,
        "boi": tokenizer.begin_of_image_id,
    }


def read_preprocessor(folder: epath.PathLike, config: JanusConfig) -> Normalization:
    """How a folder of any layout wants its understanding images normalised.

    Without mean and standard deviation both references fall back to CLIP's, which are wrong for Janus; we use 0.5 and
    log a warning.

    Raises:
        UserError: another image size than the architecture's, a number that is none, a damaged file.
    """
    fields, size = _read_preprocessor(epath.Path(folder)), config.siglip.image_size
    fields.only(image_size=size)  # DeepSeek
    if isinstance(fields.values.get("size"), dict):  # transformers
        fields.object("size").only(height=size, width=size)
    else:
        fields.only(size=size)
    fields.only(do_normalize=True)
    return Normalization(_channels(fields, "image_mean"), _channels(fields, "image_std"))


def write_preprocessor(folder: epath.PathLike, normalization: Normalization, **more: Any) -> None:
    """Writes preprocessor_config.json: what all layouts share, and `more`."""
    content = {
        "image_mean": list(normalization.mean),
        "image_std": list(normalization.std),
        "background_color": list(normalization.pad_colour),
        "do_normalize": True,
        "min_size": MIN_SIZE,
        "rescale_factor": 1 / 255,
        **more,
    }
    _write_json(epath.Path(folder) / _PREPROCESSOR_FILE, content)


def write_hf_files(
    folder: epath.PathLike,
    config: JanusConfig,
    tokenizer: Tokenizer,
    normalization: Normalization = JANUS_NORMALIZATION,
) -> None:
    """Writes what transformers' JanusProcessor, AutoTokenizer and GenerationConfig load."""
    path, style, size = epath.Path(folder), STYLES[config.prompt_style], config.siglip.image_size
    _write_tokenizer(path, config, tokenizer, "PreTrainedTokenizerFast", "JanusProcessor", _IMAGE_TOKENS)
    write_preprocessor(
        path,
        normalization,
        image_processor_type="JanusImageProcessor",
        processor_class="JanusProcessor",
        size={"height": size, "width": size},
        resample=3,  # bicubic
        do_resize=True,
        do_rescale=True,
        do_pad=True,
    )
    processor = {
        "processor_class": "JanusProcessor",
        "num_image_tokens": config.siglip.num_tokens,
        "use_default_system_prompt": bool(style.system_prompt),
    }
    ids = tokenizer_ids(tokenizer)
    generation = {
        **{f"{name}_token_id": ids[name] for name in ("bos", "eos", "pad")},
        "guidance_scale": 5.0,  # of drawing; answering ignores it
        "temperature": 1.0,
        "generation_kwargs": {"boi_token_id": ids["boi"]},
    }
    _write_json(path / "processor_config.json", processor)
    _write_json(path / "generation_config.json", generation)
    (path / "chat_template.jinja").write_text(_chat_template(style))


def write_deepseek_files(
    folder: epath.PathLike,
    config: JanusConfig,
    tokenizer: Tokenizer,
    normalization: Normalization = JANUS_NORMALIZATION,
) -> None:
    """Writes what the VLChatProcessor of DeepSeek's code loads."""
    path = epath.Path(folder)
    _write_tokenizer(path, config, tokenizer, "LlamaTokenizerFast", "VLChatProcessor", {})
    write_preprocessor(
        path,
        normalization,
        image_processor_type="VLMImageProcessor",
        processor_class="VLChatProcessor",
        image_size=config.siglip.image_size,
    )
    processor = {
        "processor_class": "VLChatProcessor",
        "image_tag": prompts.IMAGE_PLACEHOLDER,
        "num_image_tokens": config.siglip.num_tokens,
        "add_special_token": False,
        "sft_format": "deepseek",
        "mask_prompt": True,
        "ignore_id": -100,
    }
    _write_json(path / "processor_config.json", processor)


def _read_preprocessor(folder: epath.Path) -> Fields:
    """The image processor's fields, where transformers looks for them: 5.x nests them in processor_config.json."""
    if (folder / "processor_config.json").exists():
        processor = read_fields(folder / "processor_config.json")
        if "image_processor" in processor.values:
            return processor.object("image_processor")
    path = folder / _PREPROCESSOR_FILE
    return read_fields(path) if path.exists() else Fields(path, "", {})


def _channels(fields: Fields, name: str) -> tuple[float, ...]:
    """Three numbers, or one for all channels."""
    value: Any = fields.values.get(name)
    if value is None:
        logging.warning("%s: %s%s is missing; using 0.5, as Janus was trained", fields.path, fields.prefix, name)
        return JANUS_NORMALIZATION.mean
    values = [value] * 3 if isinstance(value, int | float) else value
    numbers = isinstance(values, list) and len(values) == 3 and all(type(x) in (int, float) for x in values)
    if not numbers or not all(0 <= x <= 1 for x in values) or (name == "image_std" and 0 in values):
        raise fields.wrong(name, "a number from 0 to 1, of a deviation not 0, for each of 3 channels")
    return tuple(map(float, values))


def _write_tokenizer(
    folder: epath.Path,
    config: JanusConfig,
    tokenizer: Tokenizer,
    tokenizer_class: str,
    processor_class: str,
    image_tokens: Mapping[str, str],
) -> None:
    _adding_bos(tokenizer).save(folder / FILE_NAME)
    settings: dict[str, Any] = {
        "tokenizer_class": tokenizer_class,
        "processor_class": processor_class,
        **_SPECIAL_TOKENS,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.llama.max_length,
        "padding_side": "left",
    }
    if image_tokens:
        settings["extra_special_tokens"] = dict(image_tokens)
    _write_json(folder / "tokenizer_config.json", settings)
    _write_json(folder / "special_tokens_map.json", {**_SPECIAL_TOKENS, **image_tokens})


def _adding_bos(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer whose file puts one BOS in front by itself, as others' readers expect; ours never depends on it."""
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


def _write_json(path: epath.Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
