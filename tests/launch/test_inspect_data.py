"""`launch.inspect_data` shows and dumps exactly what training reads."""

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
from tests.helpers.forked_commands import run_commands
from tests.helpers.tiny_runs import MICRO_JANUS, cache_folder, janus_experiment, micro_world, write_digit_files

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
def written(tmp_path_factory):
    """Folder that the commands write to."""
    return tmp_path_factory.mktemp("written")


@pytest.fixture(scope="module")
def outcomes(folder, written):
    """Outcome of each command of this file by its name."""
    config = janus_experiment(folder)
    params = init_params(MICRO_JANUS, seed=0)
    state = create_state(params, trainable_mask(params, config.trainable), make_optimizer(config.train))
    checkpoints = Checkpoints(written / "workdir", MICRO_JANUS, keep=1)
    checkpoints.save(state._replace(step=np.int32(3)), read_stream(folder, 3)[1])
    checkpoints.close()
    good = digits.generation_records(digits.load_digits()[0])[0]
    bad = dataclasses.replace(good, images=(b"no image",), key="<b>bad")
    write_records(written / "mixed.array_record", [good, bad] * 20)

    resumed = [f"--dump={written}/resumed.npz", "--process_index=1", "--process_count=2"]
    resumed.append(f"--workdir={written}/workdir")
    mixed = [f"--config.data.sources.generate=('{written}/mixed.array_record',)", "--config.data.max_drop_rate=0.9"]
    commands = {
        "dump of 0 of 1": ["", f"--dump={written}/new/0.npz", "--start_step=2", "--steps=3"],
        "dump of 1 of 2": [
            "",
            f"--dump={written}/new/1.npz",
            "--start_step=2",
            "--steps=3",
            "--process_index=1",
            "--process_count=2",
        ],
        "dump from a saved state": ["", *resumed, "--start_step=4", "--steps=2"],
        "dump before the first saved state": ["", *resumed, "--start_step=2"],
        "page": ["", f"--output={written}/page", "--rows=6", "--config.data.supervision=answers"],
        "page of images": ["vq=", f"--output={written}/images", "--rows=6", *mixed],
        "neither page nor dump": [""],
        "held-out rows without any": ["", f"--output={written}/none", "--split=validation", "--config.data.held_out=0"],
    }
    lines = [
        ["launch.inspect_data", f"--config=tests/helpers/micro_experiment.py:{model}{folder}", *flags]
        for model, *flags in commands.values()
    ]
    return dict(zip(commands, run_commands(lines, written), strict=True))


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
def test_a_dump_is_what_the_process_reads(outcomes, folder, written, process_index, process_count):
    outcome = outcomes[f"dump of {process_index} of {process_count}"]
    assert outcome.code == 0, outcome.err
    expected = read_stream(folder, 5, process_index=process_index, process_count=process_count)[0][2:]
    check_dump(written / "new" / f"{process_index}.npz", expected)


def test_a_dump_goes_on_from_a_saved_state_at_another_number_of_processes(outcomes, folder, written):
    outcome = outcomes["dump from a saved state"]
    assert outcome.code == 0, outcome.err
    check_dump(written / "resumed.npz", read_stream(folder, 6, process_index=1, process_count=2)[0][4:])
    outcome = outcomes["dump before the first saved state"]
    assert outcome.code == 2 and "--start_step=2" in outcome.err


def test_the_page_shows_rows_with_their_loss_and_escapes_their_text(outcomes, folder, written):
    outcome = outcomes["page"]
    assert outcome.code == 0, outcome.err
    page = (written / "page" / "inspect.html").read_text()
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
    assert "understand  33.3%" in outcome.out and re.search(r"data text/0 \(.*text.*\.array_record\): ", outcome.out)
    assert re.search(r"^row 5: .*(understand|text|generate) \S+ \(\d+\)$", outcome.out, re.MULTILINE)


def test_the_page_of_an_image_tokenizer_shows_its_images_and_what_was_dropped(outcomes, written):
    outcome = outcomes["page of images"]
    assert outcome.code == 0, outcome.err
    page = (written / "images" / "inspect.html").read_text()
    assert page.count("<img") == 6
    assert "<h3>Row" not in page
    assert "<dt>generate/0: &lt;b&gt;bad</dt><dd>bad_image: image: not a readable image" in page


def test_a_page_or_a_dump_must_be_asked_for(outcomes):
    outcome = outcomes["neither page nor dump"]
    assert outcome.code == 2 and "expected either --output or --dump" in outcome.err


def test_held_out_rows_need_records_that_are_held_out(outcomes):
    outcome = outcomes["held-out rows without any"]
    assert outcome.code == 2 and "--split=validation: data.held_out=0" in outcome.err
