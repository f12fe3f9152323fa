"""One user's way through the commands: prepare, train, stop with Ctrl-C, go on, ask, generate, convert.

All files lie in a folder whose name would be a pattern for a program that does not take it literally.
"""

import json
import signal

import numpy as np
import PIL.Image
import pytest

from examples.digits import data as digits
from janus_jax.data.record_reader import open_records
from janus_jax.data.records import TASKS
from janus_jax.inference.loading import from_pretrained
from janus_jax.inference.padding import Buckets
from janus_jax.inference.validation import user_message
from janus_jax.training.metrics_log import read_metrics
from tests.helpers.forked_commands import run_commands
from tests.helpers.tiny_runs import (
    MICRO_JANUS,
    cache_folder,
    cache_variables,
    micro_world,
    start_command,
    write_digit_files,
)

ENOUGH = 1_000_000  # steps: the run is still going when the signal arrives


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    """What a command has compiled is not compiled again for the number it is compared with."""
    with micro_world(cache_folder(tmp_path_factory)):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """data/ and images that were not trained on."""
    folder = tmp_path_factory.mktemp("user") / "exp[1]*?"
    (folder / "data").mkdir(parents=True)
    write_digit_files(folder / "data")
    _, held_out = digits.load_digits()
    for name, intensities in zip("ab", held_out.intensities, strict=False):
        digits.to_image(intensities).save(folder / f"{name}.png")
    (folder / "prompts.txt").write_text("a handwritten seven\n\nthe digit one\n")
    return folder


def finish(process):
    stdout, stderr = process.communicate(timeout=300)
    return process.returncode, stdout, stderr


def train(folder, workdir, *overrides, **environment):
    return start_command(
        "launch.train",
        f"--config=tests/helpers/micro_experiment.py:{folder / 'data'}",
        f"--workdir={folder / workdir}",
        f"--config.checkpoint.every_steps={ENOUGH}",
        *(f"--config.{override}" for override in overrides),
        cache=cache(folder),
        **environment,
    )


@pytest.fixture(scope="module")
def stopped(folder):
    """Exit code, stderr and last saved step of a run that got Ctrl-C after its third step."""
    process = train(folder, "run", f"train.num_steps={ENOUGH}")
    for line in process.stdout:
        if " step 3/" in line:
            break
    process.send_signal(signal.SIGINT)
    code, _, stderr = finish(process)
    return code, stderr, saved_steps(folder)


def saved_steps(folder):
    return [int(path.name) for path in (folder / "run" / "checkpoints").iterdir()]


def test_ctrl_c_leaves_a_checkpoint_and_exits_with_130(folder, stopped):
    code, stderr, steps = stopped
    assert code == 130, stderr
    assert "Traceback" not in stderr
    assert len(steps) == 1
    assert steps[0] >= 3
    assert stderr.splitlines()[-1] == f"interrupted: stopped by a signal after step {steps[0]}, which is saved"
    assert [line["step"] for line in read_metrics(folder / "run")] == list(range(1, steps[0] + 1))


@pytest.fixture(scope="module")
def trained(folder, stopped):
    """The workdir after the run has gone on for two steps, and what it printed."""
    code, stdout, stderr = finish(train(folder, "run", f"train.num_steps={stopped[2][0] + 2}"))
    assert code == 0, stderr
    return folder / "run", stdout


def test_the_next_run_goes_on_from_that_checkpoint(folder, stopped, trained):
    workdir, stdout = trained
    step = stopped[2][0]
    assert f"resumed from checkpoint {step} in {workdir}" in stdout
    assert [line.split()[2] for line in stdout.splitlines() if " step " in line] == [
        f"{n}/{step + 2}" for n in (step + 1, step + 2)
    ]
    assert [line["step"] for line in read_metrics(workdir)] == list(range(1, step + 3))
    assert sorted(saved_steps(folder)) == [step, step + 2]
    losses = [line["loss"] for line in read_metrics(workdir)]
    assert losses[-1] < losses[0]


QUESTION = "Which digit is this?"
SAMPLING = {"cfg_weight": 2.5, "seed": 3, "top_p": 0.9}


@pytest.fixture(scope="module")
def model(trained):
    return from_pretrained(trained[0], buckets=Buckets(32, 16))


@pytest.fixture(scope="module")
def outcomes(folder, trained, tmp_path_factory):
    """What each command that uses the workdir did; all run in forks of one process."""
    common = (f"--checkpoint={trained[0]}", "--buckets=32,16")
    asked = (f"--image={folder / 'a.png'},{folder / 'b.png'}", f"--prompt={QUESTION}")
    chat = ("launch.chat", *common, *asked, "--max_new_tokens=20")  # more tokens than are streamed at a time
    sampling = [f"--{name}={value}" for name, value in SAMPLING.items()]

    def generate(output, *options):
        return (
            "launch.generate",
            *common,
            f"--output={folder / output}",
            "--save_token_ids",
            "--num_images=3",
            *options,
        )

    commands = {
        "json": (*chat, "--json"),
        "alone": generate("alone", "--prompt=the digit one", "--prompt_number=2", "--images_at_a_time=2", *sampling),
        "streamed": chat,
        "lines": generate("lines", f"--prompts_file={folder / 'prompts.txt'}", *sampling),
        "argmax": generate("argmax", "--prompt=the digit one", "--temperature=0", "--seed=9"),
        "both": generate("both", f"--prompts_file={folder / 'prompts.txt'}", "--prompt_number=2"),
        "convert": ("launch.convert", f"--input={trained[0]}", f"--output={folder / 'native'}", "--to=orbax"),
        "prepare": (
            "launch.prepare_data",
            "--format=array_record",
            f"--input={folder / 'data' / '*.array_record'}",
            f"--output={folder / 'prepared'}",
            "--num_workers=1",
        ),
        "inspect": (
            "launch.inspect_data",
            f"--config=tests/helpers/micro_experiment.py:{folder / 'data'}",
            f"--config.data.sources.text={folder / 'data' / 'tex?.array_record'}",
            f"--output={folder / 'inspected'}",
        ),
    }
    written = tmp_path_factory.mktemp("written")
    return dict(zip(commands, run_commands(commands.values(), written, **cache_variables(cache(folder))), strict=True))


def cache(folder):
    return folder.parent.parent / "compiled"


def test_chat_prints_the_pipelines_answer_as_json_or_while_it_is_written(folder, model, outcomes):
    images = [folder / "a.png", folder / "b.png"]
    answer = model.answer([[user_message(QUESTION, 2)]], [images], max_new_tokens=20)[0]
    code, stdout, stderr = outcomes["json"]
    assert (code, len(stdout.splitlines())) == (0, 1), stderr
    assert json.loads(stdout) == {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "prompt_token_ids": answer.prompt_token_ids,
    }
    assert answer.prompt_token_ids.count(model.tokenizer.image_id) == 2 * MICRO_JANUS.siglip.num_tokens
    code, streamed, stderr = outcomes["streamed"]
    assert (code, streamed.splitlines()) == (0, f"{answer.text}\n".splitlines()), stderr


def read_images(output, columns, rows):
    """(codes, images), after a look at the files' names and the grid."""
    files = sorted(path.name for path in output.iterdir())
    codes = np.load(output / "codes.npy")
    assert files == [*(f"{i:05d}.png" for i in range(len(codes))), "codes.npy", "grid.png"]
    images = [PIL.Image.open(output / f"{i:05d}.png") for i in range(len(codes))]
    assert {(image.size, image.mode) for image in images} == {((8, 8), "RGB")}
    grid = PIL.Image.open(output / "grid.png")
    assert grid.size == (8 * columns, 8 * rows)
    for i, image in enumerate(images):
        left, top = i % columns * 8, i // columns * 8
        assert grid.crop((left, top, left + 8, top + 8)).tobytes() == image.tobytes()
    return codes, images


def test_generate_writes_the_images_of_its_seed_and_line_numbers(folder, model, outcomes):
    """A line's images are the same when its prompt is given alone, with the number of the line, in two batches."""
    code, stdout, stderr = outcomes["lines"]
    assert code == 0, stderr
    assert stdout.splitlines()[-1] == f"6 images in {folder / 'lines'}"
    codes, images = read_images(folder / "lines", columns=2, rows=3)
    assert (codes.shape, codes.dtype) == ((6, MICRO_JANUS.image_tokens), np.int32)
    lines = {0: "a handwritten seven", 2: "the digit one"}  # an empty line is between them
    expected = [model.generate_codes([text], 3, prompt_numbers=[line], **SAMPLING) for line, text in lines.items()]
    np.testing.assert_array_equal(codes, np.concatenate(expected))  # though the command batches both
    assert len({tuple(row) for row in codes.tolist()}) == 6
    assert [image.tobytes() for image in images] == [image.tobytes() for image in model.decode_codes(codes)]
    assert outcomes["alone"].code == 0, outcomes["alone"].err
    np.testing.assert_array_equal(read_images(folder / "alone", columns=2, rows=2)[0], codes[3:])


def test_a_prompt_number_beside_a_file_of_prompts_is_one_line(folder, outcomes):
    assert outcomes["both"].code == 2
    assert outcomes["both"].err.startswith("error: --prompt_number=2") and outcomes["both"].err.count("\n") == 1
    assert not (folder / "both").exists()


def test_temperature_0_generates_the_most_probable_codes(folder, model, outcomes):
    assert outcomes["argmax"].code == 0, outcomes["argmax"].err
    expected = model.generate_codes(["the digit one"], 3, temperature=0.0)
    codes, _ = read_images(folder / "argmax", columns=2, rows=2)
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(codes, codes[[0, 0, 0]])


def test_the_other_commands_write_what_can_be_read_too(folder, model, outcomes):
    for name in ("convert", "prepare", "inspect"):
        assert outcomes[name].code == 0, outcomes[name].err
    prepared = [open_records(f"{folder}/prepared/{task}-*.array_record", task) for task in TASKS]
    sources = [open_records(f"{folder}/data/{task}.array_record", task) for task in TASKS]
    assert [len(source) for source in prepared] == [len(source) for source in sources]
    assert (folder / "inspected" / "inspect.html").exists()
    (codes,) = from_pretrained(folder / "native").generate_codes(["the digit one"], 1, seed=3)
    np.testing.assert_array_equal(codes, model.generate_codes(["the digit one"], 1, seed=3)[0])


def test_a_batch_that_the_mesh_cannot_share_is_one_line(folder):
    two_devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    overrides = ("train.batch_size=3", "data.num_shards=1", "mesh.fsdp=2")
    code, _, stderr = finish(train(folder, "shared", *overrides, **two_devices))
    assert code == 2, stderr
    assert len(stderr.splitlines()) == 1
    assert stderr.startswith("error: ")
    assert "train.batch_size=3" in stderr
    assert "mesh.fsdp=2" in stderr
