"""Folders of images as a run leaves them, and small benchmarks of images."""

import json

import numpy as np
import PIL.Image

from tests.helpers.golden_evaluation import GOLDEN

COCO = [(3, 30, "A red cup."), (1, 10, "Two dogs run."), (2, 20, "A bench."), (7, 70, "Snow."), (5, 50, "A cat sits.")]


def noise(seed, size=(20, 20)):
    """An image whose mean colour depends on the seed too, so that sets of images differ."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size[1], size[0], 3)) * 0.5 + rng.integers(0, 128, 3)
    return PIL.Image.fromarray(pixels.astype(np.uint8))


def write_run(requests, folder, seed=0, size=(20, 20)):
    """All images of requests, different ones."""
    for request in requests:
        for number in range(request.num_images):
            path = folder / f"{request.index:05d}" / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise([seed, request.index, number], size).save(path)
    return folder


def write_folder(folder, names, seed=1, size=(24, 20)):
    for place, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise([seed, place], size).save(path)
    return folder


def write_coco(folder, num_images=5):
    """`annotations/captions_val2014.json` and `val2014`."""
    rows = [{"id": id, "image_id": image, "caption": caption} for id, image, caption in COCO]
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations/captions_val2014.json").write_text(json.dumps({"annotations": rows, "images": []}))
    write_folder(folder / "val2014", [f"COCO_val2014_{i:012}.jpg" for i in range(num_images)], size=(40, 30))
    return folder / "annotations/captions_val2014.json"


def write_mjhq(folder, per_category=6, categories=("animals", "food")):
    """`meta_data.json` and `mjhq30k_imgs/<category>/<id>.jpg`."""
    ids = {f"{category}{i}": category for i in range(per_category) for category in categories}
    meta = {id: {"category": category, "prompt": f"a photo of {id}"} for id, category in ids.items()}
    write_folder(folder / "mjhq30k_imgs", [f"{category}/{id}.jpg" for id, category in ids.items()])
    (folder / "meta_data.json").write_text(json.dumps(meta))
    return folder / "meta_data.json"


def geneval_cases():
    """(metadata of a prompt, one line of detections without its file, verdict, reason) from the official script."""
    for case in json.loads((GOLDEN / "rules/geneval.json").read_text())["evaluate"]:
        metadata = {**case["metadata"], "prompt": f"a photo, {case['name']}"}
        line = {"detections": case["detections"], "colors": case["crop_colors"]}
        yield metadata, line, case["correct"], case["reason"]
