"""Official files of benchmarks: JSON, JSON lines and text. Formats of MMBench and MMMU are in the files beside this."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.readers import records
from janus_jax.evaluation.readers.image_folders import ImageFolders
from janus_jax.evaluation.readers.records import Item, Record
from janus_jax.evaluation.readers.row_items import gqa_item, seed_item, textvqa_item
from janus_jax.evaluation.scores.yes_no import MME_COGNITION, MME_PERCEPTION, POPE_SPLITS

Files = Mapping[str, epath.Path]  # role -> path
Reader = Callable[[Files, ImageFolders], list[Item]]


def read_pope(files: Files, folders: ImageFolders) -> list[Item]:
    items = []
    for split in POPE_SPLITS:
        if split not in files:
            continue
        lines = list(records.read_json_lines(files[split]))
        if not lines:
            raise UserError(f"{files[split]}: empty, expected one question per line")
        images = folders.images(files[split], ("val2014",), [line.text("image") for line in lines])
        for line, image in zip(lines, images, strict=True):
            items.append(
                Item(
                    f"{split}/{line.name('question_id')}",
                    line.text("text"),
                    (image,),
                    line.one_of("label", ("yes", "no")),
                    image.name.rsplit(".", 1)[0],
                    {"splits": [split]},
                )
            )
    return items


def read_mme(files: Files, folders: ImageFolders) -> list[Item]:
    """`<task>.txt` with image, question and Yes or No in columns; the images lie in a folder named like the task."""
    items = []
    for task in (*MME_PERCEPTION, *MME_COGNITION):
        if task not in files:
            continue
        rows = _mme_rows(files[task])
        names = [row.text("image") for row in rows]  # the same in several tasks
        images = folders.below(task).images(files[task], (task, "images"), names)
        for number, (row, image) in enumerate(zip(rows, images, strict=True)):
            items.append(
                Item(
                    f"{task}/{number}",
                    row.text("question"),
                    (image,),
                    row.one_of("answer", ("yes", "no")),
                    f"{task}/{image.name}",
                    {"task": task, "image": image.name},
                )
            )
    return items


def _mme_rows(path: epath.Path) -> list[Record]:
    rows = []
    for number, line in enumerate(records.read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        cells = line.rstrip("\r\t").split("\t")
        if len(cells) != 3:
            raise UserError(f"{path}: line {number} has {len(cells)} columns, expected image, question and answer")
        rows.append(Record(dict(zip(("image", "question", "answer"), cells, strict=True)), f"{path}: line {number}"))
    if not rows:
        raise UserError(f"{path}: empty, expected one question per line")
    return rows


def read_seed(files: Files, folders: ImageFolders) -> list[Item]:
    path = files["questions"]
    rows = records.records_of(path, records.read_json(path), "questions")
    names = [row.text("data_id") for row in rows]
    images = folders.images(path, ("SEED-Bench-image",), names)
    return [seed_item(row, (image,)) for row, image in zip(rows, images, strict=True)]


def read_vqav2(files: Files, folders: ImageFolders) -> list[Item]:
    path = files["questions"]
    rows = records.records_of(path, records.read_json(path), "questions")
    annotations = _vqa_annotations(files["annotations"]) if "annotations" in files else None
    subtype = path.name.split("_")[3]  # v2_OpenEnded_mscoco_val2014_questions.json
    folder = subtype.replace("test-dev", "test")
    files_ = [f"COCO_{folder}_{row.name('image_id').zfill(12)}.jpg" for row in rows]
    images = folders.images(path, (folder,), files_)
    items = []
    for row, image in zip(rows, images, strict=True):
        name = row.name("question_id")
        if annotations is not None and name not in annotations:
            raise UserError(f"{files['annotations']}: question_id {name} of {path.name} is missing")
        gold, fields = (None, {}) if annotations is None else annotations[name]
        items.append(Item(name, row.text("question"), (image,), gold, row.name("image_id"), fields))
    return items


def vqav2_ids(path: epath.Path) -> list[str]:
    """The ids of a file of questions of VQAv2."""
    return [row.name("question_id") for row in records.records_of(path, records.read_json(path), "questions")]


def _vqa_annotations(path: epath.Path) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Answers and types of each question. Equal texts share memory: there are two million answers."""

    def shorten(values: dict[str, Any]) -> Any:
        answer = values.get("answer")
        return sys.intern(answer) if isinstance(answer, str) and "answers" not in values else values

    rows = records.records_of(path, records.read_json(path, shorten), "annotations")
    found: dict[str, tuple[list[str], dict[str, str]]] = {}
    kinds: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        kind = row.text("answer_type"), row.text("question_type")
        fields = kinds.setdefault(kind, {"answer_type": kind[0], "question_type": kind[1]})
        name = row.name("question_id")
        if name in found:
            raise row.error("question_id", "each question once")
        found[name] = row.texts("answers"), fields
    return found


def read_gqa(files: Files, folders: ImageFolders) -> list[Item]:
    path = files["questions"]
    content = Record(records.read_json(path), str(path)).values
    rows = {name: Record(values, f"{path}: question {name}") for name, values in content.items()}
    if not rows:
        raise UserError(f"{path}: no questions, expected an object with one field per question")
    images = folders.images(path, ("images",), [f"{row.name('imageId')}.jpg" for row in rows.values()])
    return [gqa_item(name, row, (image,)) for (name, row), image in zip(rows.items(), images, strict=True)]


def read_textvqa(files: Files, folders: ImageFolders) -> list[Item]:
    path = files["questions"]
    rows = records.records_of(path, records.read_json(path), "data")
    names = [f"{row.name('image_id')}.jpg" for row in rows]
    images = folders.images(path, ("train_images", "test_images"), names)
    return [textvqa_item(row, (image,)) for row, image in zip(rows, images, strict=True)]


def read_chartqa(files: Files, folders: ImageFolders) -> list[Item]:
    items: list[Item] = []
    for split in ("human", "augmented"):
        if split not in files:
            continue
        rows = records.records_of(files[split], records.read_json(files[split]))
        images = folders.images(files[split], ("png",), [row.text("imgname") for row in rows])
        for row, image in zip(rows, images, strict=True):
            label = row.values.get("label")
            gold = row.texts("label") if isinstance(label, list) else [row.text("label")]
            fields = {"split": split, "image": image.name}
            items.append(Item(str(len(items)), row.text("query"), (image,), gold, image.name, fields))
    return items


def read_mmvet(files: Files, folders: ImageFolders) -> list[Item]:
    path = files["questions"]
    content = Record(records.read_json(path), str(path)).values
    rows = {name: Record(values, f"{path}: question {name}") for name, values in content.items()}
    images = folders.images(path, ("images",), [row.text("imagename") for row in rows.values()])
    return [
        Item(name, row.text("question"), (image,), row.text("answer"), image.name, {"type": row.texts("capability")})
        for (name, row), image in zip(rows.items(), images, strict=True)
    ]


def read_karpathy(files: Files, folders: ImageFolders) -> list[Item]:
    """Captions of the test split of `dataset_coco.json` or `dataset_flickr30k.json`."""
    path = files["questions"]
    rows = [row for row in records.records_of(path, records.read_json(path), "images") if row.text("split") == "test"]
    if not rows:
        raise UserError(f"{path}: no image has the split 'test'")
    names = ("val2014", "flickr30k-images", "flickr30k_images", "images")
    images = folders.images(path, names, [row.text("filename") for row in rows])
    items = []
    for row, image in zip(rows, images, strict=True):
        sentences = records.records_of(path, row.values.get("sentences"))
        name = row.name("cocoid" if "cocoid" in row.values else "imgid")
        items.append(Item(name, "", (image,), [sentence.text("raw") for sentence in sentences], image.name, {}))
    return items


def read_coco_captions(files: Files, folders: ImageFolders) -> list[Item]:
    """Captions of all images of `captions_val2014.json`."""
    path = files["questions"]
    content = records.read_json(path)
    captions: dict[str, list[str]] = {}
    for row in records.records_of(path, content, "annotations"):
        captions.setdefault(row.name("image_id"), []).append(row.text("caption"))
    rows = records.records_of(path, content, "images")
    images = folders.images(path, ("val2014",), [row.text("file_name") for row in rows])
    items = []
    for row, image in zip(rows, images, strict=True):
        name = row.name("id")
        if name not in captions:
            raise UserError(f"{path}: image {name} has no caption in 'annotations'")
        items.append(Item(name, "", (image,), captions[name], image.name, {}))
    return items


def read_captions(files: Files, folders: ImageFolders) -> list[Item]:
    """The Karpathy split, or COCO's own annotations."""
    karpathy = files["questions"].name.lower().startswith("dataset_")
    return (read_karpathy if karpathy else read_coco_captions)(files, folders)


READERS: Mapping[str, Reader] = {
    "pope": read_pope,
    "mme": read_mme,
    "seed": read_seed,
    "vqav2": read_vqav2,
    "gqa": read_gqa,
    "textvqa": read_textvqa,
    "chartqa": read_chartqa,
    "mmvet": read_mmvet,
    "coco_captions": read_captions,
    "flickr30k": read_karpathy,
}
