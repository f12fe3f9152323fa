"""Finds out what the columns of a parquet file hold, from their Arrow types and from Hugging Face's notes on them."""

import json
from typing import Any

from janus_jax.data.formats.columns import Kind

_MEDIA_FEATURES = ("Image", "Video", "Audio")


def column_kinds(schema) -> dict[str, Kind]:
    """Kind of each column of a `pyarrow.Schema` by its name."""
    features = _features(schema)
    return {
        field.name: Kind.MEDIA if _is_media_feature(features.get(field.name)) else _kind(field.type) for field in schema
    }


def class_names(schema) -> dict[str, list[str]]:
    """Names of the classes of each column that Hugging Face calls a class label."""
    return {
        column: [str(label) for label in feature["names"]]
        for column, feature in _features(schema).items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
    }


def _kind(type_) -> Kind:
    import pyarrow

    types = pyarrow.types
    if isinstance(type_, pyarrow.BaseExtensionType):
        return _kind(type_.storage_type)
    if types.is_dictionary(type_) or _is_list(types, type_):
        return _kind(type_.value_type)
    if types.is_struct(type_):
        # An encoded image or sound is {"bytes", "path"}; a list of them may be stored as lists of bytes and paths.
        parts = {type_.field(i).name: _kind(type_.field(i).type) for i in range(type_.num_fields)}
        if {"bytes", "path"} <= parts.keys() or parts.get("bytes") is Kind.BYTES:
            return Kind.MEDIA
        return next((kind for kind in Kind if kind in parts.values()), Kind.OTHER)
    if types.is_binary(type_) or types.is_large_binary(type_) or types.is_fixed_size_binary(type_):
        return Kind.BYTES
    if types.is_string(type_) or types.is_large_string(type_):
        return Kind.TEXT
    return Kind.BYTES if str(type_) == "binary_view" else Kind.TEXT if str(type_) == "string_view" else Kind.OTHER


def _is_list(types, type_) -> bool:
    return types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_)


def _features(schema) -> dict[str, Any]:
    """Hugging Face's description of the columns, which is only in the metadata of the schema; empty without one."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _is_media_feature(feature: Any) -> bool:
    """Whether a feature is an image, video or sound, or a list of them, which has been written in three ways."""
    if isinstance(feature, list):
        return any(_is_media_feature(entry) for entry in feature)
    if not isinstance(feature, dict):
        return False
    return feature.get("_type") in _MEDIA_FEATURES or _is_media_feature(feature.get("feature"))
