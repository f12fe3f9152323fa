"""launch.convert prints progress as lines where there is no terminal, and keeps no output that PyTorch contradicts."""

import subprocess
import sys

from tests.helpers import REPOSITORY
from tests.helpers.small_folders import make_small, save_small

# Reports a difference that the weights of this test do not have.
CODE = """
import runpy
from janus_jax.weights import verify
verify.compare_with_torch = lambda *_: [verify.StageDifference("text logits", 1.0, 1.0)]
runpy.run_module("launch.convert", run_name="__main__")
"""


def test_an_output_that_pytorch_contradicts_is_not_kept(tmp_path):
    model, config, _, tokenizer = make_small()
    hf = save_small(tmp_path / "hf", model, config, tokenizer)
    flags = [f"--input={hf}", f"--output={tmp_path / 'ours'}", "--to=hf", "--verify"]
    run = subprocess.run(
        [sys.executable, "-c", CODE, *flags], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 2
    assert "tensors are equal bit for bit" in run.stdout and "DIFFERS" in run.stdout
    count = len(model.state_dict())
    assert f"loads in the original, transformers' JanusForConditionalGeneration: all {count} tensors" in run.stdout
    *progress, error = [line for line in run.stderr.splitlines() if "%: " in line or line.startswith("error: ")]
    assert error.endswith("ours was not kept: PyTorch computes something else at: text logits")
    assert 5 <= len(progress) <= 10 and progress[-1].startswith("100%: ")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
