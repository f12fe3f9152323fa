"""Fine-tuning the quickstart's model: it learns to edit an image, and to answer a new question with adapters alone."""

import subprocess
import sys

import pytest

from configs import quickstart
from configs.base import ratio
from examples.digits.benchmark import Judge
from examples.digits.data import load_digits
from janus_jax.inference.loading import from_pretrained
from janus_jax.models.params import count
from janus_jax.training.loop import train
from janus_jax.training.plan import make_plan
from tests.helpers import REPOSITORY
from tests.helpers.digit_edits import edit_accuracy, write_edits
from tests.helpers.digit_questions import answer_accuracy, write_questions

EDIT_STEPS, ANSWER_STEPS = 1300, 300
RULE = (r"llm/.*[qkvo]_proj/kernel", 8, 16.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The output of the quickstart."""
    output = tmp_path_factory.mktemp("digits") / "quickstart"
    command = [sys.executable, "-m", "examples.digits.quickstart", f"--output={output}"]
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=3600)
    return output


def finetuning(folder, steps):
    """Stage III of the quickstart, from its end, towards a learning rate of zero."""
    config = quickstart.get_config("stage3").unlock()
    config.init.checkpoint = str(folder / "checkpoint")
    config.data.tokenizer = str(folder / "data" / "tokenizer.json")
    config.train.update(num_steps=steps, schedule="cosine", ema=0.0)
    config.checkpoint.every_steps = steps
    config.validate.every_steps = 0
    return config


def edit_config(folder, pattern):
    """Pairs of images alone. A row holds two samples."""
    config = finetuning(folder, EDIT_STEPS)
    config.data.sources.generate = (pattern,)
    config.data.ratio = ratio(0.0, 0.0, 1.0)
    config.data.update(condition_images=True, und_slots=2, gen_slots=4, row_length=112)
    return config


def answer_config(folder, pattern, adapters):
    """A new question about images alone, learned by all parameters but the image tokenizer, or by adapters."""
    config = finetuning(folder, ANSWER_STEPS)
    config.data.sources.understand = (pattern,)
    config.data.ratio = ratio(1.0, 0.0, 0.0)
    config.train.learning_rate = 1e-3
    if adapters:
        config.trainable = ((".*", False),)
        config.lora.rules = (RULE,)
        config.train.learning_rate = 4e-3
    return config


@pytest.mark.slow  # the whole quickstart, and then 170 seconds of processor time to train
def test_a_digit_is_edited_as_asked_and_only_with_its_image(folder, tmp_path):
    training, held_out = load_digits()
    pattern = write_edits(tmp_path / "edits", training, folder / "runs" / "tokenizer")
    train(edit_config(folder, pattern), tmp_path / "run")
    model, judge = from_pretrained(tmp_path / "run"), Judge(training)
    options = dict(cfg_weight=1.0, temperature=0.0)  # captions are never dropped here, so that guidance means nothing
    with_image = edit_accuracy(model, judge, held_out, with_image=True, **options)
    without = edit_accuracy(model, judge, held_out, with_image=False, **options | {"temperature": 1.0})
    print(f"right with the image {with_image}, without {without}")
    assert min(with_image) >= 0.9
    assert max(without) <= 0.2  # chance is 0.1


@pytest.mark.slow
def test_adapters_of_rank_8_learn_nearly_all_that_full_finetuning_learns(folder, tmp_path):
    training, held_out = load_digits()
    pattern = write_questions(tmp_path / "questions", training)
    before = answer_accuracy(from_pretrained(folder / "checkpoint"), held_out)
    gains, trained = [], []
    for adapters in (False, True):
        config = answer_config(folder, pattern, adapters)
        workdir = tmp_path / f"adapters_{adapters}"
        train(config, workdir)
        gains.append(answer_accuracy(from_pretrained(workdir), held_out) - before)
        trained.append(count(make_plan(config).state.trainable))
    print(f"right before {before}, gained by full fine-tuning and by adapters {gains}, parameters {trained}")
    assert before <= 0.1 and gains[0] >= 0.9
    assert gains[1] >= 0.95 * gains[0]
    assert trained[1] < 0.05 * trained[0]
