"""The command launch.evaluate on benchmarks of images: folders of images that are there, and an image tokenizer."""

import dataclasses
import json

import pytest
from etils import epath

from janus_jax.evaluation.image_benchmarks.distribution import open_mjhq_fid
from janus_jax.evaluation.image_benchmarks.geneval import open_geneval
from janus_jax.evaluation.image_benchmarks.options import MetricOptions
from janus_jax.weights.native import save_params
from tests.helpers.forked_commands import run_commands
from tests.helpers.generated_images import geneval_cases, write_folder, write_mjhq, write_run
from tests.helpers.metric_networks import write_small_inception
from tests.helpers.small_models import SMALL, random_params

QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # the commands wait for the compiler, not for its result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, images of both benchmarks, weights and an image tokenizer."""
    folder = epath.Path(tmp_path_factory.mktemp("images"))
    data = folder / "data"
    data.mkdir()
    cases = list(geneval_cases())
    metadata = data / "evaluation_metadata.jsonl"
    metadata.write_text("".join(json.dumps(case[0]) + "\n" for case in cases))
    lines = [{"file": f"{i:05d}/00000.png", **case[1]} for i, case in enumerate(cases)]
    (folder / "detections.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_run(open_geneval(metadata, MetricOptions(), 1).requests, folder / "geneval_images")
    mjhq = open_mjhq_fid(write_mjhq(data / "mjhq", per_category=2), MetricOptions())
    write_run(mjhq.requests, folder / "mjhq_images")
    write_small_inception(folder / "inception.safetensors")
    write_folder(folder / "real", ["a.png", "b.png", "c.png"])
    save_params(folder / "tokenizer", dataclasses.replace(SMALL.vq, image_size=8), random_params(SMALL)["vq"])
    return folder


def commands(folder):
    evaluate, data = "launch.evaluate", f"--data={folder}/data"
    images = [evaluate, data, f"--output={folder}/scores"]
    geneval = [*images, "--benchmarks=geneval", "--num_images=1", f"--predictions={folder}/geneval_images"]
    tokenizer = [evaluate, f"--data={folder}/real", "--benchmarks=reconstruction", f"--checkpoint={folder}/tokenizer"]
    return {
        "geneval": [*geneval, f"--detections={folder}/detections.jsonl"],
        "without detections": [*geneval[:2], f"--output={folder}/none", *geneval[3:]],
        "no such file": [*geneval, "--detections=none.jsonl"],
        "reconstruction": [*tokenizer, f"--output={folder}/reconstructions", "--rows=2", "--image_size=16"],
        "one file of LPIPS": [*tokenizer, f"--output={folder}/none", f"--lpips_heads={folder}/real"],
        "odd size": [*tokenizer, f"--output={folder}/none", "--image_size=9"],
    }


@pytest.fixture(scope="module")
def outcomes(folder):
    return dict(zip(commands(folder), run_commands(commands(folder).values(), folder, **QUICK), strict=True))


def results(folder, name):
    return json.loads((folder / "results.json").read_text())["benchmarks"][name]


def test_folders_of_images_are_scored(outcomes, folder):
    assert outcomes["geneval"].code == 0, outcomes["geneval"]
    correct = [case[2] for case in geneval_cases()]
    scores = results(folder / "scores", "geneval")
    assert scores["metrics"]["overall"]["count"] == len(correct)
    samples = [json.loads(line) for line in (folder / "scores/geneval/samples.jsonl").read_text().splitlines()]
    assert [sample["score"] for sample in samples] == correct


@pytest.mark.slow  # the default tests of `Distribution` score such folders without the command
def test_a_distribution_is_measured_with_its_interval(folder):
    command = ["launch.evaluate", f"--data={folder}/data", "--benchmarks=mjhq_fid", "--fid_interval"]
    command += [f"--predictions={folder}/mjhq_images", f"--inception={folder}/inception.safetensors"]
    (outcome,) = run_commands([[*command, f"--output={folder}/distribution"]], folder, **QUICK)
    assert outcome.code == 0, outcome
    fid = results(folder / "distribution", "mjhq_fid")["metrics"]["fid"]
    assert fid["value"] > 0 and fid["interval"][0] < fid["value"] < fid["interval"][1]
    assert (folder / "distribution/mjhq_fid/reference.npz").exists()


def test_an_image_tokenizer_is_run_and_scored(outcomes, folder):
    assert outcomes["reconstruction"].code == 0, outcomes["reconstruction"]
    scores = results(folder / "reconstructions", "reconstruction")
    assert scores["headline"] == "ssim" and 0 < scores["metrics"]["psnr"]["value"] < 40
    assert len(list((folder / "reconstructions/reconstruction/images").glob("*/00000.png"))) == 3
    used, usage = (scores["metrics"][name]["value"] for name in ("codes_used", "code_usage"))
    assert 1 <= used <= SMALL.vq.num_codes and usage == used / SMALL.vq.num_codes
    lines = (folder / "reconstructions/reconstruction/samples.jsonl").read_text().splitlines()
    for sample in map(json.loads, lines):
        assert {"psnr", "ssim", "ssim_range_2", "codes_used"} <= sample["fields"].keys()


def test_mistakes_name_the_flag(outcomes):
    assert outcomes["without detections"].code == 1 and "--detections" in outcomes["without detections"].err
    assert outcomes["one file of LPIPS"].code == 2 and "--lpips_trunk is missing" in outcomes["one file of LPIPS"].err
    assert outcomes["odd size"].code == 2 and "--image_size=9 is not a multiple of 2" in outcomes["odd size"].err
    assert outcomes["no such file"].code == 2 and "--detections=none.jsonl" in outcomes["no such file"].err
