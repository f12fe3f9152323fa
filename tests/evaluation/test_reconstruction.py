"""Reconstructions of an image tokenizer, and CLIP score of a list of prompts."""

import dataclasses
import json

import jax
import numpy as np
import PIL.Image
import pytest
import torch
from etils import epath

from janus_jax.data.images import Crop, generation_pixels
from janus_jax.errors import UserError
from janus_jax.evaluation.image_benchmarks.autoencoders import Autoencoder, open_autoencoder
from janus_jax.evaluation.image_benchmarks.clip_score import open_clip_score
from janus_jax.evaluation.image_benchmarks.options import MetricOptions
from janus_jax.evaluation.image_benchmarks.reconstruction import ReconstructionModel, open_reconstruction
from janus_jax.evaluation.image_benchmarks.registry import found_names, load
from janus_jax.evaluation.image_features import ClipNetwork
from janus_jax.evaluation.image_files import ImageFile
from janus_jax.evaluation.model_answers import to_png
from janus_jax.evaluation.perceptual_network import PerceptualNetwork
from janus_jax.evaluation.scores.pixels import psnr, ssim
from janus_jax.inference.image_tokenizer import ImageTokenizer
from janus_jax.models.params import bind, build, init_params
from janus_jax.weights.native import save_params
from tests.helpers import tokenizer_reference
from tests.helpers.generated_images import write_coco, write_folder, write_run
from tests.helpers.metric_networks import clip_folder, write_small_inception
from tests.helpers.small_models import SMALL, random_params
from tests.helpers.tiny_runs import MICRO_VAE

TOKENIZER = dataclasses.replace(SMALL.vq, image_size=8)
PARAMS = random_params(SMALL)["vq"]


@pytest.fixture
def tmp_path(tmp_path):
    return epath.Path(tmp_path)


def write_reconstructions(benchmark, folder, autoencoder=None, **sizes):
    """As a run does: the model's PNG files in the folders of the requests."""
    model = ReconstructionModel(autoencoder or Autoencoder(TOKENIZER, PARAMS, TOKENIZER.image_size), **sizes)
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
        original = generation_pixels(PIL.Image.open(request.image.path), size, Crop(halving=True)) / 255
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


def facts_of(path):
    return json.loads(PIL.Image.open(path).info["reconstruction"])


def test_figures_at_another_size_equal_those_of_the_original_evaluation(tmp_path):
    """Images of 48 pixels that are compared at 32, as LlamaGen compares those of 384 pixels at 256."""
    arrays = tokenizer_reference.load("metrics")
    (tmp_path / "real").mkdir()
    for i, image in enumerate(arrays["images"]):
        PIL.Image.fromarray(image).save(tmp_path / f"real/{i}.png")
        (tmp_path / f"images/{i:05d}").mkdir(parents=True)
        levels = PIL.Image.fromarray(arrays["smaller/uint8"][i])
        (tmp_path / f"images/{i:05d}/00000.png").write_bytes(to_png(levels, {"reconstruction": '{"image_size": 48}'}))
    scores = open_reconstruction(tmp_path / "real", MetricOptions()).score(tmp_path / "images")
    for name, expected in (("psnr", "psnr"), ("ssim", "ssim_range1"), ("ssim_range_2", "ssim_range2")):
        found = [sample.fields[name] for sample in scores.samples]
        np.testing.assert_allclose(found, arrays[f"smaller/{expected}"], rtol=0, atol=2e-6, err_msg=name)
        assert scores.metrics[name].value == pytest.approx(np.mean(found), abs=1e-9)
    assert "code_usage" not in scores.metrics  # the files do not tell their codes
    for flag in ("image_size", "eval_size"):
        wrong = open_reconstruction(tmp_path / "real", MetricOptions(**{flag: 64}))
        with pytest.raises(UserError, match=f"--{flag}=64"):
            wrong.score(tmp_path / "images")


def test_lpips_and_the_use_of_codes_are_those_of_all_images(tmp_path):
    data = write_folder(tmp_path / "real", ["a.png", "b.png", "c.png"], size=(40, 33))
    lpips = PerceptualNetwork(tokenizer_reference.LPIPS_NARROW, tokenizer_reference.narrow_lpips())
    benchmark = dataclasses.replace(open_reconstruction(data, MetricOptions()), lpips=lpips)
    write_reconstructions(benchmark, tmp_path / "images", image_size=32, eval_size=16)
    scores = benchmark.score(tmp_path / "images")

    names = [request.image.path for request in benchmark.requests]
    pixels = np.stack([generation_pixels(PIL.Image.open(name), 32, Crop(halving=True)) for name in names])
    codes = ImageTokenizer(TOKENIZER, PARAMS)(pixels)
    shares = np.bincount(codes.reshape(-1), minlength=TOKENIZER.num_codes) / codes.size
    used = shares[shares > 0]
    found = {name: scores.metrics[name].value for name in ("codes_used", "code_usage", "code_perplexity")}
    assert found["codes_used"] == len(used) and found["code_usage"] == len(used) / TOKENIZER.num_codes
    assert found["code_perplexity"] == pytest.approx(np.exp(-(used * np.log(used)).sum()), rel=1e-12)
    assert [sample.fields["codes_used"] for sample in scores.samples] == [len(set(row)) for row in codes.tolist()]

    images = torch.tensor(pixels).permute(0, 3, 1, 2) / 255
    smaller = torch.nn.functional.interpolate(images, 16, mode="bicubic").permute(0, 2, 3, 1).numpy()
    decoded = jax.jit(lambda codes: bind(build(TOKENIZER), PARAMS)(codes, (16, 16), method="decode"))(codes)
    decoded = torch.tensor(np.asarray(decoded)).permute(0, 3, 1, 2)
    levels = (127.5 * torch.nn.functional.interpolate(decoded, 16, mode="bicubic") + 128).clip(0, 255)
    levels = np.floor(levels.permute(0, 2, 3, 1).numpy()).astype(np.uint8)
    files = [tmp_path / f"images/{i:05d}/00000.png" for i in range(3)]
    written = np.stack([np.asarray(PIL.Image.open(file)) for file in files])
    assert np.mean(written != levels) < 1e-3 and np.abs(written.astype(int) - levels).max() <= 1  # halves may fall

    model = jax.jit(bind(build(tokenizer_reference.LPIPS_NARROW), tokenizer_reference.narrow_lpips()))
    expected = model(2 * smaller - 1, written.astype(np.float32) / 127.5 - 1).sum(0)
    np.testing.assert_allclose([sample.fields["lpips"] for sample in scores.samples], expected, rtol=0, atol=1e-5)
    assert scores.metrics["lpips"].value == pytest.approx(float(expected.mean()), abs=1e-5)

    bad = {**facts_of(files[1]), "codes": [TOKENIZER.num_codes]}
    files[1].write_bytes(to_png(PIL.Image.open(files[1]), {"reconstruction": json.dumps(bad)}))
    with pytest.raises(UserError, match=r"00001/00000\.png.*damaged"):
        benchmark.score(tmp_path / "images")


@pytest.mark.parametrize(("size", "message"), [(9, "--image_size=9 is not a multiple of 2"), (None, "--image_size is")])
def test_sizes_that_an_autoencoder_cannot_have_are_refused(size, message):
    autoencoder = Autoencoder(TOKENIZER, PARAMS, None)
    with pytest.raises(UserError, match=message):
        ReconstructionModel(autoencoder, size)


def test_a_vae_is_run_too(tmp_path):
    save_params(tmp_path / "vae", MICRO_VAE, init_params(MICRO_VAE, seed=0))
    autoencoder = open_autoencoder(tmp_path / "vae")
    data = write_folder(tmp_path / "real", ["a.png", "b.png"], size=(20, 16))
    benchmark = open_reconstruction(data, MetricOptions())
    write_reconstructions(benchmark, tmp_path / "images", autoencoder, image_size=16)
    scores = benchmark.score(tmp_path / "images")
    pixels = generation_pixels(PIL.Image.open(data / "a.png"), 16, Crop(halving=True))
    model = bind(build(MICRO_VAE), init_params(MICRO_VAE, seed=0))
    reconstruct = jax.jit(lambda x: model(model(x, method="encode"), method="decode")[0])
    decoded = reconstruct(pixels[None] / np.float32(127.5) - 1)
    found = np.asarray(PIL.Image.open(tmp_path / "images/00000/00000.png"), np.float32)
    np.testing.assert_allclose(found, np.clip(127.5 * decoded + 127.5, 0, 255), atol=0.51)
    assert scores.metrics["psnr"].count == 2 and "codes_used" not in scores.metrics


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
