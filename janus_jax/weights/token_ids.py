"""Compares the special tokens that the files of a folder repeat with those of the tokenizer, which our code uses.

The original code asks the tokenizer by name: it uses `<｜▁pad▁｜>` for guidance, whatever the tokenizer's pad token is,
and end-of-sentence to stop. transformers generates with the ids of generation_config.json. If one of the two uses
an id or a name that differs from the tokenizer's, the folder generates something else there than here, which is an
error. Ids and names that neither uses differ in many released files, and only cause a warning.
"""

from collections.abc import Mapping
from typing import Any

from absl import logging
from etils import epath

from janus_jax.data.tokenizer import Tokenizer
from janus_jax.models.config import FamilyConfig
from janus_jax.weights.json_fields import CONFIG_FILE, Fields, read_fields, read_optional_fields
from janus_jax.weights.tokenizer_files import IMAGE_TOKENS, PROCESSOR_FILE, SPECIAL_TOKENS, tokenizer_ids

_CLASS_DEFAULTS = {"bos_token_id": 1, "eos_token_id": 2}  # defaults of LlamaConfig; files repeat them
# The arguments of DeepSeek's VLChatProcessor that are tokens.
_PROCESSOR_TOKENS = {
    "image_tag": IMAGE_TOKENS["image_token"],
    "image_start_tag": IMAGE_TOKENS["boi_token"],
    "image_end_tag": IMAGE_TOKENS["eoi_token"],
    "pad_tag": SPECIAL_TOKENS["pad_token"],
}


def check_tokens(folder: epath.PathLike, layout: str, config: FamilyConfig, tokenizer: Tokenizer) -> None:
    """Raises UserError, naming file, field and both values, when the folder would generate with other tokens."""
    folder = epath.Path(folder)
    _check_ids(folder, layout, tokenizer)
    _check_names(read_optional_fields(folder / "tokenizer_config.json"))
    processor = read_optional_fields(folder / PROCESSOR_FILE)
    processor.only(num_image_tokens=config.understanding.num_tokens)
    if layout == "deepseek":
        processor.only(**_PROCESSOR_TOKENS, add_special_token=False)
        if processor.values.get("sft_format") != "deepseek_old":  # which differs in its default roles only
            processor.only(sft_format="deepseek")


def _check_ids(folder: epath.Path, layout: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer_ids(tokenizer)
    ours = {f"{name}_token_id": ids[name] for name in ("bos", "eos", "pad")}
    config = read_fields(folder / CONFIG_FILE)
    if layout == "deepseek":  # the original passes the tokenizer's own ids
        _warn(config.object("language_config"), ours)
        return
    config.only(image_token_id=ids["image"])
    generation = read_optional_fields(folder / "generation_config.json")
    if generation.values and not generation.values.get("_from_model_config"):
        boi = {"boi_token_id": ids["boi"]}
        _refuse_others(generation, ours | boi)
        _refuse_others(generation.object("generation_kwargs"), boi)
        _warn(config.object("text_config"), ours)
    else:  # transformers then uses those of config.json: the defaults of its classes, unless someone chose others
        for fields in (config, config.object("text_config")):
            chosen = {name: id for name, id in ours.items() if fields.values.get(name) != _CLASS_DEFAULTS.get(name)}
            _refuse_others(fields, chosen)
            _warn(fields, ours)


def _check_names(fields: Fields) -> None:
    """Checks tokenizer_config.json, where a token is its name, or an object with the name in `content`."""
    places = [fields, fields.object("extra_special_tokens")] if _has_object(fields) else [fields]
    for place in places:
        named = place._replace(
            values={
                name: value["content"] if isinstance(value, dict) and "content" in value else value
                for name, value in place.values.items()
            }
        )
        used = {name: token for name, token in (SPECIAL_TOKENS | IMAGE_TOKENS).items() if name != "pad_token"}
        named.only(**used)
        _warn(named, {"pad_token": SPECIAL_TOKENS["pad_token"]})


def _has_object(fields: Fields) -> bool:
    """Whether the extra tokens are an object; transformers also accepts a list of names."""
    return isinstance(fields.values.get("extra_special_tokens"), dict)


def _refuse_others(fields: Fields, ours: Mapping[str, int]) -> None:
    """Raises UserError for another id; a list of one id counts as the id."""
    for name, id in ours.items():
        if fields.values.get(name, id) not in (id, [id]):
            raise fields.wrong(name, f"{id}, as in the tokenizer")


def _warn(fields: Fields, ours: Mapping[str, Any]) -> None:
    for name, value in ours.items():
        found = fields.values.get(name, value)
        if found not in (value, [value]):
            logging.warning(
                "%s: %s%s=%r is not used; the tokenizer's %r is", fields.path, fields.prefix, name, found, value
            )
