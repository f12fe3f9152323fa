"""The suite `data`: speed of the training stream, its resume time, memory, fill of the rows and ratio of the tasks.

The peers of the speed are a plain loop and a PyTorch DataLoader. All readers get the same records: 640 x 480 JPEG
photos with captions or answers, and texts. Readers are timed in turns, and the medians of the rounds are compared. A
reader with workers is first read until its prefetched batches are used up, and it is closed before the next reader is
timed. Needs the extra [test].
"""

import contextlib
import io
import itertools
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import PIL.Image
import tqdm

from benchmarks.photo_records import make_records
from benchmarks.result import Result
from janus_jax.batches import Modality
from janus_jax.data.mixture import Mixture, WeightedRecords
from janus_jax.data.packed_rows import packed_rows
from janus_jax.data.packing import IMAGE_FEATURES, PackedSample, assemble, join_blocks
from janus_jax.data.prompts import IMAGE_PLACEHOLDER, STYLES, Message
from janus_jax.data.record_reader import RecordSource, StoredRecord, open_records
from janus_jax.data.records import Record, write_records
from janus_jax.data.sample_builder import SampleBuilder, conversation
from janus_jax.data.stream import PREFETCH, RING_SLOTS, Stream, StreamOptions
from janus_jax.data.tokenizer import Tokenizer, train_tokenizer
from janus_jax.models.presets import JANUS_PRO_7B
from janus_jax.reports.batch_contents import summarize
from janus_jax.weights.tokenizer_files import write_hf_files

CORES = os.cpu_count() or 1
STYLE = STYLES["janus_pro"]
RATIO = {"understand": 2.0, "text": 3.0, "generate": 5.0}  # stage II
IMAGE_SIZE, IMAGE_TOKENS, ROW_LENGTH, SLOTS = 384, 576, 4096, 7
NUM_SHARDS, BINS = 8, 6  # as in configs/base.py
RECORDS = 96  # Number of different records of each task.
SOURCE_SIZE = 100_000  # Number of records that each source appears to have.
ROUNDS = 5
IMAGES = 400  # Number of images of each round and reader.
PEER_BATCH = 8
INDEX = 100_000_000  # Number of records in the source of the resume case.
DEPTH = 10_000_000  # Number of records read before the resume.
Read = Callable[[], int]  # Reads the next batch or row; returns its number of images.


def run() -> Iterator[Result]:
    """The results of all cases."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records = make_records(np.random.default_rng(0), RECORDS)
        texts = [message.text for record in records for message in record.messages]
        tokenizer = train_tokenizer(texts, 4096, extra_special_tokens=[STYLE.user, STYLE.assistant])
        for task in RATIO:
            write_records(folder / f"{task}.array_record", [record for record in records if record.task == task])
        write_hf_files(folder, JANUS_PRO_7B, tokenizer)
        yield from _against_plain_loop(folder, records, tokenizer)
        yield _against_data_loader(folder, records, tokenizer)
        yield from _resume(tokenizer)
        yield from _mixture(folder, tokenizer)


def _against_plain_loop(folder: Path, records: Sequence[Record], tokenizer: Tokenizer) -> list[Result]:
    """Speed of packed rows of all tasks, relative to two loops in one thread that pack samples one after the other.

    The plain loop resizes whole images and then crops them, as published loaders do. The second loop uses the functions
    of the stream, so that comparison shows what the worker processes gain and cost.
    """

    @contextlib.contextmanager
    def plain() -> Iterator[Read]:
        with mock.patch("janus_jax.data.sample_builder.generation_pixels", _resize_then_crop), same() as read:
            yield read

    @contextlib.contextmanager
    def same() -> Iterator[Read]:
        rows = _plain_rows(records, tokenizer)
        yield lambda: next(rows)

    def compare(case: str, loop: Callable[[], contextlib.AbstractContextManager[Read]], bar: Any) -> Result:
        ours, theirs = _interleaved(case, lambda: _our_reader(folder, tokenizer, RATIO), loop)
        details = f"{ours:.0f} images/s, {CORES} workers", f"{theirs:.0f} images/s, one thread"
        return Result(f"packed rows of all tasks, against a {case}", ours / theirs, "x", bar, *details)

    def limit(case: str) -> Result:
        """How much faster the machine is at loops that hand over nothing, in as many processes as it has cores."""
        many, one = _interleaved(case, lambda: _loops_in_processes(records, tokenizer), same)
        details = f"{many:.0f} images/s, {CORES} processes", f"{one:.0f} images/s, one thread"
        return Result(f"{case}, against one", many / one, "x", None, *details)

    return [
        compare("plain PIL and NumPy loop", plain, (">=", 0.9 * CORES)),
        compare("loop of the stream's own functions", same, None),
        limit("loops of the stream's own functions in processes of their own"),
    ]


@contextlib.contextmanager
def _loops_in_processes(records: Sequence[Record], tokenizer: Tokenizer) -> Iterator[Read]:
    """`_plain_rows` in a process per core. They send the number of images of each row, and the rows are thrown away."""
    context = multiprocessing.get_context("spawn")
    counts = [context.Queue(PREFETCH) for _ in range(CORES)]
    processes = [context.Process(target=_send_counts, args=(records, tokenizer, queue)) for queue in counts]
    for process in processes:
        process.start()
    turns = itertools.cycle(counts)
    try:
        for _ in range(2 * PREFETCH * CORES):  # afterwards all are under way, and what they had sent is used up
            next(turns).get()
        yield lambda: next(turns).get()
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _send_counts(records: Sequence[Record], tokenizer: Tokenizer, counts: Any) -> None:
    for images in _plain_rows(records, tokenizer):
        counts.put(images)


def _resize_then_crop(image: PIL.Image.Image, size: int, *_: Any) -> np.ndarray:
    """Does the work of `generation_pixels` in two steps, as the paper describes it."""
    scale = size / min(image.size)
    width, height = (max(round(side * scale), size) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), PIL.Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def _against_data_loader(folder: Path, records: Sequence[Record], tokenizer: Tokenizer) -> Result:
    """Speed of questions about images. The peer pads its samples instead of packing them, and normalises to float32."""
    questions = [record for record in records if record.task == "understand"]
    ours, theirs = _interleaved(
        "DataLoader",
        lambda: _our_reader(folder, tokenizer, {"understand": 1.0}),
        lambda: _torch_reader(folder, questions),
    )
    return Result(
        "questions about images, against a DataLoader with transformers' processor",
        ours / theirs,
        "x",
        (">=", 1.5),
        f"{ours:.0f} images/s, {CORES} workers",
        f"{theirs:.0f} images/s, {CORES} workers",
    )


def _resume(tokenizer: Tokenizer) -> list[Result]:
    """Time from a state at sample DEPTH of a source of INDEX records to the first batch, and the memory for it."""
    with contextlib.closing(_index_stream(tokenizer)) as stream:
        next(stream)
        state = json.loads(json.dumps(stream.get_state()))
    for shard in state["shards"].values():
        shift = DEPTH // NUM_SHARDS - shard["cursors"]["text/0"]
        shard["cursors"]["text/0"] += shift
        shard["open"] = [[[name, place + shift] for name, place in row] for row in shard["open"]]
    with contextlib.closing(_index_stream(tokenizer)) as stream:
        start = time.monotonic()
        stream.set_state(state)
        next(stream)
        seconds = time.monotonic() - start
        workers = [_peak_bytes(process) for process in _children()]
    parent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return [
        Result(f"resume at sample {DEPTH:,} of {INDEX:,}, workers started", seconds, "s", ("<=", 5.0)),
        Result("peak memory of this process, all cases so far", parent / 2**30, "GiB", ("<=", 1.0)),
        Result("peak memory of a worker on that source", max(workers) / 2**30, "GiB", ("<=", 1.0)),
    ]


def _mixture(folder: Path, tokenizer: Tokenizer) -> list[Result]:
    """Fill of the rows, and how far the tasks' shares of the first 2,000 samples are from the ratio asked for."""
    batches, samples = [], 0
    with contextlib.closing(_open_stream(folder, tokenizer, RATIO)) as stream:
        while samples < 2000:
            batch = next(stream)
            batches.append(batch._replace(und_pixels=None, gen_pixels=None))
            samples += int(batch.segment_ids.max(axis=1).sum())
    summary = summarize(batches)
    total = sum(RATIO.values())
    error = max(abs(summary.samples[task] / samples - RATIO[task] / total) for task in RATIO)
    return [
        Result(f"fill of rows of {ROW_LENGTH} tokens", summary.used / summary.places, "of all places", (">=", 0.97)),
        Result(f"largest error of a task's share in {samples:,} samples", error, "of all samples", ("<=", 0.01)),
    ]


def _interleaved(
    name: str,
    ours: Callable[[], contextlib.AbstractContextManager[Read]],
    theirs: Callable[[], contextlib.AbstractContextManager[Read]],
) -> tuple[float, float]:
    """Median images per second of both readers, which are read in turns."""
    rates: tuple[list[float], list[float]] = ([], [])
    for _ in tqdm.trange(ROUNDS, desc=f"stream and {name}"):
        for reader, of_reader in zip((ours, theirs), rates, strict=True):
            with reader() as read:
                of_reader.append(_rate(read))
    return statistics.median(rates[0]), statistics.median(rates[1])


def _rate(read: Read) -> float:
    """Images per second of a reader that is warmed up."""
    start, images = time.monotonic(), 0
    while images < IMAGES:
        images += read()
    return images / (time.monotonic() - start)


@contextlib.contextmanager
def _our_reader(folder: Path, tokenizer: Tokenizer, ratio: dict[str, float]) -> Iterator[Read]:
    with contextlib.closing(_open_stream(folder, tokenizer, ratio, workers=CORES)) as stream:
        for _ in range(RING_SLOTS):  # afterwards its prefetched batches are used up and its memory is mapped
            next(stream)

        yield lambda: int((next(stream).modality > Modality.TEXT).sum()) // IMAGE_TOKENS


@contextlib.contextmanager
def _torch_reader(folder: Path, records: Sequence[Record]) -> Iterator[Read]:
    """A reader as the official inference code suggests it: a processor per sample, padded batches, worker processes."""
    import torch.utils.data
    from transformers import JanusProcessor

    class Questions(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.processor = JanusProcessor.from_pretrained(folder)

        def __len__(self) -> int:
            return 10**6

        def __getitem__(self, index: int) -> dict[str, Any]:
            record = records[index % len(records)]
            text, _ = conversation(record, STYLE)
            image = PIL.Image.open(io.BytesIO(record.images[0])).convert("RGB")
            text = text.replace(IMAGE_PLACEHOLDER, self.processor.image_token)
            output = self.processor(text=text, images=image, return_tensors="pt")
            return {name: value[0] for name, value in output.items()}

    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        ids = torch.nn.utils.rnn.pad_sequence([sample["input_ids"] for sample in samples], batch_first=True)
        return {"input_ids": ids, "pixel_values": torch.stack([sample["pixel_values"] for sample in samples])}

    loader = torch.utils.data.DataLoader(
        Questions(),
        batch_size=PEER_BATCH,
        num_workers=CORES,
        prefetch_factor=PREFETCH,
        collate_fn=collate,
        worker_init_fn=_one_thread,
    )
    batches = iter(loader)
    for _ in range(2 * PREFETCH * CORES):
        next(batches)
    yield lambda: len(next(batches)["pixel_values"])


def _one_thread(worker: int) -> None:
    """Limits a worker to one thread. That is PyTorch's default, stated here because the measurement depends on it."""
    import torch

    del worker
    torch.set_num_threads(1)


def _plain_rows(records: Sequence[Record], tokenizer: Tokenizer) -> Iterator[int]:
    """The same samples, packed into rows one after the other. Yields the number of images of each row."""
    builder = _builder(tokenizer)
    turns = [task for task, share in RATIO.items() for _ in range(int(share))]
    stored = {task: [record.serialize() for record in records if record.task == task] for task in RATIO}
    rng, used = np.random.default_rng(0), 0
    row: list[PackedSample] = []
    for count in itertools.count():
        task = turns[count % len(turns)]
        sample, _ = builder.build(Record.deserialize(stored[task][count % RECORDS]), rng)
        item = PackedSample(task, (), sample, "", ("", 0))
        if used + len(sample["tokens"]) > ROW_LENGTH:
            batch = join_blocks([assemble([row], ROW_LENGTH, IMAGE_FEATURES)], dict.fromkeys(IMAGE_FEATURES, SLOTS))
            yield int((batch["modality"] > Modality.TEXT).sum()) // IMAGE_TOKENS
            row, used = [], 0
        row.append(item)
        used += len(sample["tokens"])


class _Repeated(Sequence):
    """A few records that appear as a source of the usual size.

    Shuffling a tiny source would distort the measurement: it takes longer per index.
    """

    def __init__(self, source: RecordSource):
        self._source, self.pattern = source, source.pattern

    def __len__(self) -> int:
        return SOURCE_SIZE

    def __getitem__(self, index: Any) -> StoredRecord:
        return self._source[index % len(self._source)]


def _open_stream(folder: Path, tokenizer: Tokenizer, ratio: dict[str, float], workers: int = 0) -> Stream:
    sources = {task: [_Repeated(open_records(f"{folder}/{task}.array_record", task))] for task in ratio}
    return _stream(sources, ratio, tokenizer, workers)


def _stream(sources: Any, ratio: dict[str, float], tokenizer: Tokenizer, workers: int) -> Stream:
    mixture = Mixture(
        sources={task: [WeightedRecords(source) for source in records] for task, records in sources.items()},
        ratio=ratio,
    )
    options = StreamOptions(batch_size=NUM_SHARDS, num_shards=NUM_SHARDS, seed=0, max_drop_rate=0.0, workers=workers)
    return packed_rows(mixture, _builder(tokenizer), BINS, options)


class _HugeSource(Sequence):
    """A source of INDEX documents, which are made when they are read."""

    pattern = "in memory"

    def __len__(self) -> int:
        return INDEX

    def __getitem__(self, index: Any) -> StoredRecord:
        words = " ".join(f"word{(index * 31 + i) % 997}" for i in range(150))
        record = Record(task="text", messages=(Message("assistant", words),), key=str(index))
        return StoredRecord(f"huge:{index}", record.serialize())


def _index_stream(tokenizer: Tokenizer) -> Stream:
    return _stream({"text": [_HugeSource()]}, {"text": 1.0}, tokenizer, CORES)


def _builder(tokenizer: Tokenizer) -> SampleBuilder:
    return SampleBuilder(
        tokenizer=tokenizer,
        style=STYLE,
        understanding_size=IMAGE_SIZE,
        understanding_tokens=IMAGE_TOKENS,
        generation_size=IMAGE_SIZE,
        generation_tokens=IMAGE_TOKENS,
        num_codes=JANUS_PRO_7B.vq.num_codes,
        row_length=ROW_LENGTH,
        understanding_slots=SLOTS,
        generation_slots=SLOTS,
        supervision="all",
        drop_condition=0.1,
    )


def _children() -> list[int]:
    """Ids of the living worker processes of this process."""
    return [process.pid for process in multiprocessing.active_children() if process.pid]


def _peak_bytes(process: int) -> int:
    """Peak resident memory of a process, from /proc."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
