"""Generates images of one prompt, or of every line of a file: PNGs and a grid.

    python -m launch.generate --checkpoint=quickstart/checkpoint --prompt="a handwritten seven" --output=images
    python -m launch.generate --checkpoint=JanusFlow-1.3B --vae=sdxl-vae --prompt="a red fox" --output=foxes

Janus and Janus-Pro generate image codes, JanusFlow generates latents; the checkpoint tells which.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tqdm
from absl import flags

from janus_jax.errors import UserError
from janus_jax.inference.janusflow import JanusFlowPipeline, check_can_decode, latent_shape
from janus_jax.inference.loading import load
from janus_jax.inference.validation import RequestReader
from janus_jax.models.config import JanusFlowConfig
from janus_jax.ops.flow import SOLVERS
from janus_jax.weights.open_model import open_model
from janus_jax.weights.reader import ModelReader
from janus_jax.weights.vae import find_vae
from launch.cli import errors, model_flags
from launch.cli.image_files import ImageFolder, read_noise, read_prompts

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Model folder or training workdir. Required.")
EMA = flags.DEFINE_bool("ema", False, "Take the average of a workdir's parameters over its steps.")
PROMPT = flags.DEFINE_string("prompt", None, "Description of the images.")
PROMPTS_FILE = flags.DEFINE_string("prompts_file", None, "Text file with one prompt per line, instead of --prompt.")
NUM_IMAGES = flags.DEFINE_integer("num_images", 16, "Number of images per prompt.", lower_bound=1)
IMAGES_AT_A_TIME = flags.DEFINE_integer(
    "images_at_a_time", 16, "Largest number of images that prompts of a file are batched to.", lower_bound=1
)
CFG_WEIGHT = flags.DEFINE_float(
    "cfg_weight", None, "Weight of the guidance; 1 is no guidance. The default is 5 for codes and 2 for JanusFlow."
)
SEED = flags.DEFINE_integer(
    "seed", 0, "Seed, 0 to 2**32 - 1. An image depends on its prompt, the seed, the prompt number and its number alone."
)
PROMPT_NUMBER = flags.DEFINE_integer(
    "prompt_number",
    0,
    "Prompt number of --prompt: the line number, counted from 0, gives the images of a line of --prompts_file again.",
    lower_bound=0,
)
OUTPUT = flags.DEFINE_string("output", None, "Folder for the images, without images of another run. Required.")
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Codes: temperature of sampling; 0 is argmax.", lower_bound=0)
TOP_P = flags.DEFINE_float("top_p", 1.0, "Codes: probability mass that is sampled from.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Codes: number of most probable codes that are sampled from; 0 is all.")
SAVE_TOKEN_IDS = flags.DEFINE_bool("save_token_ids", False, "Codes: also write codes.npy, [images, tokens].")
VAE = flags.DEFINE_string(
    "vae", None, "JanusFlow: folder of its VAE, ours or diffusers'. The default is CHECKPOINT/vae."
)
NUM_STEPS = flags.DEFINE_integer("num_steps", 30, "JanusFlow: number of steps of the solver.")
SOLVER = flags.DEFINE_enum("solver", "euler", sorted(SOLVERS), "JanusFlow: solver; heun takes two passes per step.")
INITIAL_NOISE = flags.DEFINE_string(
    "initial_noise", None, "JanusFlow: .npy file of noise, [images, H, W, channels], instead of noise from --seed."
)
SAVE_LATENTS = flags.DEFINE_bool("save_latents", False, "JanusFlow: also write latents.npy, which the VAE decodes.")
CODE_FLAGS = (TEMPERATURE, TOP_P, TOP_K, SAVE_TOKEN_IDS)
FLOW_FLAGS = (VAE, NUM_STEPS, SOLVER, INITIAL_NOISE, SAVE_LATENTS)
flags.adopt_module_key_flags(model_flags)


def main() -> None:
    errors.require("checkpoint", "output")
    # All mistakes are reported before the weights are loaded, which takes long.
    prompts = _prompts()
    reader = open_model(CHECKPOINT.value, EMA.value)
    options, vae, noise = _options(reader, prompts)
    load_options = model_flags.load_options()
    folder = ImageFolder(OUTPUT.value or "")
    model = load(reader, vae=vae, **load_options)
    samples = np.concatenate(list(_generate(model, prompts, options, noise, folder)))
    folder.add_grid(NUM_IMAGES.value)
    if SAVE_TOKEN_IDS.value:
        folder.add_array("codes", samples)
    if SAVE_LATENTS.value:
        folder.add_array("latents", samples)
    print(f"{len(folder.images)} images in {folder}")


def _prompts() -> dict[int, str]:
    """Prompts by prompt number."""
    if (PROMPT.value is None) == (PROMPTS_FILE.value is None):
        raise UserError("expected either --prompt or --prompts_file")
    if PROMPT.value is not None:
        if not PROMPT.value.strip():
            raise UserError("--prompt is empty, expected a description of the images")
        return {PROMPT_NUMBER.value: PROMPT.value}
    if flags.FLAGS["prompt_number"].present:
        raise UserError(f"--prompt_number={PROMPT_NUMBER.value}: means nothing with --prompts_file, whose lines count")
    return read_prompts(PROMPTS_FILE.value or "")


def _options(model: ModelReader, prompts: Mapping[int, str]) -> tuple[dict[str, Any], Any, np.ndarray | None]:
    """Options of generate_codes or generate_latents, the folder of the VAE, and the noise.

    Raises UserError for options that are wrong, or that mean nothing for this kind of model.
    """
    reader = RequestReader(model.config, model.tokenizer)
    texts, numbers = list(prompts.values()), list(prompts)
    request: dict[str, Any] = {"prompts": texts, "num_images": NUM_IMAGES.value, "prompt_numbers": numbers}
    options: dict[str, Any] = {"seed": SEED.value}
    if not isinstance(model.config, JanusFlowConfig):
        model_flags.refuse(FLOW_FLAGS, "a model that generates codes")
        options |= {flag.name: flag.value for flag in (TEMPERATURE, TOP_P, TOP_K)}
        options["cfg_weight"] = 5.0 if CFG_WEIGHT.value is None else CFG_WEIGHT.value
        reader.codes(**request, **options)
        return options, None, None
    model_flags.refuse(CODE_FLAGS, "JanusFlow")
    options |= {flag.name: flag.value for flag in (NUM_STEPS, SOLVER)}
    options["cfg_weight"] = 2.0 if CFG_WEIGHT.value is None else CFG_WEIGHT.value
    reader.latents(**request, **options)
    vae = find_vae(model, CHECKPOINT.value, VAE.value)
    check_can_decode(model.config, vae is not None)
    shape = (len(prompts) * NUM_IMAGES.value, *latent_shape(model.config))
    return options, vae, None if INITIAL_NOISE.value is None else read_noise(INITIAL_NOISE.value, shape)


def _generate(
    model: Any, prompts: Mapping[int, str], options: Mapping[str, Any], noise: np.ndarray | None, folder: ImageFolder
) -> Iterator[np.ndarray]:
    """Writes the images of each batch of prompts, and yields its codes or latents."""
    number, tokens = NUM_IMAGES.value, model.config.image_tokens
    total = len(prompts) * number * tokens  # progress, on a terminal only: tokens of the images, latents too
    with tqdm.tqdm(total=total, unit="token", unit_scale=True, disable=None) as bar:
        for batch in model.engine.batches(len(prompts), number, IMAGES_AT_A_TIME.value):
            texts, start = list(prompts.values())[batch], len(folder.images)
            count, done = number * len(texts), start * tokens
            request = {**options, "prompts": texts, "num_images": number, "prompt_numbers": list(prompts)[batch]}
            if isinstance(model, JanusFlowPipeline):
                batch_noise = None if noise is None else noise[start : start + count]
                samples = model.generate_latents(**request, initial_noise=batch_noise)
            else:

                def show(codes: int, done: int = done, count: int = count) -> None:
                    bar.update(done + count * codes - bar.n)

                samples = model.generate_codes(**request, on_codes=show)
            folder.add(model.engine.decode(samples))
            bar.update(done + count * tokens - bar.n)
            bar.set_postfix_str(f"{len(folder.images)} images")
            yield samples


if __name__ == "__main__":
    errors.run(main)
