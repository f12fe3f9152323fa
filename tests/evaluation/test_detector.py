"""GenEval's detector: post-processing against PyTorch, input pixels, colours, and a run from images to scores."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.detector import Detector
from janus_jax.evaluation.image_benchmarks.geneval import open_geneval
from janus_jax.evaluation.image_benchmarks.geneval_detection import GenEvalDetector
from janus_jax.evaluation.image_benchmarks.options import MetricOptions
from janus_jax.evaluation.image_features import ClipNetwork
from janus_jax.evaluation.scores.geneval import CLASSES, COLORS
from janus_jax.evaluation.scores.instances import Instance, Sizes, find_instances, mask_box
from janus_jax.weights.mask2former import load_mask2former
from tests.helpers.generated_images import write_run
from tests.helpers.metric_networks import clip_folder
from tests.helpers.small_detector import make_detector

SCALE = (96, 64)  # of the small detector, instead of 1333 x 800


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A detector that is sure of what it sees, and a CLIP."""
    folder = epath.Path(tmp_path_factory.mktemp("detector"))
    model = make_detector()
    with torch.no_grad():
        model.class_predictor.weight *= 30
    model.save_pretrained(folder / "detector")
    clip_folder("clip", folder / "clip", with_tokenizer=True)
    return folder


@pytest.fixture(scope="module")
def detector(folder):
    return Detector(load_mask2former(folder / "detector"), scale=SCALE)


def reference(class_logits, mask_logits, sizes, threshold):
    """MaskFormerFusionHead of mmdet in PyTorch, all candidates enlarged."""
    masks = torch.nn.functional.interpolate(mask_logits[None], size=sizes.padded, mode="bilinear", align_corners=False)
    masks = masks[..., : sizes.resized[0], : sizes.resized[1]]
    masks = torch.nn.functional.interpolate(masks, size=sizes.image, mode="bilinear", align_corners=False)[0]
    scores = class_logits.softmax(-1)[:, :-1]
    best, places = scores.flatten().topk(min(100, scores.numel()))
    found = []
    for score, place in zip(best.tolist(), places.tolist(), strict=True):
        query, label = divmod(place, scores.shape[1])
        inside = masks[query] > 0
        score *= float((masks[query].sigmoid() * inside).sum() / (inside.sum() + 1e-6))
        if score > threshold:
            rows, columns = torch.where(inside)
            box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
            found.append((label, box, score, inside.numpy()))
    return sorted(found, key=lambda entry: -entry[2])


@pytest.mark.parametrize("sizes", [Sizes((40, 40), (64, 64), (64, 64)), Sizes((33, 50), (64, 97), (64, 128))])
def test_objects_equal_those_of_mmdets_rule(sizes):
    rng = np.random.default_rng(1)
    class_logits = (4 * rng.standard_normal((20, 9))).astype(np.float32)
    coarse = torch.tensor(rng.standard_normal((1, 20, 4, 8)), dtype=torch.float32)
    size = (sizes.padded[0] // 4, sizes.padded[1] // 4)
    mask_logits = 8 * torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")[0]
    expected = reference(torch.tensor(class_logits), mask_logits, sizes, 0.3)
    found = find_instances(class_logits, mask_logits.numpy(), sizes, 0.3)
    assert len(found) == len(expected) > 5
    for ours, (label, box, score, mask) in zip(found, expected, strict=True):
        assert (ours.label, ours.box) == (label, box) and ours.confidence == pytest.approx(score, abs=1e-5)
        assert (ours.mask != mask).sum() <= 1  # a logit of zero may get either sign


def test_boxes_of_masks():
    mask = np.zeros((5, 6), bool)
    assert mask_box(mask) == (0, 0, 0, 0)
    mask[1:3, 2:6] = True
    assert mask_box(mask) == (2, 1, 6, 3)


def test_images_are_resized_as_in_mmdets_test_pipeline(detector, folder):
    full = Detector(load_mask2former(folder / "detector"))
    assert full.sizes(PIL.Image.new("RGB", (384, 384))) == Sizes((384, 384), (800, 800), (800, 800))
    assert full.sizes(PIL.Image.new("RGB", (1024, 512))) == Sizes((512, 1024), (667, 1333), (672, 1344))
    assert detector.sizes(PIL.Image.new("RGB", (20, 20))) == Sizes((20, 20), (64, 64), (64, 64))


def test_colours_are_those_of_the_nearest_prompts(detector, folder):
    clip = ClipNetwork.from_folder(folder / "clip")
    image = PIL.Image.fromarray(np.random.default_rng(2).integers(0, 256, (30, 30, 3), np.uint8))
    mask = np.zeros((30, 30), bool)
    mask[5:25, 8:28] = True
    mask[5:10, 8:12] = False
    instances = [Instance(13, mask_box(mask), 0.9, mask), Instance(13, (0, 0, 30, 30), 0.8, np.ones((30, 30), bool))]
    found = GenEvalDetector(detector, clip).colors(image, "bench", instances)
    hidden = np.where(mask[..., None], np.asarray(image), 153)[5:25, 8:28]
    crops = [PIL.Image.fromarray(hidden.astype(np.uint8)), image]
    forms = ("a photo of a {} bench", "a photo of a {}-colored bench", "a photo of a {} object")
    classifier = clip.classifier([[form.format(color) for form in forms] for color in COLORS])
    np.testing.assert_allclose(np.linalg.norm(classifier, axis=1), 1, rtol=0, atol=1e-5)
    assert found == [COLORS[i] for i in clip.classify(crops, classifier)]


@pytest.mark.slow  # covered in pieces by the tests above; `launch.evaluate` calls the same
def test_geneval_from_images_to_scores(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("janus_jax.evaluation.detector.SHORT_SIDE", SCALE[1])
    monkeypatch.setattr("janus_jax.evaluation.detector.LONG_SIDE", SCALE[0])
    tmp_path = epath.Path(tmp_path)
    found = Detector.from_path(folder / "detector")([PIL.Image.new("RGB", (20, 20), "red")] * 2, 0.3)
    name = CLASSES[next(found)[0].label]
    lines = [
        {"tag": "single_object", "include": [{"class": name, "count": 1}], "prompt": "a"},
        {"tag": "colors", "include": [{"class": name, "count": 1, "color": "red"}], "prompt": "b"},
        {"tag": "counting", "include": [{"class": "dog", "count": 9}], "prompt": "c"},
    ]
    metadata = tmp_path / "evaluation_metadata.jsonl"
    metadata.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = MetricOptions(detector=folder / "detector", clip=folder / "clip", store=tmp_path / "run")
    benchmark = open_geneval(metadata, options, num_images=2)
    images = write_run(benchmark.requests, tmp_path / "images")
    PIL.Image.new("RGB", (20, 20), "red").save(images / "00000/00000.png")
    scores = benchmark.score(images)
    assert scores.metrics["single_object"].value >= 0.5 and scores.metrics["counting"].value == 0
    assert "other weights than the published figures" in " ".join(scores.notes)
    stored = MetricOptions(detections=tmp_path / "run/geneval/detections.jsonl")
    again = open_geneval(metadata, stored, num_images=2).score(images)
    assert again.samples == scores.samples and again.metrics == scores.metrics
    with pytest.raises(UserError, match="geneval: --clip is missing"):
        open_geneval(metadata, MetricOptions(detector=folder / "detector"), 2).score(images)
