"""The commands of docs/finetuning.md run as they stand, one after the other, from an empty folder."""

import json
import os
import shlex
import subprocess
import sys
import time

import pytest

from tests.helpers.documents import ROOT, blocks

PROGRAMS = ("python", "tar")  # others install and download
CODE = ("configs", "examples", "janus_jax", "launch")


def page_commands():
    """The commands of the page in order, continued lines joined. Blocks of flags alone are no commands."""
    text = (ROOT / "docs" / "finetuning.md").read_text()
    shell = [block.text.replace("\\\n", " ") for block in blocks(text) if not block.language]
    commands = [shlex.split(line) for block in shell for line in block.splitlines()]
    return [command for command in commands if command and command[0] in PROGRAMS]


@pytest.mark.slow
def test_the_commands_lead_from_a_random_folder_to_an_answer_of_the_export(tmp_path):
    for name in CODE:
        (tmp_path / name).symlink_to(ROOT / name)
    commands = page_commands()
    modules = [command[2] for command in commands if command[0] == "python"]
    assert modules == [
        "launch.random_model",
        "examples.digits.example_data",
        "launch.prepare_data",
        "launch.prepare_data",
        "launch.inspect_data",
        *["launch.train"] * 3,  # on answers, on captions and on both
        "launch.random_model",
        *["launch.train"] * 2,  # JanusFlow, all of it and adapters
        "launch.convert",
        "launch.chat",
        *["launch.train"] * 3,  # adapters for answers, for images and for both
        "launch.convert",
        "launch.chat",
        "launch.convert",
        "launch.prepare_data",
        "launch.train",  # images from images
        "launch.generate",
    ]
    outputs = {}
    for command in commands:
        program = [sys.executable, *command[1:]] if command[0] == "python" else command
        start = time.monotonic()
        done = subprocess.run(
            program,
            cwd=tmp_path,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=1800,
        )
        print(f"{time.monotonic() - start:7.1f} s  {shlex.join(command)}", flush=True)
        assert done.returncode == 0, done.stderr
        outputs[shlex.join(command)] = done.stdout
    train, export, adapters = (
        next(output for command, output in outputs.items() if name in command)
        for name in ("--workdir=runs/mine ", "--output=export ", "--workdir=runs/answers ")
    )
    assert "memory, estimated:" in train and "init.checkpoint=model" in train and "fresh" not in train
    assert "text logits" in export  # transformers computed the same
    metrics = [json.loads(line) for line in (tmp_path / "runs/mine/metrics.jsonl").read_text().splitlines()]
    losses = [line["validation/loss"] for line in metrics if "validation/loss" in line]
    assert len(losses) == 2 and losses[1] < losses[0]
    assert "<html" in (tmp_path / "inspection" / "inspect.html").read_text().lower()
    assert (tmp_path / "export" / "model.safetensors").exists()
    assert "validation before the first step" in adapters
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert (tmp_path / "merged" / "model.safetensors").exists()
    assert (tmp_path / "turned" / "00000.png").exists()
    assert list((tmp_path / "data" / "captions").glob("generate-*.array_record"))
