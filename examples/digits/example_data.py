"""Writes handwritten digits as the files that you would have of your own: images, questions about them, captions.

python -m examples.digits.example_data --output=example

example/mine.json, example/images/    conversations about images, the JSON list of LLaVA
example/captions/                     each image with its caption beside it, 0000.png and 0000.txt
example/edits.json, example/turned/   each image with the one that is to be generated from it, as ShareGPT-4o-Image
"""

import json

import PIL.Image
from absl import flags
from etils import epath

from examples.digits.data import CAPTIONS, NAMES, QUESTIONS, load_digits, to_image
from janus_jax.data.prompts import IMAGE_MARKER
from janus_jax.storage import prepare_folder
from launch.cli import errors

OUTPUT = flags.DEFINE_string("output", "example", "Folder to write.")
NUM_IMAGES = flags.DEFINE_integer("num_images", 200, "Number of images.", lower_bound=1, upper_bound=1000)


def main() -> None:
    output = prepare_folder("output", OUTPUT.value)
    write_example(output, NUM_IMAGES.value)
    print(f"{output}: {NUM_IMAGES.value} images with a question, a caption and a turned image each")


def write_example(output: epath.Path, num_images: int) -> None:
    """Writes the first training digits into an existing folder, in all three formats."""
    for name in ("images", "captions", "turned"):
        (output / name).mkdir(exist_ok=True)
    digits, _ = load_digits()
    conversations, edits = [], []
    for i in range(num_images):
        name, image = NAMES[digits.labels[i]], to_image(digits.intensities[i])
        turns = {"human": f"{IMAGE_MARKER}\n{QUESTIONS[i % len(QUESTIONS)]}", "gpt": name}
        messages = [{"from": role, "value": text} for role, text in turns.items()]
        conversations.append({"id": str(i), "image": f"{i:04d}.png", "conversations": messages})
        given, made = f"images/{i:04d}.png", f"turned/{i:04d}.png"
        edits.append({"input_prompt": "Turn it upside down.", "input_image": [given], "output_image": made})
        turned = image.transpose(PIL.Image.Transpose.ROTATE_180)
        for path, picture in ((given, image), (made, turned), (f"captions/{i:04d}.png", image)):
            with (output / path).open("wb") as file:
                picture.save(file, "PNG")
        (output / "captions" / f"{i:04d}.txt").write_text(CAPTIONS[i % len(CAPTIONS)].format(name))
    for file_name, samples in (("mine.json", conversations), ("edits.json", edits)):
        (output / file_name).write_text(json.dumps(samples, indent=1) + "\n")


if __name__ == "__main__":
    errors.run(main)
