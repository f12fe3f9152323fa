"""Draws images of one prompt, or of every line of a file: PNGs and a grid.

python -m launch.generate --checkpoint=quickstart/checkpoint --prompt="a handwritten seven" --output=drawings
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import PIL.Image
import tqdm
from absl import flags
from etils import epath

from janus_jax.checkpoints import prepare_folder
from janus_jax.convert.folders import open_folder
from janus_jax.data.images import grid
from janus_jax.errors import UserError
from janus_jax.inference.pipeline import load
from janus_jax.inference.request import RequestReader
from launch import command_line

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "model folder or training workdir")
PROMPT = flags.DEFINE_string("prompt", None, "what to draw")
PROMPTS_FILE = flags.DEFINE_string("prompts_file", None, "text file with a prompt per line, instead of --prompt")
NUM_IMAGES = flags.DEFINE_integer("num_images", 16, "images per prompt", lower_bound=1)
CFG_WEIGHT = flags.DEFINE_float("cfg_weight", 5.0, "guidance; 1 is none")
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "0 is argmax", lower_bound=0)
TOP_P = flags.DEFINE_float("top_p", 1.0, "probability mass sampled from")
TOP_K = flags.DEFINE_integer("top_k", 0, "sample among the k most probable codes; 0: all")
SEED = flags.DEFINE_integer("seed", 0, "0 to 2**32 - 1; an image depends on it, its number and the prompt alone")
OUTPUT = flags.DEFINE_string("output", None, "folder for the images; one that holds drawings is refused")
SAVE_TOKEN_IDS = flags.DEFINE_bool("save_token_ids", False, "also write codes.npy [images, tokens]")
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "default: float32 on CPU, bfloat16 on accelerators")


def main() -> None:
    command_line.require("checkpoint", "output")
    prompts = _prompts()
    source = open_folder(CHECKPOINT.value)  # all mistakes are told before the weights, which take long
    RequestReader(source.config, source.tokenizer).images(prompts, NUM_IMAGES.value, **_options())
    output = prepare_folder("output", OUTPUT.value)
    for old in output.iterdir():
        if old.suffix == ".png" or old.name == "codes.npy":
            raise UserError(f"--output={output}: holds {old.name}, expected a folder without drawings of another run")
    model = load(source, jnp.dtype(DTYPE.value) if DTYPE.value else None)
    codes: list[np.ndarray] = []
    images: list[PIL.Image.Image] = []
    for prompt in tqdm.tqdm(prompts, unit="prompt", disable=len(prompts) == 1):
        codes.append(model.generate_codes([prompt], NUM_IMAGES.value, **_options()))
        for image in model.draw(codes[-1]):
            with (output / f"{len(images):05d}.png").open("wb") as file:
                image.save(file, "PNG")
            images.append(image)
    with (output / "grid.png").open("wb") as file:
        grid(images, columns=math.ceil(math.sqrt(NUM_IMAGES.value))).save(file, "PNG")
    if SAVE_TOKEN_IDS.value:
        with (output / "codes.npy").open("wb") as file:
            np.save(file, np.concatenate(codes))
    print(f"{len(images)} images in {output}")


def _options() -> dict[str, Any]:
    return {flag.name: flag.value for flag in (CFG_WEIGHT, TEMPERATURE, TOP_P, TOP_K, SEED)}


def _prompts() -> list[str]:
    if (PROMPT.value is None) == (PROMPTS_FILE.value is None):
        raise UserError("expected either --prompt or --prompts_file")
    if PROMPT.value is not None:
        prompts = [PROMPT.value]
    else:
        path = epath.Path(PROMPTS_FILE.value)
        try:
            prompts = [line.strip() for line in path.read_text().split("\n") if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompts_file={path}: cannot be read ({error})") from error
    if not any(prompt.strip() for prompt in prompts):
        raise UserError("no prompt: --prompt or the lines of --prompts_file are empty")
    return prompts


if __name__ == "__main__":
    command_line.run(main)
