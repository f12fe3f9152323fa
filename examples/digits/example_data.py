"""Writes handwritten digits as the files that you would have of your own: images, questions about them, captions.

python -m examples.digits.example_data --output=example

example/mine.json, example/images/    conversations about images, the JSON list of LLaVA
example/captions/                     each image with its caption beside it, 0000.png and 0000.txt
"""

import json

from absl import flags

from examples.digits.data import CAPTIONS, NAMES, QUESTIONS, load_digits, to_image
from janus_jax.data.prompts import IMAGE_MARKER
from janus_jax.storage import prepare_folder
from launch.cli import errors

OUTPUT = flags.DEFINE_string("output", "example", "Folder to write.")
NUM_IMAGES = flags.DEFINE_integer("num_images", 200, "Number of images.", lower_bound=1, upper_bound=1000)


def main() -> None:
    output = prepare_folder("output", OUTPUT.value)
    for name in ("images", "captions"):
        (output / name).mkdir(exist_ok=True)
    digits, _ = load_digits()
    conversations = []
    for i in range(NUM_IMAGES.value):
        name, image = NAMES[digits.labels[i]], to_image(digits.intensities[i])
        turns = {"human": f"{IMAGE_MARKER}\n{QUESTIONS[i % len(QUESTIONS)]}", "gpt": name}
        messages = [{"from": role, "value": text} for role, text in turns.items()]
        conversations.append({"id": str(i), "image": f"{i:04d}.png", "conversations": messages})
        for folder in ("images", "captions"):
            with (output / folder / f"{i:04d}.png").open("wb") as file:
                image.save(file, "PNG")
        (output / "captions" / f"{i:04d}.txt").write_text(CAPTIONS[i % len(CAPTIONS)].format(name))
    (output / "mine.json").write_text(json.dumps(conversations, indent=1) + "\n")
    print(f"{output}: {NUM_IMAGES.value} images with a question and a caption each")


if __name__ == "__main__":
    errors.run(main)
