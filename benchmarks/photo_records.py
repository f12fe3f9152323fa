"""Records of invented texts and real photos for the suite `data`."""

import io

import numpy as np
import PIL.Image
import PIL.ImageOps

from janus_jax.data.prompts import IMAGE_MARKER, Message
from janus_jax.data.records import Record


def make_records(rng: np.random.Generator, number: int) -> list[Record]:
    """`number` records of each task. The photos are crops of scikit-learn's two, compressed like images on the web."""
    from sklearn.datasets import load_sample_images

    photos = [PIL.Image.fromarray(photo) for photo in load_sample_images().images]
    words = [
        f"{a}{b}" for a in ("re", "in", "to", "ca", "mo", "li", "su", "pa") for b in ("tion", "ver", "ment", "ly", "s")
    ]

    def sentence(median: float, spread: float, most: int) -> str:
        count = int(np.clip(rng.lognormal(np.log(median), spread), 3, most))
        return " ".join(rng.choice(words, count))

    def photo() -> bytes:
        left, top = int(rng.integers(0, 80)), int(rng.integers(0, 60))
        image = photos[int(rng.integers(2))].crop((left, top, left + 560, top + 360)).resize((640, 480))
        if rng.random() < 0.5:
            image = PIL.ImageOps.mirror(image)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        return buffer.getvalue()

    records = []
    for i in range(number):
        question = Message("user", f"{IMAGE_MARKER}\nDescribe the image in detail.")
        answer = Message("assistant", sentence(60, 0.8, 1500))
        records.append(Record(task="understand", messages=(question, answer), images=(photo(),), key=f"u/{i}"))
        document = Message("assistant", sentence(250, 1.1, 2500))
        records.append(Record(task="text", messages=(document,), key=f"t/{i}"))
        prompt = (Message("user", sentence(40, 0.6, 300)), Message("assistant", IMAGE_MARKER))
        records.append(Record(task="generate", messages=prompt, images=(photo(),), key=f"g/{i}"))
    return records
