"""Reconstructions of an image tokenizer, and CLIP score of a list of prompts."""

import dataclasses
import json

import numpy as np
import PIL.Image
import pytest
from etils import epath

from janus_jax.data.images import generation_pixels
from janus_jax.errors import UserError
from janus_jax.evaluation.image_benchmarks.clip_score import open_clip_score
from janus_jax.evaluation.image_benchmarks.options import MetricOptions
from janus_jax.evaluation.image_benchmarks.reconstruction import ReconstructionModel, open_reconstruction
from janus_jax.evaluation.image_benchmarks.registry import found_names, load
from janus_jax.evaluation.image_features import ClipNetwork
from janus_jax.evaluation.image_files import ImageFile
from janus_jax.evaluation.scores.pixels import psnr, ssim
from janus_jax.inference.image_tokenizer import ImageTokenizer
from tests.helpers.generated_images import write_coco, write_folder, write_run
from tests.helpers.metric_networks import clip_folder, write_small_inception
from tests.helpers.small_models import SMALL, random_params

TOKENIZER = dataclasses.replace(SMALL.vq, image_size=8)


@pytest.fixture
def tmp_path(tmp_path):
    return epath.Path(tmp_path)


def write_reconstructions(benchmark, folder):
    """As a run does: the model's PNG files in the folders of the requests."""
    model = ReconstructionModel(ImageTokenizer(TOKENIZER, random_params(SMALL)["vq"]))
    for request, files in zip(benchmark.requests, model.generate(benchmark.requests), strict=True):
        (folder / f"{request.index:05d}").mkdir(parents=True)
        (folder / f"{request.index:05d}/00000.png").write_bytes(files[0])
    return model


def test_reconstructions_are_compared_with_the_crops_that_the_tokenizer_read(tmp_path):
    size = TOKENIZER.image_size
    data = write_folder(tmp_path / "real", ["a.png", "b/c.png", "d.jpg"], size=(2 * size, size + 5))
    weights = epath.Path(write_small_inception(tmp_path / "inception.safetensors"))
    benchmark = open_reconstruction(data, MetricOptions(inception=weights))
    model = write_reconstructions(benchmark, tmp_path / "images")
    scores = benchmark.score(tmp_path / "images")
    expected = []
    for request in benchmark.requests:
        original = generation_pixels(PIL.Image.open(request.image.path).convert("RGB"), size) / 255
        result = np.asarray(PIL.Image.open(tmp_path / f"images/{request.index:05d}/00000.png")) / 255
        expected.append((psnr(original, result), ssim(original, result), ssim(original, result, 2.0)))
    found = [scores.metrics[name].value for name in ("psnr", "ssim", "ssim_range_2")]
    assert found == pytest.approx(np.mean(expected, axis=0).tolist(), abs=1e-9)
    assert scores.headline == "rfid" and scores.metrics["rfid"].value > 0
    assert scores.counts == {"equal": 0}

    (data / "e.png").write_text("damaged")
    damaged = open_reconstruction(data, MetricOptions())
    results = dict(zip([r.id for r in damaged.requests], model.generate(damaged.requests), strict=True))
    assert "e.png: not a readable image" in results["e.png"] and results["a.png"][0][:4] == b"\x89PNG"


def test_equal_reconstructions_are_counted_and_pairs_are_written(tmp_path):
    data = write_folder(tmp_path / "real", ["a.png", "b.png"], size=(16, 16))
    benchmark = open_reconstruction(data, MetricOptions())
    folder = write_run(benchmark.requests, tmp_path / "images", size=(16, 16))
    (folder / "00000/00000.png").write_bytes((data / "a.png").read_bytes())
    scores = benchmark.score(folder)
    assert scores.counts == {"equal": 1} and scores.metrics["psnr"].count == 1 and scores.headline == "ssim"
    assert scores.samples[0].fields["psnr"] is None and scores.samples[0].score == 1
    json.dumps(scores.samples[0].fields, allow_nan=False)
    written = benchmark.write_submission(folder, tmp_path / "pairs")
    assert len(written) == 4
    pair = [
        np.asarray(PIL.Image.open(tmp_path / f"pairs/{side}/00000.png")) for side in ("originals", "reconstructions")
    ]
    np.testing.assert_array_equal(*pair)
    write_run(benchmark.requests[1:], folder, size=(16, 18))
    with pytest.raises(UserError, match=r"00001/00000\.png: \(16, 18\), expected the size of the others, 16"):
        benchmark.score(folder)


def test_clip_score_of_prompts(tmp_path):
    clip = epath.Path(clip_folder("clip", tmp_path / "clip", with_tokenizer=True))
    (tmp_path / "prompts.txt").write_text("w1 w2\n\nw7\n")
    benchmark = open_clip_score(tmp_path / "prompts.txt", MetricOptions(clip=clip), num_images=2)
    folder = write_run(benchmark.requests, tmp_path / "images")
    scores = benchmark.score(folder)
    images = [ImageFile(folder / f"{i:05d}/{n:05d}.png") for i in range(2) for n in range(2)]
    expected, _ = ClipNetwork.from_folder(clip)(images, ["w1 w2", "w1 w2", "w7", "w7"])
    assert scores.metrics["clip_score"].value == pytest.approx(expected.mean(), abs=1e-9)
    assert [sample.score for sample in scores.samples] == pytest.approx(expected.reshape(2, 2).mean(1).tolist())
    with pytest.raises(UserError, match="clip_score: --clip is missing"):
        open_clip_score(tmp_path / "prompts.txt", MetricOptions()).score(folder)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "w1 w2"}\n{"prompt": 3}\n')
    with pytest.raises(UserError, match=r"line 2: field 'prompt'"):
        open_clip_score(tmp_path / "prompts.jsonl", MetricOptions())


def test_benchmarks_of_images_are_found_by_name(tmp_path):
    write_coco(tmp_path / "coco")
    (tmp_path / "geneval").mkdir()
    line = {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}
    (tmp_path / "geneval/evaluation_metadata.jsonl").write_text(json.dumps(line))
    folders = [tmp_path, tmp_path / "coco", tmp_path / "coco/annotations", tmp_path / "geneval"]
    assert found_names(folders) == ["geneval"]
    benchmarks = load(tmp_path, folders, ["coco_fid", "geneval", "reconstruction"], MetricOptions())
    assert [benchmark.name for benchmark in benchmarks] == ["coco_fid", "geneval", "reconstruction"]
    assert benchmarks[1].requests[0].num_images == 4
    (benchmark,) = load(tmp_path, folders, ["geneval"], MetricOptions(), num_images=2)
    assert benchmark.requests[0].num_images == 2
    with pytest.raises(UserError, match="--num_images=2: coco_fid has a fixed number"):
        load(tmp_path, folders, ["coco_fid"], MetricOptions(), num_images=2)
    with pytest.raises(UserError, match=r"no files of mjhq_fid \(expected meta_data\.json\)"):
        load(tmp_path, folders, ["mjhq_fid"], MetricOptions())
    (tmp_path / "evaluation_metadata.jsonl").write_text(json.dumps(line))
    with pytest.raises(UserError, match="2 sources of geneval"):
        load(tmp_path, folders, ["geneval"], MetricOptions())
