"""Evaluates a trained quickstart model, and gathers what its report page shows."""

import importlib.metadata
import platform
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from etils import epath

import janus_jax
from examples.digits import data as digits
from examples.digits.benchmark import (
    Generation,
    Judge,
    Understanding,
    evaluate_generation,
    evaluate_understanding,
    reconstruction_psnr,
)
from examples.digits.recipes import Recipe
from examples.digits.report import Phase, Question, ReportPage
from janus_jax.data.images import to_images
from janus_jax.inference.janus import JanusPipeline
from janus_jax.inference.janusflow import JanusFlowPipeline
from janus_jax.models.params import abstract_params, build
from janus_jax.models.presets import VQ_DIGITS
from janus_jax.ops.pixels import normalize
from janus_jax.training.architecture import model_config
from janus_jax.training.freezing import module_table, trainable_mask
from janus_jax.training.metrics_log import read_metrics
from janus_jax.weights.load import load_params
from janus_jax.weights.native import open_params

IMAGES_PER_CLASS = 20
FLOW_STEPS = {"euler": (1, 4, 30), "heun": (1, 4)}  # solver -> numbers of its steps that are compared
FLOW_PASSES = {"euler": 1, "heun": 2}  # solver -> passes through the model in each step
Generate = Callable[..., Generation]  # generates images of a model with given options and lets the judge read them


class Results(NamedTuple):
    """Scores of a model and the images behind them."""

    report: dict[str, Any]  # scores, by their keys in report.json
    understanding: Understanding
    generation: Generation
    originals: list[PIL.Image.Image]  # held-out images
    reconstructions: list[PIL.Image.Image]  # the originals through the image tokenizer and back; JanusFlow has none


def generate_and_judge(
    model: JanusPipeline | JanusFlowPipeline,
    judge: Judge,
    training: digits.Digits,
    *,
    cfg_weight: float,
    seed: int,
    **options: Any,
) -> Generation:
    """Generates IMAGES_PER_CLASS images of each digit and lets the judge read them."""
    options |= {"images_per_class": IMAGES_PER_CLASS, "cfg_weight": cfg_weight, "seed": seed}
    return evaluate_generation(model, judge, training, **options)


def evaluate(
    model: JanusPipeline | JanusFlowPipeline,
    judge: Judge,
    training: digits.Digits,
    held_out: digits.Digits,
    tokenizer_run: epath.Path,
    *,
    cfg_weight: float,
    seed: int,
) -> Results:
    """Asks about all held-out digits and generates images of each digit.

    Args:
        tokenizer_run: training workdir of the image tokenizer; JanusFlow does not have one.
    """

    def generate(**options: Any) -> Generation:
        return generate_and_judge(model, judge, training, cfg_weight=cfg_weight, seed=seed, **options)

    understanding = evaluate_understanding(model, held_out)
    generation = generate()
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
        report["solvers"] = _compare_solvers(generate, generation)
    else:
        reconstructions, report["vq_codes_used"] = _reconstruct(tokenizer_run, originals)
        report["vq_reconstruction_psnr"] = reconstruction_psnr(_pixels(originals), _pixels(reconstructions))
    return Results(report, understanding, generation, originals, reconstructions)


def report_page(recipe: Recipe, report: dict[str, Any], results: Results, runs: epath.Path) -> ReportPage:
    """Everything that the page shows.

    Args:
        report: the content of report.json.
        runs: folder with the training workdir of each phase.
    """
    understanding, generation = results.understanding, results.generation
    expected = [digits.NAMES[label] for label in understanding.labels]
    questions = [
        Question(*fields)
        for fields in zip(results.originals, understanding.questions, understanding.answers, expected, strict=True)
    ]
    wrong = [question for question in questions if question.answer != question.expected]
    right = [question for question in questions if question.answer == question.expected]
    pairs = zip(results.originals, results.reconstructions, strict=True) if results.reconstructions else ()
    return ReportPage(
        family=recipe.family,
        report=report,
        targets=recipe.targets,
        phases=[_phase(recipe, name, runs / name) for name in recipe.experiment.PHASES],
        generated=_by_class(generation.images, generation.labels),
        real=[(name, images[:6]) for name, images in _by_class(results.originals, understanding.labels)],
        reconstructions=list(pairs)[:12],
        questions=(wrong + right)[:24],
        confusion=generation.confusion,
        class_names=list(digits.NAMES),
        versions=_versions(),
        notes=list(recipe.notes),
    )


def _compare_solvers(generate: Generate, default: Generation) -> list[dict[str, Any]]:
    """Quality of the images for each solver of JanusFlow and each number of steps.

    Args:
        default: images of the default, 30 Euler steps.
    """
    solvers = []
    for solver, numbers in FLOW_STEPS.items():
        for steps in numbers:
            is_default = (solver, steps) == ("euler", 30)
            generation = default if is_default else generate(solver=solver, num_steps=steps)
            scores = {"accuracy": generation.accuracy, "diversity": generation.diversity}
            solvers.append({"solver": solver, "steps": steps, "passes": steps * FLOW_PASSES[solver], **scores})
    return solvers


def _reconstruct(workdir: epath.Path, images: list[PIL.Image.Image]) -> tuple[list[PIL.Image.Image], int]:
    """(images through the tokenizer and back, number of different codes that they use)."""
    params = load_params(open_params(workdir, VQ_DIGITS))
    result = jax.jit(build(VQ_DIGITS).apply)({"params": params}, normalize(jnp.asarray(_pixels(images)), jnp.float32))
    return to_images(result.reconstruction), len(np.unique(result.codes))


def _phase(recipe: Recipe, name: str, workdir: epath.Path) -> Phase:
    title, note = recipe.titles[name]
    config = recipe.experiment.get_config(name)
    shapes = abstract_params(model_config(config))
    mask = trainable_mask(shapes, config.trainable)
    return Phase(name, title, note, read_metrics(workdir), module_table(shapes, mask))


def _by_class(images: list[PIL.Image.Image], labels: np.ndarray) -> list[tuple[str, list[PIL.Image.Image]]]:
    return [(name, [images[i] for i in np.flatnonzero(labels == label)]) for label, name in enumerate(digits.NAMES)]


def _versions() -> dict[str, str]:
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scikit-learn")
    versions = {name: importlib.metadata.version(name) for name in packages}
    versions = {"python": platform.python_version(), "janus_jax": janus_jax.__version__} | versions
    return versions | {"backend": jax.default_backend()}


def _pixels(images: list[PIL.Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])
