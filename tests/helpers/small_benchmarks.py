"""Tiny benchmarks in official layouts that the golden data have no example of. Each function returns its folder."""

import io
import json

import PIL.Image


def png(colour):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 6), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_images(folder, names, green=0):
    folder.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(names):
        (folder / name).write_bytes(png((40 * place, green, 99)))


def write_mme(folder):
    """Two tasks with different images of the same name, in the folders `existence` and `OCR/images`."""
    request = "Please answer yes or no."
    rows = {
        "existence": [("1.jpg", "a dog"), ("1.jpg", "a cat"), ("2.jpg", "a cup"), ("2.jpg", "a mug")],
        "OCR": [("1.jpg", "a text"), ("1.jpg", "no text")],
    }
    for task, questions in rows.items():
        names = sorted({image for image, _ in questions})
        write_images(folder / task if task == "existence" else folder / task / "images", names, green=len(questions))
        lines = [
            f"{image}\tIs there {what}? {request}\t{('Yes', 'No')[place % 2]}"
            for place, (image, what) in enumerate(questions)
        ]
        (folder / f"{task}.txt").write_text("\r\n".join(lines) + "\r\n")
    return folder


def write_mmvet(folder):
    write_images(folder / "images", ["v1_0.png", "v1_1.jpg"])
    questions = {
        "v1_0": {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1<AND>-5", "capability": ["math"]},
        "v1_1": {"imagename": "v1_1.jpg", "question": "What is written?", "answer": "stop", "capability": ["ocr"]},
    }
    (folder / "mm-vet.json").write_text(json.dumps(questions))
    return folder


def write_captions(folder, benchmark):
    """Karpathy's file, with an image of another split that is not asked."""
    texts = [["A red cup on a table.", "One red cup."], ["Two dogs run in snow.", "Dogs in the snow."]]
    names = ["COCO_val2014_000000000001.jpg", "COCO_val2014_000000000002.jpg"]
    write_images(folder / "val2014", names)
    images = [
        {
            "filename": name,
            "split": "test",
            "cocoid" if benchmark == "coco_captions" else "imgid": place,
            "sentences": [{"raw": text} for text in sentences],
        }
        for place, (name, sentences) in enumerate(zip(names, texts, strict=True))
    ]
    images.append({"filename": "train.jpg", "split": "train", "imgid": 9, "sentences": [{"raw": "Not asked."}]})
    dataset = "coco" if benchmark == "coco_captions" else "flickr30k"
    (folder / f"dataset_{dataset}.json").write_text(json.dumps({"images": images, "dataset": dataset}))
    return folder
