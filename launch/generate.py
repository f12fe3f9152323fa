"""Generates images of one prompt, or of every line of a file: PNGs and a grid.

    python -m launch.generate --checkpoint=quickstart/checkpoint --prompt="a handwritten seven" --output=images
    python -m launch.generate --checkpoint=JanusFlow-1.3B --vae=sdxl-vae --prompt="a red fox" --output=foxes
    python -m launch.generate --checkpoint=Janus-4o-7B --condition_image=fox.png --prompt="at night" --output=night

Janus and Janus-Pro generate image codes, JanusFlow generates latents; the checkpoint tells which.
"""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from janus_jax.errors import UserError
from janus_jax.models.config import JanusFlowConfig
from janus_jax.phases import phase
from janus_jax.weights.locations import existing_path
from launch.cli import compilation_cache, condition_flags, errors, model_flags, window_flag
from launch.cli.image_files import ImageFolder, read_noise, read_prompts
from launch.cli.phase_display import show_phases

if TYPE_CHECKING:
    from janus_jax.weights.reader import ModelReader
    from launch.cli.image_batches import ImageWork

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Model folder or training workdir. Required.")
EMA = flags.DEFINE_bool("ema", False, "Take the average of a workdir's parameters over its steps.")
PROMPT = flags.DEFINE_string("prompt", None, "Description of the images.")
PROMPTS_FILE = flags.DEFINE_string("prompts_file", None, "Text file with one prompt per line, instead of --prompt.")
NUM_IMAGES = flags.DEFINE_integer("num_images", 16, "Number of images per prompt.", lower_bound=1)
IMAGES_AT_A_TIME = flags.DEFINE_integer(
    "images_at_a_time",
    16,
    "Largest number of images that are generated together, of one prompt or of several. Fewer are taken where they do "
    "not fit the memory.",
    lower_bound=1,
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
SOLVER = flags.DEFINE_enum("solver", "euler", ["euler", "heun"], "JanusFlow: solver; heun takes two passes per step.")
INITIAL_NOISE = flags.DEFINE_string(
    "initial_noise", None, "JanusFlow: .npy file of noise, [images, H, W, channels], instead of noise from --seed."
)
SAVE_LATENTS = flags.DEFINE_bool("save_latents", False, "JanusFlow: also write latents.npy, which the VAE decodes.")
CODE_FLAGS = (*condition_flags.ALL, TEMPERATURE, TOP_P, TOP_K, SAVE_TOKEN_IDS, window_flag.WINDOW)
FLOW_FLAGS = (VAE, NUM_STEPS, SOLVER, INITIAL_NOISE, SAVE_LATENTS)
flags.adopt_module_key_flags(condition_flags)
flags.adopt_module_key_flags(model_flags)
flags.adopt_module_key_flags(window_flag)
flags.adopt_module_key_flags(compilation_cache)


def main() -> None:
    errors.require("checkpoint", "output")
    # All mistakes are reported before the weights are loaded, which takes long.
    prompts = _prompts()
    existing_path(CHECKPOINT.value)  # before JAX is imported

    show_phases()
    with phase("starting"):
        from janus_jax.inference.loading import load
        from janus_jax.weights.open_model import open_model
        from launch.cli.image_batches import compile_ahead, generate_batches

    reader = open_model(CHECKPOINT.value, EMA.value)
    work = _work(reader, prompts)
    load_options = model_flags.load_options()
    folder = ImageFolder(OUTPUT.value or "")
    compilation_cache.enable()
    ahead = functools.partial(compile_ahead, work=work, at_a_time=IMAGES_AT_A_TIME.value)
    model = load(reader, vae=work.vae, **load_options, compile_ahead=ahead)
    kept = []
    for samples in generate_batches(model.engine, work, folder, IMAGES_AT_A_TIME.value):
        if SAVE_TOKEN_IDS.value or SAVE_LATENTS.value:
            kept.append(samples)
    folder.add_grid(NUM_IMAGES.value)
    if kept:
        folder.add_array("codes" if SAVE_TOKEN_IDS.value else "latents", np.concatenate(kept))
    print(f"{folder.count} images in {folder}")


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


def _work(model: "ModelReader", prompts: Mapping[int, str]) -> "ImageWork":
    """Raises UserError for options that are wrong, or that mean nothing for this kind of model."""
    from janus_jax.inference.janusflow import check_can_decode, latent_shape
    from janus_jax.inference.validation import RequestReader
    from janus_jax.weights.vae import find_vae
    from launch.cli.image_batches import ImageWork

    reader = RequestReader(model.config, model.tokenizer)
    texts, number = list(prompts.values()), NUM_IMAGES.value
    asked: dict[str, Any] = {"prompt_numbers": list(prompts), "seed": SEED.value}
    if CFG_WEIGHT.value is not None:
        asked["cfg_weight"] = CFG_WEIGHT.value
    if not isinstance(model.config, JanusFlowConfig):
        model_flags.refuse(FLOW_FLAGS, "a model that generates codes")
        asked |= {flag.name: flag.value for flag in (TEMPERATURE, TOP_P, TOP_K)}
        asked |= condition_flags.condition_options(len(texts)) | {"window": window_flag.window()}
        requests, options = reader.codes(texts, number, **asked)
        return ImageWork(requests, number, options)
    model_flags.refuse(CODE_FLAGS, "JanusFlow")
    asked |= {flag.name: flag.value for flag in (NUM_STEPS, SOLVER)}
    requests, options = reader.latents(texts, number, **asked)
    vae = find_vae(model, CHECKPOINT.value or "", VAE.value)
    check_can_decode(model.config, vae is not None)
    shape, noise = latent_shape(model.config), None
    if INITIAL_NOISE.value is not None:
        noise = read_noise(INITIAL_NOISE.value, (len(prompts) * number, *shape)).reshape(-1, number, *shape)
    return ImageWork(requests, number, options, noise, vae)


if __name__ == "__main__":
    errors.run(main)
