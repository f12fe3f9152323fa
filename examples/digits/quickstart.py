"""Trains a tiny Janus-Pro or JanusFlow on real handwritten digits through all stages, evaluates it, writes a report.

    python -m examples.digits.quickstart                                  # Janus-Pro, in quickstart/
    python -m examples.digits.quickstart --model=flow                     # JanusFlow, in quickstart-flow/
    python -m examples.digits.quickstart --model=flow --ablation          # and the effect of its alignment loss

    quickstart/report.html, report.json, samples.png    the results
    quickstart/checkpoint/                              a model for launch.chat and launch.generate
    quickstart/examples/                                held-out images to ask about
    quickstart/data/, runs/                             records and tokenizer, training workdirs
    quickstart/ablation/                                training workdirs of --ablation

An interrupted run goes on where it stopped. A finished run is deleted and started afresh; with --ablation it is kept
and the ablation is added.
"""

import json
from typing import Any

import numpy as np
import PIL.Image
from absl import flags
from etils import epath

from examples.digits import ablation, preparation
from examples.digits import data as digits
from examples.digits.benchmark import Judge
from examples.digits.progress import RunProgress
from examples.digits.recipes import RECIPES, Recipe
from examples.digits.report import render
from examples.digits.results import IMAGES_PER_CLASS, evaluate, generate_and_judge, report_page
from examples.digits.run_folder import RunFolder
from janus_jax.data.images import grid
from janus_jax.errors import UserError
from janus_jax.evaluation.training_samples import sample_actions
from janus_jax.inference.janusflow import JanusFlowPipeline
from janus_jax.inference.loading import from_pretrained
from janus_jax.storage import prepare_folder
from janus_jax.training.loop import train
from launch.cli import compilation_cache, errors
from launch.cli.host_memory import keep_freed_memory

MODEL = flags.DEFINE_enum(
    "model", "janus", list(RECIPES), "Model to train: janus is Janus-Pro with image codes, flow is JanusFlow."
)
OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for everything that is written. Default: quickstart, with --model=flow quickstart-flow."
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the parameters, the data order and the generated images.")
CFG_WEIGHT = flags.DEFINE_float(
    "cfg_weight", None, "Guidance weight of the generated images. Default: that of the recipe."
)
ABLATION = flags.DEFINE_bool(
    "ablation", False, "With --model=flow: also train with and without the alignment loss at equal compute."
)
flags.adopt_module_key_flags(compilation_cache)

ABLATION_POINTS = 3  # Number of points in training at which both arms of the ablation are compared.
NOT_COUNTED = ("ablation",)  # Parts of the run that total_seconds leaves out.


def main() -> None:
    keep_freed_memory()
    recipe = RECIPES[MODEL.value]
    if ABLATION.value and MODEL.value != "flow":
        raise UserError(f"--ablation needs --model=flow: --model={MODEL.value} has no alignment loss")
    output = prepare_folder("output", OUTPUT.value or ("quickstart-flow" if MODEL.value == "flow" else "quickstart"))
    run = RunFolder.claim(output, model=MODEL.value, seed=SEED.value, add_to_finished=ABLATION.value)
    compilation_cache.enable()  # stages I and II share their programs too, which JAX does through files only
    _train_and_evaluate(recipe, run, output)


def _train_and_evaluate(recipe: Recipe, run: RunFolder, output: epath.Path) -> None:
    phases, cfg_weight = recipe.experiment.PHASES, CFG_WEIGHT.value
    training, held_out = digits.load_digits()
    with run.timed("data"):
        preparation.write_records(output / "data", training, held_out)
        _write_examples(output / "examples", held_out)
    progress = RunProgress(recipe.typical_seconds, run.seconds)
    for phase in phases:
        with run.timed(phase):
            config = _phase_config(recipe, phase, output)
            train(config, output / "runs" / phase, actions=[*sample_actions(config), progress.action(phase)])
            if phase == "tokenizer":
                preparation.write_codes(output / "data", output / "runs" / phase)
    arms: dict[str, Any] = {}
    if ABLATION.value:
        with run.timed("ablation"):
            config = _with_data(recipe.experiment.get_config(recipe.experiment.ABLATION), output)
            arms = ablation.arm_configs(config, ABLATION_POINTS)
            ablation.train_arms(arms, output / "ablation")
    with run.timed("evaluation"):
        print(f"asking {len(held_out.labels)} questions, generating {IMAGES_PER_CLASS} images per digit", flush=True)
        model = from_pretrained(output / "runs" / phases[-1], ema=True)
        if not (output / "checkpoint").exists():
            model.save_pretrained(output / "checkpoint")
        weight = recipe.cfg_weight if cfg_weight is None else cfg_weight
        sampling: dict[str, Any] = {"seed": SEED.value, "cfg_weight": weight}
        judge = Judge(training)
        results = evaluate(model, judge, training, held_out, output / "runs" / "tokenizer", **sampling)
        _save_png(output / "samples.png", grid(results.generation.images, columns=IMAGES_PER_CLASS))
    report = results.report
    if arms:
        with run.timed("ablation"):
            assert isinstance(model, JanusFlowPipeline)
            report["alignment"] = ablation.compare(
                arms,
                output / "ablation",
                model,
                lambda other: generate_and_judge(other, judge, training, **sampling).accuracy,
            )
    report |= {
        "seconds": {name: round(value, 1) for name, value in run.seconds.items()},
        "total_seconds": round(sum(value for name, value in run.seconds.items() if name not in NOT_COUNTED), 1),
        **sampling,
    }
    (output / "report.html").write_text(render(report_page(recipe, report, results, output / "runs")))
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    print(f"page: {output / 'report.html'}")


def _write_examples(folder: epath.Path, held_out: digits.Digits) -> None:
    """Writes the first held-out image of each digit, for example seven.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for label, name in enumerate(digits.NAMES):
        image = digits.to_image(held_out.intensities[np.flatnonzero(held_out.labels == label)[0]])
        _save_png(folder / f"{name}.png", image)


def _phase_config(recipe: Recipe, phase: str, output: epath.Path) -> Any:
    """The config of a phase with this run's data and seed. It starts from the weights of the phase before."""
    config = _with_data(recipe.experiment.get_config(phase), output)
    place = recipe.experiment.PHASES.index(phase)
    if place:
        previous = recipe.experiment.PHASES[place - 1]
        config.init["vq" if previous == "tokenizer" else "checkpoint"] = str(output / "runs" / previous)
    return config


def _with_data(config: Any, output: epath.Path) -> Any:
    """The config with this run's data and seed."""
    config.seed = SEED.value
    config.data.tokenizer = str(output / "data" / "tokenizer.json")
    codes = config.data.stored_codes
    config.data.sources = preparation.sources(output / "data", list(config.data.sources), stored_codes=codes)
    config.data.held_out = preparation.VALIDATION_RECORDS
    return config


def _save_png(path: epath.Path, image: PIL.Image.Image) -> None:
    with path.open("wb") as file:
        image.save(file, "PNG")


if __name__ == "__main__":
    errors.run(main)
