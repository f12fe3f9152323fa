"""Bad input ends every command with one line on stderr that names the thing, before any long work."""

import re
import shutil
import socket

import pytest
from absl import flags
from absl.testing import flagsaver

from examples.digits import data as digits
from janus_jax.data.records import write_records
from janus_jax.data.tokenizer import FILE_NAME
from janus_jax.errors import UserError
from janus_jax.models.params import init_params
from janus_jax.models.presets import JANUS_PRO_TINY, VQ_TINY
from janus_jax.training.resilience.exit_codes import RESTART
from janus_jax.weights.native import save_params
from janus_jax.weights.reader import model_in_memory
from janus_jax.weights.write_model import write_model
from launch.cli import distributed, errors, model_flags
from tests.helpers.forked_commands import run_commands

TRAIN = "--config=configs/quickstart.py:stage1"
TEXT = (
    TRAIN,
    "--config.data.tokenizer={folder}/model/tokenizer.json",
    "--config.data.ratio.understand=0.0",
    "--config.data.ratio.text=1.0",
    "--config.data.ratio.generate=0.0",
    "--config.data.sources.text={folder}/text.array_record",
)
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
    "missing config file": (
        "train",
        ["--config=configs/nope.py:stage1", "--workdir={folder}/w"],
        "--config=configs/nope.py:stage1: there is no file 'configs/nope.py'",
    ),
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
    "workdir that is a model": (
        "train",
        [TRAIN, "--workdir={folder}/vq", "--config.data.tokenizer={folder}/model/tokenizer.json"],
        "--workdir={folder}/vq: holds params of a model",
    ),
    "missing data": (
        "train",
        [*TEXT, "--workdir={folder}/w", "--config.data.sources.text={folder}/nowhere/text-*"],
        "data.sources.text: '{folder}/nowhere/text-*' matches no file: there is no folder '{folder}/nowhere'",
    ),
    "missing starting point": (  # found when all but the parameters is there
        "train",
        [*TEXT, "--workdir={folder}/w", "--config.init.checkpoint={folder}/nowhere"],
        "init.checkpoint='{folder}/nowhere'",
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
    "empty bucket": (
        "generate",
        ["--checkpoint={folder}/weightless", "--prompt=hi", "--output={folder}/out", "--buckets=0,64"],
        "--buckets=0,64: buckets.prompt=0, expected a whole number from 1",
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
    "generating with a prompt too long": (
        "generate",
        ["--checkpoint={folder}/weightless", f"--prompt={'one ' * 1200}", "--output={folder}/out"],
        "exceed the context of 1024 tokens",
    ),
    "seed out of range": (
        "generate",
        ["--checkpoint={folder}/weightless", "--prompt=hi", "--output={folder}/out", "--seed=-1"],
        "seed=-1",
    ),
    "folder with images": (
        "generate",
        ["--checkpoint={folder}/weightless", "--prompt=hi", "--output={folder}/images"],
        "--output={folder}/images: holds 00003.png",
    ),
    "no prompt to generate": ("generate", ["--checkpoint={folder}/model", "--output={folder}/out"], "--prompt"),
    "unwritable output": (
        "generate",
        ["--checkpoint={folder}/model", "--prompt=hi", "--output={folder}/file/out"],
        "--output={folder}/file/out",
    ),
}

# name: (argument of tests.helpers.failing_train, exit code, the whole of standard error).
OUT_OF_MEMORY = "error: the memory of a device is not enough: RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.\n"
FAILURES = {
    "interrupted while a thread would go on": ("interrupt", 130, "interrupted: no data\n"),
    "bucket that is gone": ("bucket", RESTART, "error: the bucket is gone\n"),
    "full device": ("memory", 2, OUT_OF_MEMORY),
    "full device of several processes": ("memory_of_several", 2, OUT_OF_MEMORY),
}


# Commands whose --help must list these flags, which other files define.
HELP = {
    "chat": ["checkpoint", "dtype", "mesh", "quantize", "buckets", "compilation_cache"],
    "generate": ["checkpoint", "dtype", "mesh", "quantize", "buckets", "compilation_cache", "window"],
    "compile_check": ["topology", "dtype", "mesh", "quantize"],
    "train": ["config", "workdir", "multihost", "coordinator", "step_timeout", "compilation_cache"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, whole and damaged, an image tokenizer, a tokenizer without a special token, a file that is no image.

    The model "weightless" has no weights, so an error of another kind was found before any weights were read.
    """
    folder = tmp_path_factory.mktemp("errors")
    tokenizer = digits.build_tokenizer(digits.text_records(), JANUS_PRO_TINY.llama.vocab_size, "janus_pro_tiny")
    params = init_params(JANUS_PRO_TINY, seed=0)
    write_model(model_in_memory(JANUS_PRO_TINY, params, tokenizer), folder / "model", "orbax")
    for name in ("roleless", "weightless"):
        shutil.copytree(folder / "model", folder / name)
    (folder / "roleless" / FILE_NAME).write_text(tokenizer.backend.to_str().replace("<|Assistant|>", "<|Assistent|>"))
    for chunk in (folder / "weightless" / "params").glob("*/[0-9]*"):
        chunk.unlink()
    save_params(folder / "vq", VQ_TINY, params["vq"])
    (folder / "no_special.json").write_text(tokenizer.backend.to_str().replace("<end_of_image>", "<end>"))
    write_records(folder / "text.array_record", digits.text_records())
    (folder / "images").mkdir()
    (folder / "images" / "00003.png").write_text("of another run")
    (folder / "broken.py").write_text("def get_config():\n    return 1 / 0\n")
    (folder / "file").write_text("neither an image nor a folder")
    return folder


@pytest.fixture(scope="module")
def outcomes(folder, tmp_path_factory):
    """Outcome of each case and failure by its name."""
    commands = [
        [f"launch.{command}", *(argument.format(folder=folder) for argument in arguments)]
        for command, arguments, _ in CASES.values()
    ]
    failing = [
        ["tests.helpers.failing_train", f"--fail={kind}", TRAIN, f"--workdir={folder}/w"]
        for kind, _, _ in FAILURES.values()
    ]
    asking = [[f"launch.{command}", "--help"] for command in HELP]
    results = run_commands([*commands, *failing, *asking], tmp_path_factory.mktemp("said"))
    return dict(zip((*CASES, *FAILURES, *HELP), results, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_one_line_names_the_mistake(case, outcomes, folder):
    outcome = outcomes[case]
    lines = outcome.err.strip().splitlines()
    assert outcome.code == 2, outcome.err
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    assert CASES[case][2].format(folder=folder) in lines[0]


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_while_training_is_one_line_and_its_code_says_whether_a_restart_may_help(case, outcomes):
    _, code, error = FAILURES[case]
    assert (outcomes[case].code, outcomes[case].err) == (code, error)


@pytest.mark.parametrize("command", HELP)
def test_help_lists_the_flags_that_commands_share_and_is_no_error(command, outcomes):
    text = outcomes[command].out
    assert outcomes[command].code == 0
    assert [name for name in HELP[command] if not re.search(rf"^  --(\[no\])?{name}: ", text, re.MULTILINE)] == []


def test_nothing_was_trained_before_the_errors(outcomes, folder):
    assert not (folder / "w" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("buckets", ["32", "many"], "--buckets=32,many, expected two whole numbers"),
        ("mesh", ["1", "1"], "--mesh=1,1, expected three whole numbers data,fsdp,tensor"),
    ],
)
def test_flags_of_all_commands_that_load_a_model_name_their_value(flag, value, message):
    with flagsaver.flagsaver(**{flag: value}), pytest.raises(UserError, match=message):
        model_flags.load_options()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("--config.a=1 --config.b=2 --config.a=3", "--config.b=2 --config.a=3"),
        ("--config.a 1 -config.a=2 --x=3 --x=4", "-config.a=2 --x=3 --x=4"),
        ("--config.on --config.a=1 --config.on=False --config.a.b=2", "--config.a=1 --config.on=False --config.a.b=2"),
        ("--config.a=1 -- --config.a=2", "--config.a=1 -- --config.a=2"),
    ],
)
def test_of_a_field_that_is_given_twice_the_last_value_counts(given, kept):
    assert errors.without_repeats(["train.py", *given.split()]) == ["train.py", *kept.split()]


def test_a_port_in_use_is_a_mistake_of_process_0(monkeypatch):
    """Of the flag, or of what describes the hosts; here Slurm, whose port depends on the job's number."""
    flags.FLAGS.mark_as_parsed()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        given = {"coordinator": f"127.0.0.1:{port}", "num_processes": 2, "process_id": 0}
        with flagsaver.flagsaver(**given), pytest.raises(UserError, match=rf"^--coordinator=.* port {port} .*in use"):
            distributed.join()
        variables = {"JOB_ID": port, "STEP_NODELIST": "localhost", "NTASKS": 2, "PROCID": 0, "LOCALID": 0}
        for name, value in variables.items():
            monkeypatch.setenv(f"SLURM_{name}", str(value))
        monkeypatch.setenv("JAX_COORDINATOR_PORT", str(port))
        with flagsaver.flagsaver(multihost=True), pytest.raises(UserError, match=rf"^--multihost: .* port {port} .*in"):
            distributed.join()
