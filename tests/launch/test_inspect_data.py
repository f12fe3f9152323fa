"""What `launch.inspect_data` shows and dumps is what training reads."""

import dataclasses
import json
import re

import numpy as np
import pytest

from examples.digits import data as digits
from janus_jax.data.prompts import Message
from janus_jax.data.records import Record, write_records
from janus_jax.models.params import init_params
from janus_jax.training.checkpointing import Checkpoints
from janus_jax.training.freezing import trainable_mask
from janus_jax.training.optimizer import make_optimizer
from janus_jax.training.setup import open_stream, open_tokenizer
from janus_jax.training.train_state import create_state
from tests.helpers.tiny_runs import (
    MICRO_JANUS,
    cache_folder,
    janus_experiment,
    micro_world,
    start_command,
    write_digit_files,
)

NASTY = "<script>alert(1)</script> & <b>bold</b>"


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    with micro_world(cache_folder(tmp_path_factory)):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits, and text that would break a page."""
    folder = write_digit_files(tmp_path_factory.mktemp("data"))
    messages = (Message("user", NASTY), Message("assistant", "an answer"))
    write_records(folder / "text.array_record", [Record(task="text", messages=messages, key="<i>key</i>")] * 8)
    return folder


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """`launch.inspect_data`; returns what it prints."""

    def main(*flags, code=0, model=""):
        config = f"--config=tests/helpers/micro_experiment.py:{model}{folder}"
        process = start_command("launch.inspect_data", config, *flags, cache=cache_folder(tmp_path_factory))
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, err
        return out if code == 0 else err

    return main


def read_stream(folder, steps, **options):
    """(batch, keys) of the first steps."""
    config = janus_experiment(folder)
    stream = open_stream(config, MICRO_JANUS, open_tokenizer(config, MICRO_JANUS), **options)
    batches = [stream.next_with_keys() for _ in range(steps)]
    state = stream.get_state()
    stream.close()
    return batches, state


def check_dump(path, expected):
    with np.load(path, allow_pickle=False) as dump:
        for name in expected[0][0]._fields:
            values = np.stack([getattr(batch, name) for batch, _ in expected])
            np.testing.assert_array_equal(dump[name], values, err_msg=name)
            assert dump[name].dtype == values.dtype
        assert [[json.loads(row) for row in step] for step in dump["keys"]] == [keys for _, keys in expected]


@pytest.mark.parametrize(("process_index", "process_count"), [(0, 1), (1, 2)])
def test_a_dump_is_what_the_process_reads(run, folder, tmp_path, process_index, process_count):
    path = tmp_path / "dump" / "rows.npz"
    processes = dict(process_index=process_index, process_count=process_count)
    flags = [f"--{name}={value}" for name, value in processes.items()]
    run(f"--dump={path}", "--start_step=2", "--steps=3", *flags)
    check_dump(path, read_stream(folder, 5, **processes)[0][2:])


def test_a_dump_goes_on_from_a_saved_state_at_another_number_of_processes(run, folder, tmp_path):
    config = janus_experiment(folder)
    params = init_params(MICRO_JANUS, seed=0)
    state = create_state(params, trainable_mask(params, config.trainable), make_optimizer(config.train))
    checkpoints = Checkpoints(tmp_path, MICRO_JANUS, keep=1)
    checkpoints.save(state._replace(step=np.int32(3)), read_stream(folder, 3)[1])
    checkpoints.close()
    path = tmp_path / "rows.npz"
    second_of_two = ("--process_index=1", "--process_count=2", f"--workdir={tmp_path}")
    run(f"--dump={path}", "--start_step=4", "--steps=2", *second_of_two)
    check_dump(path, read_stream(folder, 6, process_index=1, process_count=2)[0][4:])
    message = run(f"--dump={path}", "--start_step=2", f"--workdir={tmp_path}", code=2)
    assert "no checkpoint at or before --start_step=2" in message


def test_the_page_shows_rows_with_their_loss_and_escapes_their_text(run, folder, tmp_path):
    said = run(f"--output={tmp_path}", "--rows=6", "--config.data.supervision=answers")
    page = (tmp_path / "inspect.html").read_text()
    assert "<script" not in page and "<b>bold" not in page and "<i>key" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;b&gt;bold&lt;/b&gt;" in page
    batches = [batch for batch, _ in read_stream(folder, 2)[0]]
    modality = np.concatenate([batch.modality for batch in batches])
    assert page.count("<h3>Row") == 6
    assert page.count("understanding image, 4 tokens") == (modality[:6] == 2).sum() // 4
    assert page.count("generation image, 16 tokens") == (modality[:6] == 3).sum() // 16
    assert "an answer<｜end▁of▁sentence｜>".replace("<", "&lt;").replace(">", "&gt;") in " ".join(
        re.findall(r'<span class="answer">([^<]*)</span>', page)
    )
    assert f">{(modality > 0).mean():.1%}<" in page
    assert "understand  33.3%" in said and re.search(r"data text/0 \(.*text.*\.array_record\): ", said)
    assert re.search(r"^row 5: .*(understand|text|generate) \S+ \(\d+\)$", said, re.MULTILINE)


def test_the_page_of_an_image_tokenizer_shows_its_images_and_what_was_dropped(run, tmp_path):
    good = digits.generation_records(digits.load_digits()[0])[0]
    bad = dataclasses.replace(good, images=(b"no image",), key="<b>bad")
    write_records(tmp_path / "mixed.array_record", [good, bad] * 20)
    flags = [f"--config.data.sources.generate=('{tmp_path}/mixed.array_record',)", "--config.data.max_drop_rate=0.9"]
    run(f"--output={tmp_path}", "--rows=6", *flags, model="vq=")
    page = (tmp_path / "inspect.html").read_text()
    assert page.count("<img") == 6
    assert "<h3>Row" not in page
    assert "<dt>generate/0: &lt;b&gt;bad</dt><dd>bad_image: image: not a readable image" in page


def test_flags_that_do_not_go_together(run):
    assert "expected either --output or --dump" in run(code=2)
