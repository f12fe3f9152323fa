"""COCO-30K and MJHQ-30K on small folders, with a small Inception of made-up weights."""

import json
import zipfile

import numpy as np
import pytest
from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.image_benchmarks.distribution import open_coco_fid, open_mjhq_fid
from janus_jax.evaluation.image_benchmarks.options import MetricOptions
from janus_jax.evaluation.image_features import InceptionNetwork
from janus_jax.evaluation.image_files import images_below
from janus_jax.evaluation.scores.frechet import Gaussian, frechet_distance, inception_score, read_gaussian
from janus_jax.evaluation.statistics import Z_95
from tests.helpers.generated_images import COCO, write_coco, write_mjhq, write_run
from tests.helpers.metric_networks import clip_folder, write_small_inception


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return epath.Path(write_small_inception(tmp_path_factory.mktemp("weights") / "inception.safetensors"))


@pytest.fixture
def tmp_path(tmp_path):
    return epath.Path(tmp_path)


def test_mjhq_as_a_whole_and_by_category(weights, tmp_path):
    lines = []
    options = MetricOptions(inception=weights, store=tmp_path / "run", report=lines.append)
    benchmark = open_mjhq_fid(write_mjhq(tmp_path / "mjhq"), options)
    assert [request.fields["category"] for request in benchmark.requests[:2]] == ["animals", "food"]
    folder = write_run(benchmark.requests, tmp_path / "images")
    scores = benchmark.score(folder)

    network = InceptionNetwork.from_file(weights)
    sets = {}
    for category in ("animals", "food"):
        rows = [r for r in benchmark.requests if r.fields["category"] == category]
        ours = [images_below(folder / f"{r.index:05d}")[0] for r in rows]
        theirs = images_below(tmp_path / "mjhq/mjhq30k_imgs" / category)
        for side, images in (("ours", ours), ("theirs", theirs)):
            sets[side, category] = network(images)
        pair = [Gaussian.of(sets[side, category].moments, network.origin, side) for side in ("ours", "theirs")]
        assert scores.metrics[f"fid_{category}"].value == pytest.approx(frechet_distance(*pair), rel=1e-4)
    whole = [
        Gaussian.of(sets[side, "animals"].moments + sets[side, "food"].moments, network.origin, side)
        for side in ("ours", "theirs")
    ]
    assert scores.metrics["fid"].value == pytest.approx(frechet_distance(*whole), rel=1e-4)
    logits = np.concatenate([sets["ours", "animals"].logits, sets["ours", "food"].logits])
    assert scores.metrics["inception_score"].value == pytest.approx(inception_score(logits)[0], rel=1e-5)
    assert "fewer than 2048" in " ".join(scores.notes) and "resized as clean" in " ".join(scores.notes)
    assert any("food: 6 of 6 images" in line for line in lines)

    # The interval of the same distance is a jackknife over parts of both categories.
    options = MetricOptions(inception=weights, fid_interval=True, reference=tmp_path / "run/mjhq_fid/reference.npz")
    fid = open_mjhq_fid(tmp_path / "mjhq/meta_data.json", options).score(folder).metrics["fid"]
    assert fid.value == pytest.approx(scores.metrics["fid"].value, rel=1e-6) and fid.stderr > 0
    assert fid.interval == pytest.approx((fid.value - Z_95 * fid.stderr, fid.value + Z_95 * fid.stderr))
    assert scores.metrics["fid"].interval is None
    images = [images_below(folder / f"{row:05d}")[0] for row in range(5)]
    folds, _ = network.in_folds(images, 2)
    for fold, part in zip(folds, (images[::2], images[1::2]), strict=True):
        assert fold.count == len(part)
        np.testing.assert_allclose(fold.total, network(part).moments.total, rtol=1e-4)

    # The stored moments give the same distance, and so does the archive of the same images.
    assert read_gaussian(tmp_path / "run/mjhq_fid/generated.npz").count == 12
    with zipfile.ZipFile(tmp_path / "mjhq30k_imgs.zip", "w") as archive:
        for image in images_below(tmp_path / "mjhq/mjhq30k_imgs"):
            archive.write(image.path, f"mjhq30k_imgs/{image.path.parent.name}/{image.path.name}")
    for reference in (tmp_path / "run/mjhq_fid/reference.npz", tmp_path / "mjhq30k_imgs.zip"):
        again = open_mjhq_fid(tmp_path / "mjhq/meta_data.json", MetricOptions(inception=weights, reference=reference))
        found = again.score(folder)
        assert found.metrics["fid"].value == pytest.approx(scores.metrics["fid"].value, rel=1e-6)
        assert ("fid_food" in found.metrics) == (reference.suffix == ".zip")


def test_coco_draws_captions_and_compares_with_all_images(weights, tmp_path):
    clip = epath.Path(clip_folder("clip", tmp_path / "clip", with_tokenizer=True))
    path = write_coco(tmp_path / "coco")
    benchmark = open_coco_fid(path, MetricOptions(inception=weights, clip=clip))
    assert sorted((int(r.id), r.fields["image_id"], r.prompt) for r in benchmark.requests) == sorted(COCO)
    assert open_coco_fid(path, MetricOptions()).requests == benchmark.requests
    assert open_coco_fid(path, MetricOptions(), seed=1).requests != benchmark.requests
    folder = write_run(benchmark.requests, tmp_path / "images")
    scores = benchmark.score(folder)
    assert scores.headline == "fid" and scores.counts == {"real_images": 5} and "resized as gigagan" in scores.notes[1]
    assert scores.metrics["clip_score"].value == pytest.approx(np.mean([s.score for s in scores.samples]))
    assert "inception_score" not in scores.metrics  # of fewer than ten images

    written = benchmark.write_submission(folder, tmp_path / "official")
    captions = (tmp_path / "official/captions.txt").read_text().split("\n")
    assert captions[:-1] == [request.prompt for request in benchmark.requests] and len(written) == 6


def test_what_is_missing_is_named(weights, tmp_path):
    path = write_mjhq(tmp_path / "mjhq", per_category=2)
    benchmark = open_mjhq_fid(path, MetricOptions(inception=weights))
    folder = write_run(benchmark.requests, tmp_path / "images")
    with pytest.raises(UserError, match="mjhq_fid: --inception is missing"):
        open_mjhq_fid(path, MetricOptions()).score(folder)
    with pytest.raises(UserError, match="--clip=.*no such file"):
        MetricOptions(clip=tmp_path / "clip").checked()
    (folder / "00001/00000.png").rename(folder / "00001/00001.png")
    with pytest.raises(UserError, match=r"1 image\(s\) missing: 00001/00000\.png"):
        benchmark.score(folder)
    (tmp_path / "mjhq/mjhq30k_imgs").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="real images are missing; give .* --reference"):
        open_mjhq_fid(path, MetricOptions(inception=weights)).score(write_run(benchmark.requests, tmp_path / "others"))


def test_damaged_files_are_one_line(tmp_path):
    path = tmp_path / "meta_data.json"
    cases = {
        "a field": ({"x": {"category": "food"}}, "x: field 'prompt'"),
        "a category": ({"x": {"category": "cars", "prompt": "a"}}, "x: field 'category'"),
        "an id": ({"../x": {"category": "food", "prompt": "a"}}, r"id '\.\./x'"),
        "a list": ([], "expected an object"),
    }
    for content, message in cases.values():
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            open_mjhq_fid(path, MetricOptions())
    path.write_text(json.dumps({"annotations": [{"id": 1, "image_id": "2", "caption": "a"}]}))
    with pytest.raises(UserError, match="annotation 0: field 'image_id'"):
        open_coco_fid(path, MetricOptions())
    path.write_text("{}")
    with pytest.raises(UserError, match="no list of annotations"):
        open_coco_fid(path, MetricOptions())
