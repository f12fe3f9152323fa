"""Writes exact batches of a stream to an NPZ file, for people who check what training reads."""

import json
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import tqdm
from etils import epath

from janus_jax.data.stream import Stream


def dump_batches(stream: Stream, path: epath.Path, num_batches: int) -> int:
    """Writes the next batches of the stream; returns the number of rows in each.

    The file holds every field of the batches as an array [batches, rows, ...], and `keys` [batches, rows], the keys of
    a row's samples as JSON. The arrays grow on disk, because the pixels of all batches may exceed the memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        arrays: dict[str, np.memmap] = {}
        keys: list[list[str]] = []
        for i in tqdm.trange(num_batches, desc="dumping", unit="batch"):
            batch, row_keys = stream.next_with_keys()
            keys.append([json.dumps(row) for row in row_keys])
            for name, values in batch._asdict().items():
                if values is None:
                    continue
                if name not in arrays:
                    file = Path(folder) / f"{name}.npy"
                    arrays[name] = np.lib.format.open_memmap(file, "w+", values.dtype, (num_batches, *values.shape))
                arrays[name][i] = values
        np.save(Path(folder) / "keys.npy", np.array(keys))
        for array in arrays.values():
            array.flush()
        with path.open("wb") as target, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for file in sorted(Path(folder).iterdir()):
                archive.write(file, file.name)
    return len(keys[0])
