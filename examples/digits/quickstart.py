"""Trains a tiny Janus-Pro on real handwritten digits through all stages, asks it, lets it draw, writes a report.

    python -m examples.digits.quickstart --output=quickstart --seed=0
    python -m examples.digits.quickstart --model=flow                     # a JanusFlow, in quickstart-flow/
    python -m examples.digits.quickstart --model=flow --ablation          # and what its alignment loss brings

    quickstart/report.html, report.json, samples.png    what came out
    quickstart/checkpoint/                              for launch.chat and launch.generate
    quickstart/examples/                                held-out images to ask about
    quickstart/data/, runs/                             records and tokenizer, training workdirs
    quickstart/ablation/                                training workdirs of --ablation

An interrupted run goes on where it stopped; a finished one is started afresh, but for --ablation, which adds to it.
"""

import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import PIL.Image
from absl import flags
from etils import epath

from examples.digits import ablation
from examples.digits import data as digits
from examples.digits.benchmark import (
    Generation,
    Judge,
    Understanding,
    evaluate_generation,
    evaluate_understanding,
    reconstruction_psnr,
)
from examples.digits.recipes import RECIPES, Recipe
from examples.digits.report import Phase, Question, ReportPage, render
from janus_jax.data.formats.memory import Memory
from janus_jax.data.images import grid, to_images
from janus_jax.data.preparation.job import make_job
from janus_jax.data.preparation.record import RecordSettings
from janus_jax.data.preparation.writer import prepare
from janus_jax.errors import UserError
from janus_jax.inference.janusflow import JanusFlowPipeline
from janus_jax.inference.loading import from_pretrained
from janus_jax.inference.pipeline import JanusPipeline
from janus_jax.models.params import abstract_params, build
from janus_jax.models.presets import JANUS_PRO_TINY, VQ_TINY
from janus_jax.storage import prepare_folder
from janus_jax.training.freezing import module_table, trainable_mask
from janus_jax.training.loop import train
from janus_jax.training.metrics_log import read_metrics
from janus_jax.training.setup import model_config
from janus_jax.weights.load import load_params
from janus_jax.weights.native import open_params
from launch.cli import errors
from launch.cli.host_memory import keep_freed_memory

MODEL = flags.DEFINE_enum("model", "janus", list(RECIPES), "Janus-Pro, which draws codes, or JanusFlow")
OUTPUT = flags.DEFINE_string("output", None, "folder for everything that is written; default: quickstart[-flow]")
SEED = flags.DEFINE_integer("seed", 0, "seed of parameters, data order and drawings")
CFG_WEIGHT = flags.DEFINE_float("cfg_weight", None, "guidance of the drawings; default: 2.5, JanusFlow 1.5")

ABLATION = flags.DEFINE_bool("ablation", False, "JanusFlow: also train with and without the alignment loss and compare")

WRITTEN = ("report.json", "report.html", "samples.png", "runs", "ablation", "checkpoint", "data", "examples")
# Seed and seconds of the run so far; only a folder with this file is ever cleared.
MARKER = ".janus_jax_quickstart"
IMAGES_PER_CLASS = 20
FLOW_STEPS = (1, 2, 4, 8, 16, 30)
ABLATION_POINTS = 3  # at which both arms are compared
NOT_COUNTED = ("ablation",)  # in the seconds of the whole


def main() -> None:
    keep_freed_memory()
    recipe = RECIPES[MODEL.value]
    if ABLATION.value and MODEL.value != "flow":
        raise UserError(f"--ablation is of the alignment loss, which --model={MODEL.value} does not have")
    output = prepare_folder("output", OUTPUT.value or ("quickstart-flow" if MODEL.value == "flow" else "quickstart"))
    phases = recipe.experiment.PHASES
    seconds = _claim(output)
    training, held_out = digits.load_digits()
    with _timed(output, seconds, "data"):
        _write_data(output / "data", training)
        _write_examples(output / "examples", held_out)
    for phase in phases:
        with _timed(output, seconds, phase):
            train(_phase_config(recipe, phase, output, output / "runs"), output / "runs" / phase)
    arms: dict[str, Any] = {}
    if ABLATION.value:
        with _timed(output, seconds, "ablation"):
            config = _with_data(recipe.experiment.get_config(recipe.experiment.ABLATION), output)
            arms = ablation.arm_configs(config, ABLATION_POINTS)
            ablation.train_arms(arms, output / "ablation")
    with _timed(output, seconds, "evaluation"):
        print(f"asking {len(held_out.labels)} questions, drawing {IMAGES_PER_CLASS} images per digit", flush=True)
        model = from_pretrained(output / "runs" / phases[-1], ema=recipe.ema)
        if not (output / "checkpoint").exists():
            model.save_pretrained(output / "checkpoint")
        cfg_weight = recipe.cfg_weight if CFG_WEIGHT.value is None else CFG_WEIGHT.value
        judge = Judge(training)
        results = _evaluate(model, output, judge, training, held_out, cfg_weight)
    if arms:
        with _timed(output, seconds, "ablation"):
            assert isinstance(model, JanusFlowPipeline)
            results["report"]["alignment"] = ablation.compare(
                arms, output / "ablation", model, lambda other: _draw(other, judge, training, cfg_weight).accuracy
            )
    report = results.pop("report") | {
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "total_seconds": round(sum(value for name, value in seconds.items() if name not in NOT_COUNTED), 1),
        "seed": SEED.value,
        "cfg_weight": cfg_weight,
    }
    page = _page(recipe, report, output, **results)
    (output / "report.html").write_text(render(page))
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    print(f"page: {output / 'report.html'}")


def _claim(output: epath.Path) -> dict[str, float]:
    """Marks the folder as the quickstart's; returns the seconds that a run which goes on has spent.

    A stopped run goes on, with --ablation a finished one too, which is evaluated again; else a finished one is cleared.

    Raises UserError for somebody else's files and for a run that would go on with another model or seed.
    """
    marker = output / MARKER
    if not marker.exists():
        for name in WRITTEN:
            if (output / name).exists():
                raise UserError(f"--output={output}: holds {name}, which no quickstart wrote; expected a new folder")
    elif (output / "report.json").exists() and not ABLATION.value:
        for name in WRITTEN:
            path = output / name
            path.rmtree() if path.is_dir() else path.unlink(missing_ok=True)
    else:
        started = json.loads(marker.read_text())
        if started.get("model", "janus") != MODEL.value:
            raise UserError(f"--model={MODEL.value}, but the run in {output} is of {started['model']}")
        if started["seed"] != SEED.value:
            raise UserError(
                f"--seed={SEED.value}, but the run in {output} has seed {started['seed']}: "
                "go on with that one, or remove the folder"
            )
        seconds = started["seconds"]
        if (output / "report.json").exists():
            (output / "report.json").unlink()
            seconds.pop("evaluation", None)
        return seconds
    _mark(output, {})
    return {}


def _mark(output: epath.Path, seconds: dict[str, float]) -> None:
    (output / MARKER).write_text(json.dumps({"model": MODEL.value, "seed": SEED.value, "seconds": seconds}) + "\n")


@contextmanager
def _timed(output: epath.Path, seconds: dict[str, float], name: str) -> Iterator[None]:
    """Adds the time to the phase's, also when it is interrupted."""
    start, before = time.monotonic(), seconds.get(name, 0.0)
    try:
        yield
    finally:
        seconds[name] = before + time.monotonic() - start
        _mark(output, seconds)


def _write_data(folder: epath.Path, training: digits.Digits) -> None:
    """Records of the training images, as `launch.prepare_data` writes them, and a tokenizer trained on their texts."""
    folder.mkdir(parents=True, exist_ok=True)
    records = tuple(digits.all_records(training))
    tokenizer = digits.build_tokenizer(records, JANUS_PRO_TINY.llama.vocab_size, JANUS_PRO_TINY.prompt_style)
    tokenizer.save(folder / "tokenizer.json")
    prepare(make_job(Memory(name="digits", records=records), folder / "records", RecordSettings(), num_output_files=4))


def _write_examples(folder: epath.Path, held_out: digits.Digits) -> None:
    """The first held-out image of each digit, e.g. seven.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for label, name in enumerate(digits.NAMES):
        image = digits.to_image(held_out.intensities[np.flatnonzero(held_out.labels == label)[0]])
        _save_png(folder / f"{name}.png", image)


def _phase_config(recipe: Recipe, phase: str, output: epath.Path, runs: epath.Path) -> Any:
    """The phase's config with this run's data and seed, which goes on from the phase before in `runs`."""
    config = _with_data(recipe.experiment.get_config(phase), output)
    place = recipe.experiment.PHASES.index(phase)
    if place:
        previous = recipe.experiment.PHASES[place - 1]
        config.init["vq" if previous == "tokenizer" else "checkpoint"] = str(runs / previous)
    return config


def _with_data(config: Any, output: epath.Path) -> Any:
    """The config with this run's data and seed."""
    config.seed = SEED.value
    config.data.tokenizer = str(output / "data" / "tokenizer.json")
    records = output / "data" / "records"
    config.data.sources = {task: (str(records / f"{task}-*.array_record"),) for task in config.data.sources}
    return config


def _draw(
    model: JanusPipeline | JanusFlowPipeline, judge: Judge, training: digits.Digits, cfg_weight: float, **options: Any
) -> Generation:
    options |= {"images_per_class": IMAGES_PER_CLASS, "cfg_weight": cfg_weight, "seed": SEED.value}
    return evaluate_generation(model, judge, training, **options)


def _evaluate(
    model: JanusPipeline | JanusFlowPipeline,
    output: epath.Path,
    judge: Judge,
    training: digits.Digits,
    held_out: digits.Digits,
    cfg_weight: float,
) -> dict[str, Any]:
    understanding = evaluate_understanding(model, held_out)
    generation = _draw(model, judge, training, cfg_weight)
    _save_png(output / "samples.png", grid(generation.images, columns=IMAGES_PER_CLASS))
    originals = [digits.to_image(intensities) for intensities in held_out.intensities]
    report: dict[str, Any] = {
        "understanding_accuracy": understanding.accuracy,
        "generation_accuracy": generation.accuracy,
        "judge_accuracy_on_real": float(np.mean(judge(originals) == held_out.labels)),
        "generation_accuracy_permuted_prompts": generation.accuracy_permuted,
        "generation_diversity": generation.diversity,
        "held_out_images": len(originals),
        "drawn_images": len(generation.images),
    }
    reconstructions: list[PIL.Image.Image] = []
    if isinstance(model, JanusFlowPipeline):
        report["solvers"] = _solvers(lambda **options: _draw(model, judge, training, cfg_weight, **options))
    else:
        reconstructions, report["vq_codes_used"] = _reconstruct(output / "runs" / "tokenizer", originals)
        report["vq_reconstruction_psnr"] = reconstruction_psnr(_pixels(originals), _pixels(reconstructions))
    return {
        "report": report,
        "understanding": understanding,
        "generation": generation,
        "originals": originals,
        "reconstructions": reconstructions,
    }


def _solvers(draw: Callable[..., Generation]) -> list[dict[str, Any]]:
    """Quality against the steps of both solvers."""
    solvers = []
    for solver, passes in (("euler", 1), ("heun", 2)):
        for steps in FLOW_STEPS:
            drawn = draw(solver=solver, num_steps=steps)
            scores = {"accuracy": drawn.accuracy, "diversity": drawn.diversity}
            solvers.append({"solver": solver, "steps": steps, "passes": steps * passes, **scores})
    return solvers


def _reconstruct(workdir: epath.Path, images: list[PIL.Image.Image]) -> tuple[list[PIL.Image.Image], int]:
    """(images through the tokenizer and back, number of different codes they use)."""
    params = load_params(open_params(workdir, VQ_TINY))
    result = jax.jit(build(VQ_TINY).apply)({"params": params}, _pixels(images).astype(np.float32) / 127.5 - 1)
    return to_images(result.reconstruction), len(np.unique(result.codes))


def _page(
    recipe: Recipe,
    report: dict[str, Any],
    output: epath.Path,
    *,
    understanding: Understanding,
    generation: Generation,
    originals: list[PIL.Image.Image],
    reconstructions: list[PIL.Image.Image],  # of the originals; JanusFlow has none
) -> ReportPage:
    expected = [digits.NAMES[label] for label in understanding.labels]
    questions = [
        Question(*fields)
        for fields in zip(originals, understanding.questions, understanding.answers, expected, strict=True)
    ]
    wrong = [question for question in questions if question.answer != question.expected]
    right = [question for question in questions if question.answer == question.expected]

    def by_class(images: list[PIL.Image.Image], labels: np.ndarray) -> list[tuple[str, list[PIL.Image.Image]]]:
        return [(name, [images[i] for i in np.flatnonzero(labels == label)]) for label, name in enumerate(digits.NAMES)]

    return ReportPage(
        family=recipe.family,
        report=report,
        targets=recipe.targets,
        phases=[_phase(recipe, name, output / "runs" / name) for name in recipe.experiment.PHASES],
        drawings=by_class(generation.images, generation.labels),
        real=[(name, images[:6]) for name, images in by_class(originals, understanding.labels)],
        reconstructions=list(zip(originals, reconstructions, strict=True))[:12] if reconstructions else [],
        questions=(wrong + right)[:24],
        confusion=generation.confusion,
        class_names=list(digits.NAMES),
        versions=_versions(),
        notes=list(recipe.notes),
    )


def _phase(recipe: Recipe, name: str, workdir: epath.Path) -> Phase:
    title, note = recipe.titles[name]
    config = recipe.experiment.get_config(name)
    shapes = abstract_params(model_config(config))
    mask = trainable_mask(shapes, config.trainable)
    return Phase(name, title, note, read_metrics(workdir), module_table(shapes, mask))


def _versions() -> dict[str, str]:
    packages = ("janus_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scikit-learn")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **versions, "backend": jax.default_backend()}


def _pixels(images: list[PIL.Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def _save_png(path: epath.Path, image: PIL.Image.Image) -> None:
    with path.open("wb") as file:
        image.save(file, "PNG")


if __name__ == "__main__":
    errors.run(main)
