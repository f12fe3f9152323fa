"""Repeats the ablation of Janus (section 4.3, Table 5) on mosaics of real handwritten digits, and writes a page.

    python -m examples.digits.encoder_ablation.run --output=ablation

    ablation/report.html, report.json    the results
    ablation/siglip/                     a SigLIP pretrained on captions of training images
    ablation/vq_tokenizer/, semantic_tokenizer/
    ablation/arms/ARM-SEED/              a training workdir per arm and seed
    ablation/data/                       records and text tokenizer

An interrupted run goes on where it stopped. Nothing here is tuned until the paper's order appears.
"""

import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from examples.digits.benchmark import Judge
from examples.digits.data import Digits, build_tokenizer, load_digits
from examples.digits.encoder_ablation import arms, evaluation, mosaics
from examples.digits.encoder_ablation.pretrain_siglip import pretrain_siglip
from examples.digits.encoder_ablation.report import render
from janus_jax.data.images import to_images
from janus_jax.data.records import write_records
from janus_jax.data.tokenizer import FILE_NAME, Tokenizer
from janus_jax.errors import UserError
from janus_jax.inference.janus import JanusPipeline
from janus_jax.models.config import CodeModelConfig, SemanticTokenizerConfig, VQConfig
from janus_jax.models.params import Params, bind, build, init_params
from janus_jax.models.presets import JANUS_PRO_TINY
from janus_jax.ops.codebook import lookup_codes
from janus_jax.ops.pixels import normalize
from janus_jax.storage import prepare_folder, write_json
from janus_jax.training.loop import train
from janus_jax.weights.load import load_params
from janus_jax.weights.native import open_params, read_architecture, save_params
from launch.cli import compilation_cache, errors
from launch.cli.host_memory import keep_freed_memory

OUTPUT = flags.DEFINE_string("output", "ablation", "Folder for everything that is written.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds of each arm.", lower_bound=1)
QUICK = flags.DEFINE_bool("quick", False, "Takes a few steps only, to try the program.")
flags.adopt_module_key_flags(compilation_cache)

TRAINING_SEED, HELD_OUT_SEED = 1, 2
RUN_FILE = "run.json"  # settings of the run, so that it is not continued with others


def main() -> None:
    keep_freed_memory()
    sizes = arms.QUICK if QUICK.value else arms.FULL
    folder = prepare_folder("output", OUTPUT.value)
    _require_same_run(folder, sizes)
    compilation_cache.enable()  # seeds of an arm share their programs
    start = time.monotonic()
    digits, held_out = load_digits()
    training = mosaics.make_mosaics(digits, sizes.mosaics, TRAINING_SEED)
    asked = evaluation.make_questions(mosaics.make_mosaics(held_out, sizes.held_out, HELD_OUT_SEED), HELD_OUT_SEED)
    if not (folder / "data" / FILE_NAME).exists():
        write_data(folder / "data", training)
    if not (folder / "siglip" / FILE_NAME).exists():
        write_siglip(folder, training, sizes.siglip_steps)
    for semantic in (False, True):
        config = arms.tokenizer_config(semantic, sizes.tokenizer_steps, folder)
        train(config, folder / config.name)
    probes = probe_features(folder, training[: len(asked.mosaics) * 10], asked.mosaics)
    print(f"linear probe: {probes}", flush=True)
    results = {}
    for seed in range(SEEDS.value):  # all arms of a seed, so that an interrupted run can be compared, too
        for arm in arms.ARMS:
            config = arms.arm_config(arm, sizes, seed, folder)
            results[arm.letter, seed] = run_arm(config, folder / "arms" / f"{arm.letter}-{seed}", digits, asked)
        report = make_report(folder, sizes, results, probes, limits(folder, digits, asked))
        report["seconds"] = round(time.monotonic() - start, 1)  # of this start of the program
        write_json(folder / "report.json", report)
        (folder / "report.html").write_text(render(report, [mosaic.image for mosaic in asked.mosaics[:8]]))
        print(f"page after {seed + 1} of {SEEDS.value} seeds: {folder / 'report.html'}", flush=True)


def write_data(folder: epath.Path, training: list[mosaics.Mosaic]) -> None:
    """Writes records of both tasks, about the same images, and a text tokenizer trained on their texts."""
    folder.mkdir(parents=True, exist_ok=True)
    records = {
        "understand": mosaics.understanding_records(training, TRAINING_SEED),
        "generate": mosaics.generation_records(training),
    }
    for task, of_task in records.items():
        write_records(folder / f"{task}.array_record", of_task)
    texts = [record for of_task in records.values() for record in of_task[:2000]]
    build_tokenizer(texts, JANUS_PRO_TINY.llama.vocab_size, JANUS_PRO_TINY.prompt_style).save(folder / FILE_NAME)


def write_siglip(folder: epath.Path, training: list[mosaics.Mosaic], steps: int) -> None:
    """Pretrains the SigLIP and writes it as a part of a Janus whose other parameters are random."""
    labels = np.array([mosaic.labels for mosaic in training])
    print(f"pretraining SigLIP for {steps} steps", flush=True)
    siglip, losses = pretrain_siglip(JANUS_PRO_TINY.siglip, mosaics.pixels(training), labels, steps, seed=0)
    print(f"loss of SigLIP: {losses[0]:.2f} at first, {np.mean(losses[-20:]):.3f} at the end", flush=True)
    save_params(folder / "siglip", JANUS_PRO_TINY, init_params(JANUS_PRO_TINY, seed=0) | {"siglip": siglip})
    Tokenizer.from_file(folder / "data" / FILE_NAME).save(folder / "siglip" / FILE_NAME)


def run_arm(config: ConfigDict, workdir: epath.Path, digits: Digits, asked: evaluation.Asked) -> dict[str, Any]:
    """Trains an arm, evaluates its checkpoints, counts its samples; reads the result of an earlier start."""
    result_file = workdir / "result.json"
    if result_file.exists():
        return json.loads(result_file.read_text())
    train(config, workdir)
    architecture = read_architecture(workdir)
    assert isinstance(architecture, CodeModelConfig)
    tokenizer, judge = Tokenizer.from_file(workdir / FILE_NAME), Judge(digits)
    tasks = [task for task in arms.TASKS if config.data.ratio[task]]
    points = []
    for step in range(config.checkpoint.every_steps, config.train.num_steps + 1, config.checkpoint.every_steps):
        model = JanusPipeline(architecture, load_params(open_params(workdir, architecture, step=step)), tokenizer)
        point: dict[str, Any] = {"step": step, "samples": step * arms.BATCH // len(tasks)}
        if "understand" in tasks:
            point["understanding"] = evaluation.understanding(model, asked)
        if "generate" in tasks:
            point["generation"] = evaluation.generation(model, judge, asked, config.seed)
        points.append(point)
        print(f"{workdir.name}: {point}", flush=True)
    samples = {task: read._asdict() for task, read in arms.count_samples(config).items()}
    result = {"steps": config.train.num_steps, "samples": samples, "points": points}
    write_json(result_file, result)
    return result


def make_report(
    folder: epath.Path,
    sizes: arms.Sizes,
    results: dict[tuple[str, int], dict[str, Any]],
    probes: dict[str, float],
    bounds: dict[str, float],
) -> dict[str, Any]:
    """The content of report.json. Raises AssertionError where arms did not read equal samples."""
    seeds = sorted({seed for _, seed in results})
    for seed in seeds:
        read = {
            arm: {task: arms.Samples(**samples) for task, samples in result["samples"].items()}
            for (arm, of), result in results.items()
            if of == seed
        }
        arms.require_equal_samples(read)
    return {
        "sizes": sizes._asdict(),
        "seeds": seeds,
        "equal_samples": True,  # asserted above
        "arms": {
            arm.letter: {
                "reads": arm.reads,
                "tasks": arm.tasks,
                "runs": [results[arm.letter, seed] for seed in seeds],
            }
            for arm in arms.ARMS
        },
        "linear_probe": probes,
        **bounds,
    }


def limits(folder: epath.Path, digits: Digits, asked: evaluation.Asked) -> dict[str, float]:
    """What an answer without an image reaches, and what the judge reads in real images and through the tokenizers."""
    judge, images = Judge(digits), [mosaic.image for mosaic in asked.mosaics]
    bounds = {
        "most_common_answer": evaluation.most_common_answer(asked),
        "judge_on_real": evaluation.read_digits(judge, images, asked.mosaics),
    }
    for name in ("vq_tokenizer", "semantic_tokenizer"):
        _, vq, params = _tokenizer(folder / name)
        encoded = jax.jit(bind(build(vq), params))(normalize(jnp.asarray(mosaics.pixels(asked.mosaics)), jnp.float32))
        bounds[f"judge_on_{name}"] = evaluation.read_digits(judge, to_images(encoded.reconstruction), asked.mosaics)
        bounds[f"codes_used_by_{name}"] = len(np.unique(encoded.codes))
    return bounds


def probe_features(
    folder: epath.Path, training: list[mosaics.Mosaic], held_out: list[mosaics.Mosaic]
) -> dict[str, float]:
    """Accuracy of a linear probe of which digit is at a place, for what each encoder gives to the language model."""
    siglip = load_params(open_params(folder / "siglip", JANUS_PRO_TINY))["siglip"]
    features = {"SigLIP": bind(build(JANUS_PRO_TINY.siglip), siglip)}
    for name in ("vq_tokenizer", "semantic_tokenizer"):
        whole, vq, params = _tokenizer(folder / name)
        title = name.replace("_", " ").replace("vq", "VQ")

        def codes(pixels: jax.Array, vq: VQConfig = vq, params: Params = params) -> jax.Array:
            return bind(build(vq), params)(pixels, method="encode")

        def vectors(pixels: jax.Array, codes: Any = codes, params: Params = params) -> jax.Array:
            return lookup_codes(codes(pixels), params["codebook"])

        def one_hot(pixels: jax.Array, codes: Any = codes, vq: VQConfig = vq) -> jax.Array:
            return jax.nn.one_hot(codes(pixels), vq.num_codes)

        features |= {f"vectors of codes, {title}": vectors, f"codes, one-hot, {title}": one_hot}
        if isinstance(whole, SemanticTokenizerConfig):
            semantic = load_params(open_params(folder / name, whole))

            def decoded(pixels: jax.Array, whole: Any = whole, semantic: Params = semantic, codes: Any = codes):
                return bind(build(whole), semantic)(codes(pixels), method="features")[0]

            features["semantic features"] = decoded
    labels = [np.array([mosaic.labels for mosaic in of]) for of in (training, held_out)]
    probes = {}
    for name, function in features.items():
        train_features, test_features = (
            np.asarray(jax.jit(function)(normalize(jnp.asarray(mosaics.pixels(of)), jnp.float32)))
            for of in (training, held_out)
        )
        probes[name] = evaluation.linear_probe(train_features, labels[0], test_features, labels[1])
    return probes


def _tokenizer(workdir: epath.Path) -> tuple[Any, VQConfig, Params]:
    """Architecture of a trained image tokenizer, that of its VQ model, and the parameters of the latter."""
    whole = read_architecture(workdir)
    params = load_params(open_params(workdir, whole))
    if isinstance(whole, SemanticTokenizerConfig):
        return whole, whole.vq, params["vq"]
    assert isinstance(whole, VQConfig)
    return whole, whole, params


def _require_same_run(folder: epath.Path, sizes: arms.Sizes) -> None:
    """Raises UserError where the folder holds a run of other sizes."""
    file, settings = folder / RUN_FILE, sizes._asdict()
    if not file.exists():
        write_json(file, settings)
    elif json.loads(file.read_text()) != settings:
        raise UserError(f"--output={folder}: holds a run of other sizes, expected a new folder or that of the same run")


if __name__ == "__main__":
    errors.run(main)
