"""Questions of benchmarks whose rows have the same fields in several formats."""

import string
from collections.abc import Mapping
from typing import Any

from janus_jax.evaluation.benchmark import ImageReference
from janus_jax.evaluation.readers.records import Item, Record
from janus_jax.evaluation.scores.choices import ROTATION

Images = tuple[ImageReference, ...]

SEED_TYPES = (
    "Scene Understanding",
    "Instance Identity",
    "Instance Attributes",
    "Instance Location",
    "Instances Counting",
    "Spatial Relation",
    "Instance Interaction",
    "Visual Reasoning",
    "Text Understanding",
    "Action Recognition",
    "Action Prediction",
    "Procedure Understanding",
)
# Values of `fields["part"]` of questions that are read and not asked.
VIDEO, DEVELOPMENT = "video", "dev"


def seed_item(row: Record, images: Images) -> Item:
    """A question of SEED-Bench from its JSON record or a row of parquet."""
    kind = row.values.get("question_type_id")
    if not isinstance(kind, int) or not 1 <= kind <= len(SEED_TYPES):
        raise row.error("question_type_id", f"a number from 1 to {len(SEED_TYPES)}")
    options = {letter: row.text(f"choice_{letter.lower()}") for letter in "ABCD"}
    part = row.one_of("data_type", ("image", VIDEO))
    fields = {"options": options, "type": SEED_TYPES[kind - 1], "part": part}
    gold = row.one_of("answer", tuple(options))
    return Item(row.name("question_id"), row.text("question"), images, gold, row.text("data_id"), fields)


def gqa_item(name: str, row: Record, images: Images) -> Item:
    """A question of GQA from its JSON record or a row of parquet."""
    types = Record(row.values.get("types"), f"{row.origin}: types")
    if not isinstance(row.values.get("isBalanced"), bool):
        raise row.error("isBalanced", "true or false")
    fields = {
        "balanced": row.values["isBalanced"],
        "structural": types.text("structural"),
        "semantic": types.text("semantic"),
    }
    return Item(name, row.text("question"), images, row.text("answer"), row.name("imageId"), fields)


def textvqa_item(row: Record, images: Images) -> Item:
    """A question of TextVQA from its JSON record or a row of parquet."""
    return Item(row.name("question_id"), row.text("question"), images, row.texts("answers"), row.name("image_id"), {})


def base_index(row: Record) -> str:
    """The index of the row of MMBench that a rotated row repeats."""
    name = row.name("index")
    if not name.isdecimal():
        raise row.error("index", "a whole number")
    return str(int(name) % ROTATION)


def mmbench_item(row: Record, images: Images) -> Item:
    """A row of MMBench."""
    name, base = row.name("index"), base_index(row)
    options = options_of(row)
    if not options:
        raise row.error("A", "the text of an option")
    gold = row.optional("answer") or None
    if gold is not None and gold not in options:
        raise row.error("answer", f"one of {', '.join(options)}")
    fields = {
        "options": options,
        "hint": row.optional("hint"),
        "base": base,
        "first_pass": int(name) < ROTATION,
        "category": row.optional("category"),
        "l2_category": row.optional("l2-category") or row.optional("L2-category"),
        "source": row.optional("source"),
        "split": row.optional("split"),
    }
    return Item(name, row.text("question"), images, gold, base, fields)


def mmmu_item(row: Record, name: str, images: Images, options: Mapping[str, str]) -> Item:
    """A question of MMMU; the answer "?" of the test split means that it is not public."""
    gold: Any = row.text("answer")
    if gold.startswith("["):
        gold = list(map(str, row.literal_list("answer")))
    elif gold in ("", "?"):
        gold = None
    elif options and gold not in options:
        raise row.error("answer", f"one of {', '.join(options)}")
    parts = name.split("_")
    subject = "_".join(parts[1:-1]) or row.optional("category") or "unknown"
    return Item(name, row.text("question"), images, gold, name, {"options": dict(options), "subject": subject})


def options_of(row: Record) -> dict[str, str]:
    """The options that a row has, by letter."""
    texts = {letter: row.optional(letter) for letter in string.ascii_uppercase if letter in row.values}
    return {letter: text for letter, text in texts.items() if text}
