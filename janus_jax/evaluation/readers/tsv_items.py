"""Rows of VLMEvalKit's TSV files, and of MMBench's own, as questions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.readers.records import Item
from janus_jax.evaluation.readers.row_items import DEVELOPMENT, SEED_TYPES, mmbench_item, mmmu_item, options_of
from janus_jax.evaluation.readers.tsv import Row, read_rows
from janus_jax.evaluation.scores.yes_no import MME_COGNITION, MME_PERCEPTION, POPE_SPLITS

Reader = Callable[[Sequence[Row]], list[Item]]


def read_pope(rows: Sequence[Row]) -> list[Item]:
    """Each pair of image and question once, with the splits that ask it."""
    items = []
    for row in rows:
        splits = row.record.text("category").split(",")
        if not set(splits) <= set(POPE_SPLITS):
            raise row.record.error("category", f"names of {', '.join(POPE_SPLITS)} with commas between them")
        gold = row.record.one_of("answer", ("yes", "no"))
        items.append(_item(row, gold, {"splits": sorted(splits, key=POPE_SPLITS.index)}))
    return items


def read_mme(rows: Sequence[Row]) -> list[Item]:
    items, counts = [], dict.fromkeys((*MME_PERCEPTION, *MME_COGNITION), 0)
    for row in rows:
        task = row.record.one_of("category", tuple(counts))
        gold = row.record.one_of("answer", ("yes", "no"))
        path = row.record.optional("image_path") or _cluster(row)
        fields = {"task": task, "image": path.rsplit("/", 1)[-1]}
        items.append(
            Item(f"{task}/{counts[task]}", row.record.text("question"), row.images, gold, f"{task}/{path}", fields)
        )
        counts[task] += 1
    return items


def read_mmbench(rows: Sequence[Row]) -> list[Item]:
    return [mmbench_item(row.record, row.images) for row in rows]


def read_seed(rows: Sequence[Row]) -> list[Item]:
    items = []
    for row in rows:
        options = options_of(row.record)
        fields = {"options": options, "type": row.record.one_of("category", SEED_TYPES), "part": "image"}
        items.append(_item(row, row.record.one_of("answer", tuple(options)), fields))
    return items


def read_gqa(rows: Sequence[Row]) -> list[Item]:
    return [_item(row, row.record.text("answer"), {}) for row in rows]


def read_mmmu(rows: Sequence[Row]) -> list[Item]:
    """Questions of the development split are left out of a file that also holds those of another one."""
    splits = [row.record.optional("split") for row in rows]
    items = []
    for row, split in zip(rows, splits, strict=True):
        name = row.record.optional("id") or row.record.name("index")
        item = mmmu_item(row.record, name, row.images, options_of(row.record))
        left_out = split == DEVELOPMENT and set(splits) != {DEVELOPMENT}
        items.append(item._replace(fields={**item.fields, "part": DEVELOPMENT}) if left_out else item)
    return items


def read_mmvet(rows: Sequence[Row]) -> list[Item]:
    items = []
    for row in rows:
        name = row.record.optional("question_id") or f"v1_{row.record.name('index')}"
        kinds = (row.record.optional("capability") or row.record.optional("category") or "unknown").split(",")
        items.append(
            Item(name, row.record.text("question"), row.images, row.record.text("answer"), name, {"type": kinds})
        )
    return items


def read_textvqa(rows: Sequence[Row]) -> list[Item]:
    return [_item(row, list(map(str, row.record.literal_list("answer"))), {}) for row in rows]


def read_chartqa(rows: Sequence[Row]) -> list[Item]:
    items = []
    for row in rows:
        answer = row.record.text("answer")
        gold = list(map(str, row.record.literal_list("answer"))) if answer.startswith(("['", '["')) else [answer]
        split = row.record.one_of("split", ("test_human", "test_augmented")).removeprefix("test_")
        items.append(_item(row, gold, {"split": split, "image": _cluster(row)}))
    return items


def read_captions(rows: Sequence[Row]) -> list[Item]:
    return [
        Item(row.record.name("index"), "", row.images, list(map(str, row.record.literal_list("answer"))), _cluster(row))
        for row in rows
    ]


READERS: Mapping[str, Reader] = {
    "pope": read_pope,
    "mme": read_mme,
    "mmbench": read_mmbench,
    "seed": read_seed,
    "gqa": read_gqa,
    "mmmu": read_mmmu,
    "mmvet": read_mmvet,
    "textvqa": read_textvqa,
    "chartqa": read_chartqa,
    "coco_captions": read_captions,
}


def read_items(benchmark: str, path: epath.Path) -> list[Item]:
    """The questions of a TSV file. Raises UserError."""
    rows = read_rows(path)
    for row in rows:
        if not row.images:
            raise UserError(f"{row.record.origin}: field 'image' is empty, expected base64 or the index of a row")
    return READERS[benchmark](rows)


def _cluster(row: Row) -> str:
    return row.images[0].name


def _item(row: Row, gold: Any, fields: Mapping[str, Any]) -> Item:
    return Item(row.record.name("index"), row.record.text("question"), row.images, gold, _cluster(row), fields)
