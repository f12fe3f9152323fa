"""Bad input ends every command with one line on stderr that names the thing, before any long work."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from examples.digits import data as digits
from janus_jax.data.tokenizer import FILE_NAME
from janus_jax.models.params import init_params
from janus_jax.models.presets import JANUS_PRO_TINY, VQ_TINY
from janus_jax.training.resilience.exit_codes import RESTART
from janus_jax.weights.native import save_params
from janus_jax.weights.reader import model_in_memory
from janus_jax.weights.write_model import write_model

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = "--config=configs/quickstart.py:stage1"
JOIN = (TRAIN, "--workdir={folder}/w", "--num_processes=2", "--process_id=1")

# name: (command, its arguments, what the line must name). {folder} is the fixture's.
CASES = {
    "unknown config key": ("train", [TRAIN, "--workdir={folder}/w", "--config.train.foo=1"], "foo"),
    "unknown flag": ("train", [TRAIN, "--workdir={folder}/w", "--bogus=1"], "bogus"),
    "missing workdir": ("train", [TRAIN], "--workdir"),
    "unknown stage": ("train", ["--config=configs/quickstart.py:stage9", "--workdir={folder}/w"], "stage9"),
    "one file for the programs of a sweep": (
        "compile_check",
        [TRAIN, "--topology=v5e-4", "--sweep=remat=full,context", "--hlo_output={folder}/step.gz"],
        "--hlo_output={folder}/step.gz is for one program",
    ),
    "missing config file": ("train", ["--config=configs/nope.py", "--workdir={folder}/w"], "configs/nope.py"),
    "config file that raises": (
        "train",
        ["--config={folder}/broken.py", "--workdir={folder}/w"],
        "--config={folder}/broken.py: ZeroDivisionError: division by zero (line 2)",
    ),
    "coordinator without a port": (
        "train",
        [*JOIN, "--coordinator=localhost"],
        "--coordinator=localhost: expected host",
    ),
    "coordinator with a bad port": (
        "train",
        [*JOIN, "--coordinator=localhost:0"],
        "--coordinator=localhost:0: expected",
    ),
    "coordinator that is not there": (
        "train",
        [*JOIN, "--coordinator=127.0.0.1:1", "--coordinator_timeout=1"],  # a port that nothing listens on
        "--coordinator=127.0.0.1:1: process 0 cannot be reached in 1 s (Connection refused)",
    ),
    "hosts that nothing names": (
        "train",
        [TRAIN, "--workdir={folder}/w", "--multihost"],
        "--multihost: the other hosts",
    ),
    "stray argument": ("train", [TRAIN, "--workdir={folder}/w", "stray"], "stray"),
    "unwritable workdir": (
        "train",
        [TRAIN, "--workdir={folder}/file/w", "--config.data.tokenizer={folder}/model/tokenizer.json"],
        "--workdir={folder}/file/w",
    ),
    "workdir of another architecture": (
        "train",
        [TRAIN, "--workdir={folder}/vq", "--config.data.tokenizer={folder}/model/tokenizer.json"],
        "another architecture",
    ),
    "missing special token": (
        "train",
        [TRAIN, "--workdir={folder}/w", "--config.data.tokenizer={folder}/no_special.json"],
        "<end_of_image>",
    ),
    "missing weights": ("chat", ["--checkpoint={folder}/weightless", "--prompt=hi"], "cannot be read"),
    "missing checkpoint": ("chat", ["--checkpoint={folder}/nowhere", "--prompt=hi"], "{folder}/nowhere"),
    "empty prompt": ("chat", ["--checkpoint={folder}/model", "--prompt= "], "--prompt"),
    "corrupt image": ("chat", ["--checkpoint={folder}/model", "--prompt=hi", "--image={folder}/file"], "{folder}/file"),
    "prompt longer than the context": (
        "chat",
        ["--checkpoint={folder}/weightless", f"--prompt={'one ' * 1200}"],
        "exceed the context of 1024 tokens",
    ),
    "temperature that is no number": (
        "chat",
        ["--checkpoint={folder}/weightless", "--prompt=hi", "--temperature=nan"],
        "temperature=nan",
    ),
    "buckets that are no numbers": (
        "chat",
        ["--checkpoint={folder}/weightless", "--prompt=hi", "--buckets=32,many"],
        "--buckets=32,many, expected two whole numbers",
    ),
    "empty bucket": (
        "generate",
        ["--checkpoint={folder}/weightless", "--prompt=hi", "--output={folder}/out", "--buckets=0,64"],
        "--buckets=0,64: buckets.prompt=0, expected a whole number from 1",
    ),
    "mesh of two sizes": (
        "generate",
        ["--checkpoint={folder}/weightless", "--prompt=hi", "--output={folder}/out", "--mesh=1,1"],
        "--mesh=1,1, expected three whole numbers data,fsdp,tensor",
    ),
    "mesh of two sizes for an answer": (
        "chat",
        ["--checkpoint={folder}/weightless", "--prompt=hi", "--mesh=1,1"],
        "--mesh=1,1, expected three whole numbers data,fsdp,tensor",
    ),
    "unknown quantization": (
        "generate",
        ["--checkpoint={folder}/weightless", "--prompt=hi", "--output={folder}/out", "--quantize=int4"],
        "quantize=int4: value should be one of <int8>",
    ),
    "unknown quantization for an answer": (
        "chat",
        ["--checkpoint={folder}/weightless", "--prompt=hi", "--quantize=int4"],
        "quantize=int4: value should be one of <int8>",
    ),
    "conversation as JSON": ("chat", ["--checkpoint={folder}/weightless", "--json"], "--json"),
    "tokenizer without a role": ("chat", ["--checkpoint={folder}/roleless", "--prompt=hi"], "<|Assistant|>"),
    "checkpoint of an image tokenizer": ("chat", ["--checkpoint={folder}/vq", "--prompt=hi"], "{folder}/vq"),
    "drawing with a prompt too long": (
        "generate",
        ["--checkpoint={folder}/weightless", f"--prompt={'one ' * 1200}", "--output={folder}/out"],
        "exceed the context of 1024 tokens",
    ),
    "seed out of range": (
        "generate",
        ["--checkpoint={folder}/weightless", "--prompt=hi", "--output={folder}/out", "--seed=-1"],
        "seed=-1",
    ),
    "folder with drawings": (
        "generate",
        ["--checkpoint={folder}/weightless", "--prompt=hi", "--output={folder}/drawings"],
        "--output={folder}/drawings: holds 00003.png",
    ),
    "no prompt to draw": ("generate", ["--checkpoint={folder}/model", "--output={folder}/out"], "--prompt"),
    "unwritable output": (
        "generate",
        ["--checkpoint={folder}/model", "--prompt=hi", "--output={folder}/file/out"],
        "--output={folder}/file/out",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, whole and damaged, an image tokenizer, a tokenizer without a special token, a file that is no image.

    An error of a command on "weightless" came before it read the weights.
    """
    folder = tmp_path_factory.mktemp("errors")
    tokenizer = digits.build_tokenizer(digits.text_records(), JANUS_PRO_TINY.llama.vocab_size, "janus_pro_tiny")
    save_params(folder / "model", JANUS_PRO_TINY, init_params(JANUS_PRO_TINY, seed=0))
    tokenizer.save(folder / "model" / FILE_NAME)
    save_params(folder / "vq", VQ_TINY, init_params(VQ_TINY, seed=0))
    (folder / "no_special.json").write_text(tokenizer.backend.to_str().replace("<end_of_image>", "<end>"))
    shutil.copytree(folder / "model", folder / "roleless")
    (folder / "roleless" / FILE_NAME).write_text(tokenizer.backend.to_str().replace("<|Assistant|>", "<|Assistent|>"))
    params = init_params(JANUS_PRO_TINY, seed=0)
    write_model(model_in_memory(JANUS_PRO_TINY, params, tokenizer), folder / "weightless", "orbax")
    for chunk in (folder / "weightless" / "params").glob("*/[0-9]*"):
        chunk.unlink()
    (folder / "drawings").mkdir()
    (folder / "drawings" / "00003.png").write_text("of another run")
    (folder / "broken.py").write_text("def get_config():\n    return 1 / 0\n")
    (folder / "file").write_text("neither an image nor a folder")
    return folder


@pytest.fixture(scope="module")
def results(folder, tmp_path_factory):
    """Exit code and standard error of each case."""
    said = tmp_path_factory.mktemp("said")
    commands = [
        [command, *(argument.format(folder=folder) for argument in arguments)]
        for command, arguments, _ in CASES.values()
    ]
    line = [sys.executable, "-m", "tests.helpers.forked_commands", str(said)]
    run = subprocess.run(
        line,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    codes = json.loads(run.stdout)
    return {case: (codes[i], (said / f"{i}.err").read_text()) for i, case in enumerate(CASES)}


@pytest.mark.parametrize("case", CASES)
def test_one_line_names_the_mistake(case, results, folder):
    code, error = results[case]
    lines = error.strip().splitlines()
    assert code == 2, error
    assert len(lines) == 1, error
    assert lines[0].startswith("error: ")
    assert CASES[case][2].format(folder=folder) in lines[0]


def test_an_interrupted_command_can_end_without_waiting_for_its_threads():
    program = (
        "import threading, time; from launch import command_line as c; "
        "threading.Thread(target=time.sleep, args=(60,)).start(); "
        "c.run(lambda: c.end_at_once(KeyboardInterrupt('no data')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=50, check=False
    )
    assert (result.returncode, result.stderr) == (130, "interrupted: no data\n")


def failed_training(error, workdir, processes=1):
    """(exit code, stderr) of launch.train where the training raises this Python expression."""
    program = (
        "import jax; from launch import command_line, train\n"
        f"def fail(*_): raise {error}\n"
        "train.train = fail\n"
        f"jax.process_count = lambda: {processes}\n"
        "command_line.run(train.main)"
    )
    command = [sys.executable, "-c", program, TRAIN, f"--workdir={workdir}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    return result.returncode, result.stderr


def test_a_bucket_that_fails_while_training_ends_it_with_the_code_of_what_a_restart_may_mend(tmp_path):
    failed = failed_training("ConnectionError('the bucket is gone')", tmp_path)
    assert failed == (RESTART, "error: the bucket is gone\n")


def test_a_full_device_is_one_line():
    program = (
        "import jax; from launch import command_line as c\n"
        "def main(): raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory\\nallocating 7 bytes.')\n"
        "c.run(main)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=50, check=False
    )
    expected = "error: the memory of a device is not enough: RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.\n"
    assert (result.returncode, result.stderr) == (2, expected)


def test_a_full_device_of_several_processes_is_told_as_that_of_one_and_not_restarted(tmp_path):
    error = r"jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory\nallocating 7 bytes.')"
    expected = "error: the memory of a device is not enough: RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.\n"
    assert failed_training(error, tmp_path, processes=2) == (2, expected)


def test_nothing_was_trained_before_the_errors(results, folder):
    assert not (folder / "w" / "metrics.jsonl").exists()
