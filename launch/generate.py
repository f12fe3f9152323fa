"""Draws images of one prompt, or of every line of a file: PNGs and a grid.

    python -m launch.generate --checkpoint=quickstart/checkpoint --prompt="a handwritten seven" --output=drawings
    python -m launch.generate --checkpoint=JanusFlow-1.3B --vae=sdxl-vae --prompt="a red fox" --output=foxes

The checkpoint tells whether codes are sampled or latents flow.
"""

import math
from typing import Any

import numpy as np
import PIL.Image
import tqdm
from absl import flags
from etils import epath

from janus_jax.data.images import grid
from janus_jax.errors import UserError
from janus_jax.inference.janusflow import JanusFlowPipeline, check_noise, latent_shape, require_drawable
from janus_jax.inference.loading import load
from janus_jax.inference.validation import RequestReader
from janus_jax.models.config import JanusFlowConfig
from janus_jax.ops.flow import SOLVERS
from janus_jax.storage import prepare_folder
from janus_jax.weights.open_model import open_model
from janus_jax.weights.vae import find_vae
from launch.cli import errors, model_flags

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "model folder or training workdir")
EMA = flags.DEFINE_bool("ema", False, "of a workdir: the average of the parameters over its steps")
PROMPT = flags.DEFINE_string("prompt", None, "what to draw")
PROMPTS_FILE = flags.DEFINE_string("prompts_file", None, "text file with a prompt per line, instead of --prompt")
NUM_IMAGES = flags.DEFINE_integer("num_images", 16, "images per prompt", lower_bound=1)
IMAGES_AT_A_TIME = flags.DEFINE_integer(
    "images_at_a_time", 16, "prompts of a file are drawn together up to so many images", lower_bound=1
)
CFG_WEIGHT = flags.DEFINE_float("cfg_weight", None, "guidance; 1 is none; default: 5 for codes, 2 for JanusFlow")
SEED = flags.DEFINE_integer("seed", 0, "0 to 2**32 - 1; an image depends on it, its number and the prompt alone")
OUTPUT = flags.DEFINE_string("output", None, "folder for the images; one that holds drawings is refused")
# Of models that draw codes.
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "codes: 0 is argmax", lower_bound=0)
TOP_P = flags.DEFINE_float("top_p", 1.0, "codes: probability mass sampled from")
TOP_K = flags.DEFINE_integer("top_k", 0, "codes: sample among the k most probable; 0: all")
SAVE_TOKEN_IDS = flags.DEFINE_bool("save_token_ids", False, "codes: also write codes.npy [images, tokens]")
# Of JanusFlow.
VAE = flags.DEFINE_string("vae", None, "JanusFlow: folder of its VAE, ours or diffusers'; default: CHECKPOINT/vae")
NUM_STEPS = flags.DEFINE_integer("num_steps", 30, "JanusFlow: steps of the solver")
SOLVER = flags.DEFINE_enum("solver", "euler", sorted(SOLVERS), "JanusFlow: heun takes two passes per step")
INITIAL_NOISE = flags.DEFINE_string("initial_noise", None, "JanusFlow: .npy file [images, H, W, channels], not --seed")
SAVE_LATENTS = flags.DEFINE_bool("save_latents", False, "JanusFlow: also write latents.npy, what the VAE decodes")
CODE_FLAGS = (TEMPERATURE, TOP_P, TOP_K, SAVE_TOKEN_IDS)
FLOW_FLAGS = (VAE, NUM_STEPS, SOLVER, INITIAL_NOISE, SAVE_LATENTS)


def main() -> None:
    errors.require("checkpoint", "output")
    prompts, number = _prompts(), NUM_IMAGES.value
    source = open_model(CHECKPOINT.value, EMA.value)  # all mistakes are told before the weights, which take long
    reader = RequestReader(source.config, source.tokenizer)
    options: dict[str, Any] = {"seed": SEED.value}
    noise = None
    if isinstance(source.config, JanusFlowConfig):
        _refuse(CODE_FLAGS, "JanusFlow")
        options |= {"cfg_weight": _or(CFG_WEIGHT.value, 2.0), "num_steps": NUM_STEPS.value, "solver": SOLVER.value}
        reader.latents(prompts, number, **options)
        noise = _read_noise((len(prompts) * number, *latent_shape(source.config)))
        vae = find_vae(source, CHECKPOINT.value, VAE.value)
        require_drawable(source.config, vae is not None)
    else:
        _refuse(FLOW_FLAGS, "a model that draws codes")
        options |= {"cfg_weight": _or(CFG_WEIGHT.value, 5.0)}
        options |= {flag.name: flag.value for flag in (TEMPERATURE, TOP_P, TOP_K)}
        reader.images(prompts, number, **options)
        vae = None
    load_options = model_flags.load_options()
    output = prepare_folder("output", OUTPUT.value)
    for old in output.iterdir():
        if old.suffix in (".png", ".npy"):
            raise UserError(f"--output={output}: holds {old.name}, expected a folder without drawings of another run")
    model = load(source, vae=vae, **load_options)
    drawn: list[np.ndarray] = []  # codes or latents
    images: list[PIL.Image.Image] = []
    # Of the tokens of all images, latents too; on a terminal only.
    total = len(prompts) * number * source.config.image_tokens
    with tqdm.tqdm(total=total, unit="token", unit_scale=True, disable=None) as bar:
        for group in model.groups(len(prompts), number, IMAGES_AT_A_TIME.value):
            together, before = prompts[group], len(images)
            if isinstance(model, JanusFlowPipeline):
                own = None if noise is None else noise[before : before + number * len(together)]
                drawn.append(model.generate_latents(together, number, initial_noise=own, **options))
            else:

                def show(codes: int, done: int = bar.n, count: int = number * len(together)) -> None:
                    bar.update(done + count * codes - bar.n)

                drawn.append(model.generate_codes(together, number, on_codes=show, **options))
            for image in model.draw(drawn[-1]):
                with (output / f"{len(images):05d}.png").open("wb") as file:
                    image.save(file, "PNG")
                images.append(image)
            bar.update(len(images) * source.config.image_tokens - bar.n)
            bar.set_postfix_str(f"{len(images)} images")
    with (output / "grid.png").open("wb") as file:
        grid(images, columns=math.ceil(math.sqrt(number))).save(file, "PNG")
    for wanted, name in ((SAVE_TOKEN_IDS.value, "codes.npy"), (SAVE_LATENTS.value, "latents.npy")):
        if wanted:
            with (output / name).open("wb") as file:
                np.save(file, np.concatenate(drawn))
    print(f"{len(images)} images in {output}")


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _refuse(others: tuple[flags.FlagHolder, ...], kind: str) -> None:
    """Raises UserError for a flag that was given although it means nothing for this kind of model."""
    for flag in others:
        if flags.FLAGS[flag.name].present:
            raise UserError(f"--{flag.name}={flag.value} means nothing for {kind}, which --checkpoint is")


def _read_noise(shape: tuple[int, ...]) -> np.ndarray | None:
    """The array of --initial_noise. Raises UserError for another shape, told by the file's head, or type."""
    if INITIAL_NOISE.value is None:
        return None
    try:
        noise = np.lib.format.open_memmap(INITIAL_NOISE.value, mode="r")  # np.load would open archives too
    except (OSError, ValueError) as error:
        raise UserError(f"--initial_noise={INITIAL_NOISE.value}: not a readable .npy file ({error})") from error
    try:
        return check_noise(noise, shape)
    except UserError as error:
        raise UserError(f"--initial_noise={INITIAL_NOISE.value}: {error}") from error


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
    errors.run(main)
