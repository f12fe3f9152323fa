import hashlib
import json
import os

import numpy as np
import pytest

from janus_jax.data.formats import memory
from janus_jax.data.formats.memory import Memory
from janus_jax.data.formats.registry import open_dataset
from janus_jax.data.preparation import writer
from janus_jax.data.preparation.job import Job, make_job
from janus_jax.data.preparation.output_folder import describe, done, finish, start
from janus_jax.data.preparation.record import LengthSettings, RecordSettings
from janus_jax.data.preparation.writer import prepare, write_part
from janus_jax.data.record_reader import open_records
from janus_jax.data.records import Record, write_records
from janus_jax.errors import UserError
from tests.helpers.tiny_data import BYTE_TOKENIZER, document, flat_png, generate, text, understand

RECORDS = tuple(
    record
    for i in range(10)
    for record in (
        understand("<image>\nWhat?", f"answer {i}", images=[flat_png(i)], key=f"u/{i}"),
        generate(f"caption {i}", flat_png(i + 100), key=f"g/{i}"),
        document(f"document {i}", key=f"d/{i}"),
    )
)
BAD = generate("c", b"garbage", key="bad")


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(memory, "UNIT_RECORDS", 4)


@pytest.fixture
def tokenizer(tmp_path):
    BYTE_TOKENIZER.save(tmp_path / "tokenizer.json")
    return str(tmp_path / "tokenizer.json")


def job(output, records=RECORDS, num_output_files=3, settings=None, **options) -> Job:
    source = Memory(name="test", records=tuple(records))
    return make_job(
        source, output, settings or RecordSettings(image_size=8), num_output_files=num_output_files, **options
    )


def files(folder):
    """Name -> content of everything that a user is given."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def read(folder, task):
    return [Record.deserialize(stored.data) for stored in open_records(f"{folder}/{task}-*.array_record", "x")]


def test_every_record_arrives_once_in_order_and_the_manifest_counts_it(tmp_path, tokenizer):
    lengths = LengthSettings(prompt_style="janus_pro_tiny", understanding_tokens=4, generation_tokens=4)
    output = tmp_path / "out"
    manifest = prepare(job(output, (*RECORDS, BAD), tokenizer=tokenizer, settings=RecordSettings(lengths=lengths)))
    for task in ("understand", "generate", "text"):
        records = read(output, task)
        assert [record.key for record in records] == [record.key for record in RECORDS if record.task == task]
        tokens = [record.tokens for record in records]
        assert manifest["tasks"][task] == {"files": 3, "records": 10, "tokens": sum(tokens)} and min(tokens) > 5
    assert manifest["drops"]["reasons"] == {"bad_image": 1} and manifest["drops"]["seen"] == 31
    assert manifest["drops"]["examples"][0][:2] == ["bad", "bad_image"]
    assert manifest == json.loads((output / "manifest.json").read_text())
    for file in manifest["files"]:
        data = (output / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert len(manifest["files"]) == 9 and not (output / ".incomplete").exists()


def test_content_does_not_depend_on_who_writes_the_shards_and_when(tmp_path):
    prepare(job(tmp_path / "a"))
    second = job(tmp_path / "b")
    for shard in reversed(start(second)):
        write_part(second, shard)
    write_part(second, 1)  # an engine may run a shard twice
    finish(second)
    assert files(tmp_path / "a") == files(tmp_path / "b")


class Killed(BaseException):
    """Like a signal, it is caught nowhere."""


@pytest.mark.parametrize("records_before_the_kill", [0, 1, 7, 15, 29])
def test_rerun_completes_an_interrupted_run_to_the_same_bytes(tmp_path, monkeypatch, records_before_the_kill):
    prepare(job(tmp_path / "whole"))
    count = 0

    def dying(record, *args):
        nonlocal count
        count += 1
        if count > records_before_the_kill:
            raise Killed
        return original(record, *args)

    original = writer.prepare_record
    monkeypatch.setattr(writer, "prepare_record", dying)
    with pytest.raises(Killed):
        prepare(job(tmp_path / "killed"))
    assert not (tmp_path / "killed" / "manifest.json").exists()
    monkeypatch.setattr(writer, "prepare_record", original)
    pending = start(job(tmp_path / "killed"))
    assert len(pending) == 3 - (records_before_the_kill >= 8) - (records_before_the_kill >= 20)
    prepare(job(tmp_path / "killed"))
    assert files(tmp_path / "whole") == files(tmp_path / "killed")


def test_finished_run_is_not_repeated_but_a_lost_or_cut_file_is_made_again(tmp_path):
    output = tmp_path / "out"
    prepare(job(output))
    before = files(output)
    assert start(job(output)) == []
    (output / "text-00001-of-00003.array_record").unlink()
    os.truncate(output / "understand-00002-of-00003.array_record", 100)
    assert start(job(output)) == [1, 2]
    prepare(job(output))
    assert files(output) == before


CHANGES = {
    "settings.image_size=8, now 16": dict(settings=RecordSettings(image_size=16)),
    "settings.max_aspect=32.0, now 5.0": dict(settings=RecordSettings(image_size=8, max_aspect=5.0)),
    "num_shards=3, now 2": dict(num_output_files=2),
    "image_tokenizer_sha256='', now 'abc'": dict(image_tokenizer="abc"),
    "source.sha256=": dict(records=RECORDS[::-1]),
}


@pytest.mark.parametrize(("name", "change"), CHANGES.items(), ids=CHANGES.keys())
def test_another_setting_is_refused_by_name(tmp_path, name, change):
    start(job(tmp_path / "out"))
    with pytest.raises(
        UserError, match=r"^--output=.*out: was begun with .*; use the same, or another folder$"
    ) as error:
        start(job(tmp_path / "out", **change))
    assert name in str(error.value)


def test_another_tokenizer_or_input_is_refused(tmp_path, tokenizer):
    write_records(tmp_path / "in.array_record", [text("q", "a")])

    def of_file(output="out"):
        source = open_dataset("array_record", str(tmp_path / "in.array_record"), {})
        return make_job(source, tmp_path / output, RecordSettings(), num_output_files=1, tokenizer=tokenizer)

    start(of_file())
    os.utime(tmp_path / "in.array_record", (0, 0))  # files of this format often keep their size
    with pytest.raises(UserError, match="was begun with input_sha256="):
        start(of_file())
    start(of_file("other"))
    BYTE_TOKENIZER.backend.add_tokens(["new"])
    BYTE_TOKENIZER.save(tokenizer)
    with pytest.raises(UserError, match="was begun with tokenizer_sha256="):
        start(of_file("other"))


def test_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match=r"^--output=.*: holds files that are not of this command"):
        start(job(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("half_written", [None, ".settings.json.partial"])
def test_a_run_killed_before_it_wrote_its_settings_can_be_repeated(tmp_path, half_written):
    (tmp_path / "progress").mkdir()
    if half_written:
        (tmp_path / "progress" / half_written).write_text("{")
    assert start(job(tmp_path)) == [0, 1, 2]


def test_folder_with_a_progress_of_its_own_is_left_alone(tmp_path):
    (tmp_path / "progress").mkdir()
    (tmp_path / "progress" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds files that are not of this command"):
        start(job(tmp_path))


def test_too_many_bad_samples_list_the_first_ten_and_leave_no_manifest(tmp_path):
    bad = [generate("c", b"garbage", key=f"bad/{i}") for i in range(20)]
    strict = job(tmp_path / "out", (*RECORDS, *bad), max_drop_rate=0.3)
    with pytest.raises(
        UserError, match=r"^--max_drop_rate=0\.3: 20 of 50 samples dropped; first: bad/0: bad_image"
    ) as error:
        prepare(strict)
    assert "bad/9" in str(error.value) and "bad/10" not in str(error.value)
    assert not (tmp_path / "out" / "manifest.json").exists()
    manifest = prepare(job(tmp_path / "out", (*RECORDS, *bad), max_drop_rate=0.5))  # the shards are kept
    assert manifest["drops"]["dropped"] == 20


def test_long_shard_of_bad_samples_is_stopped_early(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "EARLY_DROPS", 5)
    strict = job(tmp_path / "out", [BAD] * 100, num_output_files=1)
    with pytest.raises(UserError, match=r"5 of 5 samples dropped"):
        write_part(strict, start(strict)[0])


def test_other_tasks_are_left_out_and_counted(tmp_path):
    manifest = prepare(job(tmp_path / "out", settings=RecordSettings(tasks=("text",))))
    assert set(manifest["tasks"]) == {"text"} and manifest["other_tasks"] == 20
    assert manifest["drops"]["seen"] == 10


def encode(pixels):
    """The mean of each quarter: codes that depend on the picture."""
    assert pixels.shape[1:] == (8, 8, 3) and pixels.dtype == np.uint8
    return pixels.reshape(len(pixels), 2, 4, 2, 4, 3).mean(axis=(2, 4, 5)).reshape(len(pixels), 4).astype(np.int32)


@pytest.mark.parametrize("keep_images", [True, False])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_codes_belong_to_their_images_whatever_the_batch(tmp_path, keep_images, batch):
    settings = RecordSettings(image_size=8, code_size=8, code_batch=batch, keep_images=keep_images)
    shapes = set()

    def recording(pixels):
        shapes.add(len(pixels))
        return encode(pixels)

    prepare(job(tmp_path / "out", settings=settings), recording)
    records = read(tmp_path / "out", "generate")
    assert [record.code_array.tolist() for record in records] == [[i + 100] * 4 for i in range(10)]
    assert [record.key for record in records] == [f"g/{i}" for i in range(10)]
    assert {len(record.images) for record in records} == {int(keep_images)} and shapes == {batch}
    assert all(record.codes == b"" and record.images for record in read(tmp_path / "out", "understand"))


def test_errors_before_any_work(tmp_path):
    with pytest.raises(UserError, match=r"^--num_output_files=0"):
        job(tmp_path / "out", num_output_files=0)
    with pytest.raises(UserError, match=r"^--max_drop_rate=2"):
        job(tmp_path / "out", max_drop_rate=2)
    with pytest.raises(UserError, match=r"^--input: the files are empty"):
        job(tmp_path / "out", records=())
    with pytest.raises(UserError, match=r"nope\.json: not a readable tokenizer"):
        job(tmp_path / "out", tokenizer=str(tmp_path / "nope.json"))
    unfinished = job(tmp_path / "out")
    start(unfinished)
    with pytest.raises(UserError, match=r"part 0 was not written; run the command again"):
        finish(unfinished)
    assert done(unfinished) == (0, 0)
    write_part(unfinished, 1)
    assert done(unfinished) == (1, 12)


def lines(tmp_path, *values):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
    return open_dataset("text", str(tmp_path / "a.jsonl"), {})


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        ((), {}, "holds no sample"),
        (({"text": ""},), {}, r"1 samples dropped \(no_text 1\); first: a\.jsonl:0"),
        (({"text": "a"},), {"tasks": ("generate",)}, "1 records are of other tasks"),
    ],
    ids=["no sample", "all dropped", "other task"],
)
def test_an_output_without_records_is_an_error_unless_it_is_allowed(tmp_path, values, settings, message):
    def of(**options):
        source = lines(tmp_path, *values)
        return make_job(
            source, tmp_path / "out", RecordSettings(**settings), num_output_files=2, max_drop_rate=1.0, **options
        )

    with pytest.raises(UserError, match=rf"^--output=.*out: no record was written.*{message}.*--allow_empty"):
        prepare(of())
    counted = json.loads((tmp_path / "out" / "manifest.json").read_text())
    manifest = prepare(of(allow_empty=True))
    assert manifest == counted and manifest["tasks"] == {} and manifest["drops"]["seen"] == len(values) - len(settings)


def test_a_data_set_without_units_may_be_allowed_too(tmp_path):
    manifest = prepare(job(tmp_path / "out", records=(), allow_empty=True))
    assert manifest["files"] == [] and manifest["drops"]["seen"] == 0


def test_notes_of_all_parts_are_counted_in_the_manifest_and_told(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jsonl").write_text(json.dumps({"text": "a", "image_id": 1}) + "\n" if i else "")
    source = open_dataset("text", str(tmp_path), {})
    manifest = prepare(make_job(source, tmp_path / "out", RecordSettings(), num_output_files=3))
    assert manifest["notes"] == {"file without samples": 1, "key not read: image_id": 2}
    assert "noted: key not read: image_id: 2" in describe(manifest).splitlines()


def test_ignored_image_metadata_is_counted(tmp_path):
    image = flat_png(1)
    records = [generate("c", image[:33] + bytes(4) + b"gAMA" + bytes(4) + image[33:], key="a"), generate("c", image)]
    manifest = prepare(job(tmp_path / "out", records))
    assert manifest["image_metadata_ignored"] == 1 and "image metadata ignored: 1" in describe(manifest)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("bad", [1, 2])
def test_a_loss_above_one_percent_is_the_last_line_in_bold_on_a_terminal(tmp_path, monkeypatch, terminal, bad):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    records = [document("x", key=str(i)) for i in range(100 - bad)] + [BAD] * bad
    last = describe(prepare(job(tmp_path / "out", records))).splitlines()[-1]
    if bad == 1:  # one percent
        assert "bad_image (" in last and "\x1b" not in last
    else:
        assert "2.0%" in last and "2 of 100" in last and "bad_image 2" in last
        assert (last.startswith("\x1b[1m") and last.endswith("\x1b[0m")) == terminal
