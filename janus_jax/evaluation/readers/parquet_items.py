"""Rows of Hugging Face parquet files as questions, recognised by their columns: lmms-lab's copies, the Hub's MMMU, and
HuggingFaceM4's ChartQA and MMBench."""

from collections.abc import Callable, Mapping, Sequence

from janus_jax.errors import UserError
from janus_jax.evaluation.readers.parquet import ParquetImage, Table, content_names, has_lists
from janus_jax.evaluation.readers.records import Item, Record
from janus_jax.evaluation.readers.row_items import (
    base_index,
    gqa_item,
    mmbench_item,
    mmmu_item,
    seed_item,
    textvqa_item,
)
from janus_jax.evaluation.scores.yes_no import MME_COGNITION, MME_PERCEPTION, POPE_SPLITS

Reader = Callable[[Mapping[str, Table]], list[Item]]

IMAGE = "image"
MMMU_IMAGES = tuple(f"image_{number}" for number in range(1, 8))


def read_pope(tables: Mapping[str, Table]) -> list[Item]:
    items = []
    for row, record in _rows(tables["rows"], ("question_id", "question", "answer", "image_source", "category")):
        split, name = record.one_of("category", POPE_SPLITS), record.text("image_source")
        gold = record.one_of("answer", ("yes", "no"))
        question_id = f"{split}/{record.name('question_id')}"
        fields = {"splits": [split]}
        items.append(Item(question_id, record.text("question"), _image(tables, name, row), gold, name, fields))
    return items


def read_mme(tables: Mapping[str, Table]) -> list[Item]:
    items, counts = [], dict.fromkeys((*MME_PERCEPTION, *MME_COGNITION), 0)
    for row, record in _rows(tables["rows"], ("question_id", "question", "answer", "category")):
        task, name = record.one_of("category", tuple(counts)), record.name("question_id")
        gold = record.one_of("answer", ("yes", "no"))
        fields = {"task": task, "image": name.rsplit("/", 1)[-1]}
        images = _image(tables, name, row)
        items.append(Item(f"{task}/{counts[task]}", record.text("question"), images, gold, name, fields))
        counts[task] += 1
    return items


def read_mmbench(tables: Mapping[str, Table]) -> list[Item]:
    columns = [column for column in tables["rows"].columns() if column != IMAGE]
    return [
        mmbench_item(record, _image(tables, base_index(record), row)) for row, record in _rows(tables["rows"], columns)
    ]


def read_seed(tables: Mapping[str, Table]) -> list[Item]:
    columns = [column for column in tables["rows"].columns() if column not in (IMAGE, "segment")]
    items = []
    for row, record in _rows(tables["rows"], columns):
        items.append(seed_item(record, _image(tables, record.text("data_id"), row)))
    return items


def read_vqav2(tables: Mapping[str, Table]) -> list[Item]:
    items = []
    columns = ("question_id", "question", "image_id", "answers", "answer_type", "question_type")
    for row, record in _rows(tables["rows"], columns):
        gold, fields, answers = None, {}, record.values.get("answers")
        if answers:
            gold = [Record(answer, f"{record.origin}: answers").text("answer") for answer in answers]
            fields = {name: record.text(name) for name in ("answer_type", "question_type")}
        name = record.name("image_id")
        images = _image(tables, name, row)
        items.append(Item(record.name("question_id"), record.text("question"), images, gold, name, fields))
    return items


def read_gqa(tables: Mapping[str, Table]) -> list[Item]:
    """Joins the two configs of the copy, questions and images, which are in different orders."""
    pictures = tables["images"]
    rows = {record.name("id"): row for row, record in _rows(pictures, ("id",))}
    items = []
    columns = ("id", "imageId", "question", "answer", "isBalanced", "types")
    for _, record in _rows(tables["rows"], columns):
        name = record.name("imageId")
        if name not in rows:
            raise UserError(f"{pictures.folder}: no image has the id {name}, which {record.origin} names")
        images = (ParquetImage(name, pictures, rows[name], IMAGE),)
        items.append(gqa_item(record.name("id"), record, images))
    return items


def read_mmmu(tables: Mapping[str, Table]) -> list[Item]:
    table = tables["rows"]
    columns = [column for column in table.columns() if column not in MMMU_IMAGES]
    items = []
    present = [table.filled(column) for column in MMMU_IMAGES if column in table.columns()]
    for row, record in _rows(table, columns):
        name = record.name("id")
        images = tuple(
            ParquetImage(f"{name}_{number + 1}", table, row, MMMU_IMAGES[number])
            for number, found in enumerate(present)
            if found[row]
        )
        options = dict(zip("ABCDEFGHIJKLMN", map(str, record.literal_list("options")), strict=False))
        items.append(mmmu_item(record, name, images, options))
    return items


def read_mmvet(tables: Mapping[str, Table]) -> list[Item]:
    items = []
    for row, record in _rows(tables["rows"], ("question_id", "question", "answer", "capability")):
        name = record.name("question_id")
        capability = record.values.get("capability")
        kinds = record.texts("capability") if isinstance(capability, list) else record.text("capability").split(",")
        images = _image(tables, name, row)
        items.append(Item(name, record.text("question"), images, record.text("answer"), name, {"type": kinds}))
    return items


def read_textvqa(tables: Mapping[str, Table]) -> list[Item]:
    items = []
    for row, record in _rows(tables["rows"], ("image_id", "question_id", "question", "answers")):
        items.append(textvqa_item(record, _image(tables, record.name("image_id"), row)))
    return items


def read_chartqa(tables: Mapping[str, Table]) -> list[Item]:
    """lmms-lab's columns, or HuggingFaceM4's with several labels; neither names the images."""
    names = content_names(tables["rows"], IMAGE)
    m4 = "human_or_machine" in tables["rows"].columns()
    columns = ("query", "label", "human_or_machine") if m4 else ("type", "question", "answer")
    items = []
    for row, record in _rows(tables["rows"], columns):
        if m4:
            if record.values.get("human_or_machine") not in (0, 1):
                raise record.error("human_or_machine", "0 (human) or 1 (machine)")
            split = ("human", "augmented")[record.values["human_or_machine"]]
            question, gold = record.text("query"), record.texts("label")
        else:
            split = record.one_of("type", ("human_test", "augmented_test")).removesuffix("_test")
            question, gold = record.text("question"), [record.text("answer")]
        images, fields = _image(tables, names[row], row), {"split": split, "image": names[row]}
        items.append(Item(str(row), question, images, gold, names[row], fields))
    return items


def read_coco_captions(tables: Mapping[str, Table]) -> list[Item]:
    """The `question_id` of lmms-lab's copy is a file name such as COCO_val2014_000000391895.jpg."""
    items = []
    for row, record in _rows(tables["rows"], ("question_id", "answer")):
        name = record.name("question_id")
        number = name.rsplit(".", 1)[0].rsplit("_", 1)[-1].lstrip("0") or name
        items.append(Item(number, "", _image(tables, name, row), record.texts("answer"), name, {}))
    return items


def read_flickr30k(tables: Mapping[str, Table]) -> list[Item]:
    items = []
    for row, record in _rows(tables["rows"], ("img_id", "caption", "filename")):
        name = record.text("filename")
        items.append(Item(record.name("img_id"), "", _image(tables, name, row), record.texts("caption"), name, {}))
    return items


READERS: Mapping[str, Reader] = {
    "pope": read_pope,
    "mme": read_mme,
    "mmbench": read_mmbench,
    "seed": read_seed,
    "vqav2": read_vqav2,
    "gqa": read_gqa,
    "mmmu": read_mmmu,
    "mmvet": read_mmvet,
    "textvqa": read_textvqa,
    "chartqa": read_chartqa,
    "coco_captions": read_coco_captions,
    "flickr30k": read_flickr30k,
}


def benchmarks_with_columns(path: str, columns: Sequence[str]) -> list[str]:
    """The benchmarks whose rows have these columns; "gqa_images" for the images of GQA."""
    have = set(columns)

    def has(*names: str) -> bool:
        return have.issuperset(names)

    fits = {
        "pope": has("question_id", "question", "answer", "image_source", "category"),
        "mme": has("question_id", "question", "answer", "category", IMAGE) and not has("image_source"),
        "mmbench": has("index", "question", "A", "B", IMAGE),
        "seed": has("choice_a", "choice_b", "data_id", "question_id", "question_type_id"),
        "vqav2": has("question_id", "question", "image_id", "answers", "answer_type"),
        "gqa": has("id", "imageId", "question", "isBalanced", "types"),
        "gqa_images": have == {"id", IMAGE},
        "mmmu": has("id", "question", "options", "image_1", "answer"),
        "mmvet": has("question_id", "question", "answer", "capability"),
        "textvqa": has("image_id", "question_id", "question", "answers", "set_name"),
        "chartqa": has("query", "label", "human_or_machine") or have == {"type", "question", "answer", IMAGE},
        "coco_captions": has("question_id", "answer", IMAGE)
        and not have & {"category", "capability", "choice_a"}
        and has_lists(path, "answer"),
        "flickr30k": has("img_id", "caption", "filename", IMAGE),
    }
    return [name for name, fit in fits.items() if fit]


def _rows(table: Table, columns: Sequence[str]) -> list[tuple[int, Record]]:
    rows = list(enumerate(table.records(columns)))
    if not rows:
        raise UserError(f"{table.paths[0]}: no rows, expected one per question")
    return rows


def _image(tables: Mapping[str, Table], name: str, row: int) -> tuple[ParquetImage, ...]:
    return (ParquetImage(name, tables["rows"], row, IMAGE),)
