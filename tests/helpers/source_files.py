"""Small files in the public formats, whole and damaged."""

import collections
import io
import tarfile

import PIL.Image

from janus_jax.data.dropped_samples import DroppedSample, Note
from janus_jax.data.records import Record


def image(file_format="PNG", size=(8, 6), colour=(200, 10, 10), mode="RGB", **options):
    """The encoded bytes of an image of one colour."""
    buffer = io.BytesIO()
    PIL.Image.new(mode, size, colour).save(buffer, file_format, **options)
    return buffer.getvalue()


def tar(members, mode="w", **options):
    """Bytes of an archive of (name, bytes) pairs or TarInfo, in order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def read_all(source):
    """(records, dropped samples) of all units, each read on its own."""
    items = [item for unit in source.units() for item in source.read(unit)]
    return [item for item in items if isinstance(item, Record)], [
        item for item in items if isinstance(item, DroppedSample)
    ]


def turns(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def read_notes(source):
    """Note -> how often it comes, over all units."""
    items = [item for unit in source.units() for item in source.read(unit)]
    return dict(collections.Counter(item.text for item in items if isinstance(item, Note)))
