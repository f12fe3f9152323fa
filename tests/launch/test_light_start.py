"""Commands answer --help and mistakes before they import what is heavy; choices of flags are those of the library."""

import ast
import subprocess
import sys

import pytest

from janus_jax.evaluation import job
from janus_jax.evaluation.model_answers import ROLE_STRINGS
from janus_jax.ops.flow import SOLVERS
from janus_jax.weights.quantization import QUANTIZATIONS
from janus_jax.weights.write_model import LAYOUTS
from tests.helpers import REPOSITORY

COMMANDS = sorted(path.stem for path in (REPOSITORY / "launch").glob("[!_]*.py"))
CODE = """
import runpy, sys
sys.argv[0] = sys.argv[1]
del sys.argv[1]
try:
    runpy.run_module("launch." + sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as end:
    HEAVY = ("jax", "jaxlib", "flax", "optax", "orbax", "tensorstore", "grain", "tensorboardX", "torch",
             "transformers", "apache_beam", "tensorflow", "pyarrow", "sklearn")
    print()
    print(end.code or 0, [name for name in HEAVY if name in sys.modules])
"""


def start(command, *arguments):
    """Exit code, heavy modules that were imported, and all output of a command in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", CODE, command, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    code, _, modules = result.stdout.splitlines()[-1].partition(" ")
    return int(code), ast.literal_eval(modules), result.stdout + result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command):
    code, heavy, output = start(command, "--help")
    assert (code, heavy) == (0, []) and "--" in output


MISTAKES = {
    "a mistyped flag": ("chat", "--chekpoint=model"),
    "no such model to ask": ("chat", "--checkpoint=no_such", "--prompt=x"),
    "no such image": ("chat", "--checkpoint=tests", "--prompt=x", "--image=no_such"),
    "no such model to generate": ("generate", "--checkpoint=no_such", "--prompt=x", "--output=unused"),
    "no such config": ("train", "--config=no_such.py", "--workdir=unused"),
    "no such input": ("convert", "--input=no_such", "--to=hf", "--output=unused"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_before_anything_heavy_is_imported(mistake):
    code, heavy, output = start(*MISTAKES[mistake])
    assert (code, heavy) == (2, []) and "error: " in output
    assert "no_such" in output or "chekpoint" in output


def choices(file, flag):
    """The literal choices, or the default, of a flag."""
    for node in ast.walk(ast.parse((REPOSITORY / "launch" / file).read_text())):
        if isinstance(node, ast.Call) and node.args and getattr(node.args[0], "value", None) == flag:
            value = node.args[2 if node.func.attr == "DEFINE_enum" else 1]
            return ast.literal_eval(value)
    raise AssertionError(f"{file} has no flag {flag}")


def test_choices_that_are_written_out_are_those_of_the_library():
    """The library's modules import JAX, so the commands cannot take the choices from there."""
    assert choices("generate.py", "solver") == sorted(SOLVERS)
    assert choices("cli/model_flags.py", "quantize") == list(QUANTIZATIONS)
    assert choices("quantization_report.py", "quantize") == list(QUANTIZATIONS)
    assert choices("random_model.py", "layout") == list(LAYOUTS)
    assert choices("convert.py", "to") == (*LAYOUTS, "peft", "llamagen")
    assert choices("cli/evaluation_model.py", "role_strings") == list(ROLE_STRINGS)
    assert choices("evaluate.py", "rows") == job.ROWS


def test_the_suites_of_the_benchmark_are_its_modules():
    suites = ast.literal_eval(
        next(
            node.value
            for node in ast.parse((REPOSITORY / "launch/benchmark.py").read_text()).body
            if isinstance(node, ast.Assign) and node.targets[0].id == "SUITES"
        )
    )
    for suite in suites:
        assert "def run(" in (REPOSITORY / f"benchmarks/{suite}.py").read_text()
