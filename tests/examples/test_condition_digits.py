"""The quickstart's model learns to turn and to mirror the digit of an image; the prompt does not name the digit."""

import subprocess
import sys

import pytest

from configs import quickstart
from configs.base import ratio
from examples.digits.benchmark import Judge
from examples.digits.data import load_digits
from janus_jax.inference.loading import from_pretrained
from janus_jax.training.loop import train
from tests.helpers import REPOSITORY
from tests.helpers.digit_edits import edit_accuracy, write_edits

STEPS = 1300


def edit_config(folder, pattern):
    """Stage III of the quickstart, from its end, on pairs of images alone. A row holds two samples."""
    config = quickstart.get_config("stage3").unlock()
    config.init.checkpoint = str(folder / "runs" / "stage3")
    config.data.tokenizer = str(folder / "data" / "tokenizer.json")
    config.data.sources.generate = (pattern,)
    config.data.ratio = ratio(0.0, 0.0, 1.0)
    config.data.update(condition_images=True, und_slots=2, gen_slots=4, row_length=112)
    config.train.num_steps = STEPS
    config.checkpoint.every_steps = STEPS
    config.validate.every_steps = 0
    return config


@pytest.mark.slow  # the whole quickstart, and then 170 seconds of processor time to train
def test_a_digit_is_edited_as_asked_and_only_with_its_image(tmp_path):
    command = [sys.executable, "-m", "examples.digits.quickstart", f"--output={tmp_path / 'quickstart'}"]
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=3600)
    training, held_out = load_digits()
    pattern = write_edits(tmp_path / "edits", training, tmp_path / "quickstart" / "runs" / "tokenizer")
    train(edit_config(tmp_path / "quickstart", pattern), tmp_path / "run")
    model, judge = from_pretrained(tmp_path / "run"), Judge(training)
    options = dict(cfg_weight=1.0, temperature=0.0)  # captions are never dropped here, so that guidance means nothing
    with_image = edit_accuracy(model, judge, held_out, with_image=True, **options)
    without = edit_accuracy(model, judge, held_out, with_image=False, **options | {"temperature": 1.0})
    print(f"right with the image {with_image}, without {without}")
    assert min(with_image) >= 0.9
    assert max(without) <= 0.2  # chance is 0.1
