"""ImageNet: a folder per class, `train/<synset>/<name>.JPEG`, or one validation folder with a list of labels.

The caption of an image is the first name of its class. Names are not unique ("crane" is a bird and a machine), so keys
hold the synset, ImageNet's id of the class.
"""

import dataclasses
import os
import re
from collections.abc import Iterator

from janus_jax.data.dropped_samples import DroppedSample, Reason
from janus_jax.data.formats.base import MAX_IMAGE_BYTES, FileFormat, ReadItem, Unit, name
from janus_jax.data.formats.captions import CAPTION_TASKS, CaptionTasks, clean_caption
from janus_jax.data.formats.safe_paths import is_hidden, link_targets, read_below
from janus_jax.errors import UserError
from janus_jax.text import decode_text

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
UNIT_FILES = 1000
MAX_TABLE_BYTES = 256 << 20  # ImageNet's lists of training images have about 60 MB.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFolder(FileFormat):
    """Units are up to 1,000 entries of a class folder, in sorted order.

    Files with another suffix, files outside the class folders, and folders inside them are counted and not read. Hidden
    files and folders are ignored.
    """

    tasks_given = CAPTION_TASKS

    class_names: str = ""  # Path of a file with a line per class, `n01440764 tench, Tinca tinca`.
    # For a flat folder: path of a file with a line per image, `ILSVRC2012_val_00000001.JPEG n01751748`.
    labels: str = ""
    tasks: tuple[str, ...] = ("generate",)
    question: str = "What is in the image?"
    follow_links: str = "inside"

    def __post_init__(self) -> None:
        CaptionTasks(tasks=self.tasks, question=self.question)
        link_targets(self.follow_links, self.input)
        if not self.class_names:
            raise UserError(
                "--class_names is required by --format=imagenet: the path of a file of lines `synset name, other names`"
            )

    def units(self) -> list[Unit]:
        names = read_table(self.class_names, "class_names")
        units, found = [], False
        for root in self.input:
            if not os.path.isdir(root):
                raise UserError(f"--input={root}: not a folder")
            folders = [] if self.labels else sorted(entry.path for entry in _visible(root) if entry.is_dir())
            for folder in (root, *folders):
                if folder != root and name(folder) not in names:
                    raise UserError(f"--class_names={self.class_names}: has no line for the folder {folder}")
                entries = self._entries(folder)
                found |= any(is_image for _, is_image in entries)
                count = len(entries)
                units += [Unit(folder, i, min(i + UNIT_FILES, count)) for i in range(0, count, UNIT_FILES)]
        if not found:
            where = "" if self.labels else " below its class folders"
            raise UserError(f"--input={','.join(self.input)}: no images named *{', *'.join(SUFFIXES)}{where}")
        if self.labels:
            missing = set(read_table(self.labels, "labels").values()) - set(names)
            if missing:
                raise UserError(
                    f"--class_names={self.class_names}: has no line for the class {min(missing)} of --labels"
                )
        return units

    def _entries(self, folder: str) -> list[tuple[str, bool]]:
        """(name, whether it is an image to read) of all entries of a folder but class folders, sorted."""
        if folder in self.input and not self.labels:
            return sorted((entry.name, False) for entry in _visible(folder) if not entry.is_dir())
        return sorted((entry.name, entry.name.lower().endswith(SUFFIXES)) for entry in _visible(folder))

    def read(self, unit: Unit) -> Iterator[ReadItem]:
        names = read_table(self.class_names, "class_names")
        labels = read_table(self.labels, "labels") if self.labels else {}
        captions = CaptionTasks(tasks=self.tasks, question=self.question)
        targets = link_targets(self.follow_links, self.input)
        # The folder may be a link, but a link in it that leads to another folder is refused by default.
        for file, is_image in self._entries(unit.path)[unit.start : unit.stop]:
            if not is_image:
                yield DroppedSample(
                    f"{name(unit.path)}/{file}", Reason.UNREAD_FILE, "not an image file of a class folder"
                )
                continue
            synset = labels.get(file) or labels.get(os.path.splitext(file)[0]) if labels else name(unit.path)

            def pair(file: str = file, synset: str | None = synset) -> tuple[bytes, str]:
                caption = clean_caption(names[synset].split(",")[0] if synset else None, f"label of {file}")
                return read_below(unit.path, file, MAX_IMAGE_BYTES, targets), caption

            yield from captions.items(f"{name(unit.path)}/{file}" if not labels else f"{synset}/{file}", pair)


def read_table(path: str, option: str) -> dict[str, str]:
    """Maps the first word of every line to the rest of the line. Raises UserError that names the line."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_TABLE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"--{option}={path}: cannot be read ({error})") from error
    if len(data) > MAX_TABLE_BYTES:
        raise UserError(f"--{option}={path}: over {MAX_TABLE_BYTES} bytes, expected a list of names")
    table: dict[str, str] = {}
    for number, line in enumerate(decode_text(data, f"--{option}={path}").split("\n"), 1):
        match = re.fullmatch(r"([^\s,]+)[\s,]+(.*\S)\s*", line)
        if match and match[1] != "ImageId":  # The header of Kaggle's list.
            # Kaggle's list of labels has boxes too, `n03995372 85 1 499 272`.
            table[match[1]] = match[2] if option == "class_names" else match[2].split()[0]
        elif not match and line.strip():
            raise UserError(f"--{option}={path}: line {number} is {line.strip()[:80]!r}, expected two columns")
    return table


def _visible(folder: str) -> list[os.DirEntry]:
    return [entry for entry in os.scandir(folder) if not is_hidden(entry.name)]
