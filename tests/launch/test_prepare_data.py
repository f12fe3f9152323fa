"""The command as a user runs it: worker processes, codes of a checkpoint, killed and repeated."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.digits import data as digits
from janus_jax.batches import Modality, PackedBatch
from janus_jax.data.images import decode_image, generation_pixels
from janus_jax.data.preparation.record import RecordSettings, prepare_record
from janus_jax.data.record_reader import open_records
from janus_jax.data.records import Record
from janus_jax.inference.image_tokenizer import image_lengths, load_image_tokenizer
from janus_jax.models.params import bind, build, init_params
from janus_jax.training.objectives.janus import with_codes
from janus_jax.weights.native import save_params
from tests.helpers.tiny_runs import CACHE_SETTINGS, MICRO_JANUS, MICRO_VQ, REPOSITORY, cache_folder, micro_world

SHARDS, PAIRS = 6, 40
TIMEOUT = 180


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tar shards of real digits, each with an image that is none, a tokenizer and an image tokenizer."""
    folder = tmp_path_factory.mktemp("prepare")
    training, _ = digits.load_digits()
    records = digits.generation_records(training)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for i in range(PAIRS):
                record = records[shard * PAIRS + i]
                image = record.images[0] if i else b"garbage"
                for suffix, data in (("png", image), ("txt", record.messages[0].text.encode())):
                    member = tarfile.TarInfo(f"{shard:05d}{i:04d}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    digits.build_tokenizer(records[:100], 384, MICRO_JANUS.prompt_style).save(folder / "tokenizer.json")
    params = init_params(MICRO_VQ, seed=0)
    save_params(folder / "vq", MICRO_VQ, params)
    return folder


def command(folder, output, *more):
    arguments = [
        "--format=webdataset",
        f"--input={folder}/*.tar",
        f"--output={output}",
        "--task=understand,generate",
        f"--tokenizer={folder}/tokenizer.json",
        "--prompt_style=janus_pro_tiny",
        "--understanding_tokens=4",
        f"--checkpoint={folder}/vq",
        "--image_size=8",
        "--num_workers=2",
    ]
    return [sys.executable, "-m", "launch.prepare_data", *arguments, *more]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Commands keep what they compile, for each other."""
    settings = CACHE_SETTINGS | {
        "jax_compilation_cache_dir": cache_folder(tmp_path_factory),
        "jax_disable_most_optimizations": 1,
    }
    return os.environ | {name.upper(): str(value) for name, value in settings.items()}


@pytest.fixture(scope="module")
def run(folder, environment):
    def one(output, *more):
        line = command(folder, output, *more)
        return subprocess.run(line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=TIMEOUT)

    return one


@pytest.fixture(scope="module")
def whole(folder, run):
    result = run(folder / "whole", "--num_workers=1")  # The completed run below has two workers.
    assert result.returncode == 0, result.stderr
    return result


def files(output):
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


def test_command_shows_progress_and_counts_what_it_wrote(folder, whole):
    lines = whole.stdout.splitlines()
    assert lines[0].endswith(f"whole: {SHARDS} parts, 0 of them finished")
    assert f"{SHARDS}/{SHARDS} parts, {SHARDS * (2 * PAIRS)} samples read" in lines
    assert any(line.startswith(f"generate: {SHARDS * (PAIRS - 1)} records, ") for line in lines)
    assert "  bad_image: 12" in lines and "Traceback" not in whole.stderr and whole.stderr.count("\n") <= 2
    manifest = json.loads((folder / "whole" / "manifest.json").read_text())
    records = [Record.deserialize(data) for data in open_all(folder / "whole", "generate")]
    assert manifest["tasks"]["generate"]["tokens"] == sum(record.tokens for record in records)
    assert len(records) == len({record.key for record in records}) == SHARDS * (PAIRS - 1)


def open_all(output, task):
    return [stored.data for stored in open_records(f"{output}/{task}-*.array_record", "x")]


def test_codes_are_those_of_the_training_step(folder, whole):
    """On the pixels that the stream would decode from the stored record, in another batch shape."""
    records = [Record.deserialize(data) for data in open_all(folder / "whole", "generate")][:24]
    pixels = np.stack([generation_pixels(decode_image(r.images[0], r.key, training=True), 8) for r in records])
    rows = pixels.reshape(12, 2, 8, 8, 3)
    shape = (12, 2 * MICRO_VQ.num_tokens)
    batch = PackedBatch(
        tokens=jnp.zeros(shape, jnp.int32),
        modality=jnp.full(shape, Modality.GENERATION_IMAGE, jnp.int8),
        segment_ids=jnp.ones(shape, jnp.int32),
        positions=jnp.zeros(shape, jnp.int32),
        targets=jnp.zeros(shape, jnp.int32),
        text_weights=jnp.zeros(shape),
        image_weights=jnp.zeros(shape),
        und_pixels=None,
        gen_pixels=jnp.asarray(rows),
    )
    apply = bind(build(MICRO_VQ), init_params(MICRO_VQ, seed=0))
    step = jax.jit(lambda batch: with_codes(batch, lambda images: apply(images, method="encode")).tokens)
    np.testing.assert_array_equal(step(batch).reshape(24, -1), [record.code_array for record in records])
    assert len(np.unique(step(batch))) > 3


def test_image_tokenizer_of_a_whole_model_gives_the_same_codes(folder, tmp_path, tmp_path_factory):
    vq = init_params(MICRO_VQ, seed=0)
    with micro_world(cache_folder(tmp_path_factory)):
        save_params(tmp_path / "janus", MICRO_JANUS, init_params(MICRO_JANUS, seed=1) | {"vq": vq})
        tokenizer = (folder / "tokenizer.json").read_text()
        (tmp_path / "janus" / "tokenizer.json").write_text(tokenizer)
        of_model, alone = load_image_tokenizer(tmp_path / "janus"), load_image_tokenizer(folder / "vq")
        pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
        np.testing.assert_array_equal(of_model(pixels), alone(pixels))
        assert of_model.sha256 == alone.sha256
        assert image_lengths(tmp_path / "janus") == (4, 16) and image_lengths(folder / "vq") is None


def test_killed_run_is_completed_to_the_same_bytes(folder, whole, run, environment, tmp_path):
    output = tmp_path / "out"
    process = subprocess.Popen(
        command(folder, output, "--num_workers=1"),
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + TIMEOUT
    while not list(output.glob("progress/0000?.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)  # the workers too, as when a machine fails
    process.wait(timeout=TIMEOUT)
    finished = len(list(output.glob("progress/0000?.json")))
    assert 1 <= finished < SHARDS and not (output / "manifest.json").exists()
    result = run(output)
    assert result.returncode == 0, result.stderr
    assert f"{SHARDS} parts, {finished} of them finished" in result.stdout
    assert files(output) == files(folder / "whole")


@pytest.mark.slow
def test_death_of_a_worker_ends_the_command_which_can_be_repeated(folder, whole, run, environment, tmp_path):
    output = tmp_path / "out"
    process = subprocess.Popen(
        command(folder, output),
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers, deadline = [], time.monotonic() + TIMEOUT
    while not workers and process.poll() is None and time.monotonic() < deadline:
        listed = subprocess.run(["ps", "-ewwo", "pid,pgid,args"], capture_output=True, text=True, timeout=30).stdout
        rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
        workers = [int(pid) for pid, group, args in rows if int(group) == process.pid and "sdk_worker_main" in args]
    os.kill(workers[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3 and "error: a worker process died" in errors
    assert run(output).returncode == 0
    assert files(output) == files(folder / "whole")


def test_a_mistake_is_one_line(folder, whole, run):
    result = run(folder / "whole", "--max_drop_rate=0.001")
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("error: --max_drop_rate=0.001: 12 of 480 samples dropped; first: 00000.tar/")


def test_prepared_records_are_prepared_again_unchanged(folder, whole):
    """What is stored at the training size stays as it is, so that codes and pixels remain true."""
    for data in open_all(folder / "whole", "generate")[:5] + open_all(folder / "whole", "understand")[:5]:
        record = Record.deserialize(data)
        again = prepare_record(record, RecordSettings(), None).record
        assert (again.images, again.codes) == (record.images, record.codes)
