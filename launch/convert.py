"""Converts a model folder: DeepSeek's, Hugging Face's or ours, told apart by its files, to any of the three.

    python -m launch.convert --input=deepseek-ai/Janus-Pro-1B --output=models/janus-pro-1b --to=orbax --verify
    python -m launch.convert --input=JanusFlow-1.3B --vae=sdxl-vae --output=models/janusflow --to=orbax --verify
    python -m launch.convert --input=runs/stage3 --output=export --to=hf --dtype=bfloat16

The output appears under its name only when it is complete and, with --verify, verified.
"""

import functools

import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from janus_jax.errors import UserError
from janus_jax.inference.loading import find_vae
from janus_jax.models.config import JanusConfig, JanusFlowConfig, VAEConfig
from janus_jax.models.params import Params
from janus_jax.weights import open_model, verify
from janus_jax.weights.vae import compare_vaes, load_vae
from launch.cli import errors
from launch.cli.progress import Progress

INPUT = flags.DEFINE_string("input", None, "model folder or training workdir")
EMA = flags.DEFINE_bool("ema", False, "of a workdir: the average of the parameters over its steps")
OUTPUT = flags.DEFINE_string("output", None, "folder to write; new or empty")
TO = flags.DEFINE_enum("to", None, open_model.LAYOUTS, "layout of the output")
VAE = flags.DEFINE_string(
    "vae", None, "JanusFlow: folder of the VAE to go with it into --to=orbax, diffusers' or ours; default: INPUT/vae"
)
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16", "float16"], "of the parameters; default: as they are")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "print every tensor of the output and where it comes from; write nothing")
VERIFY = flags.DEFINE_bool(
    "verify",
    False,
    "read the output again and compare every tensor, the VAE's too; with torch and transformers 5 or newer, also run "
    "both models; an output that differs is not kept",
)


def main() -> None:
    errors.require("input", "to", *([] if DRY_RUN.value else ["output"]))
    layout, output = TO.value or "", OUTPUT.value or ""
    dtype = jnp.dtype(DTYPE.value) if DTYPE.value else None
    source = open_model.open_folder(INPUT.value, EMA.value)
    if DRY_RUN.value:
        print("\n".join(open_model.describe(source, layout)))
        return
    vae = _open_vae(source, layout)
    size = open_model.total_bytes(source, dtype)
    print(f"{INPUT.value} ({source.layout}) -> {output} ({layout}), {size / 1e9:.2f} GB", flush=True)
    check = functools.partial(_verify, source, vae, dtype) if VERIFY.value else _accept
    with Progress(size) as progress:
        open_model.write_folder(source, output, layout, dtype, progress.add, check, vae)
    print(f"wrote {progress.tensors} tensors")


def _open_vae(source: open_model.Source, layout: str) -> tuple[VAEConfig, Params] | None:
    """The VAE that goes with a model into a folder of ours: of --vae, or the one beside the model."""
    folder = find_vae(source, INPUT.value or "", VAE.value)
    if folder is None or not isinstance(source.config, JanusFlowConfig):
        return None
    if layout != "orbax" and not VAE.value:
        print(f"{folder} stays behind: the {layout} layout has no place for a VAE", flush=True)
        return None
    return load_vae(folder)


def _accept(folder: epath.Path) -> None:
    """No check."""


def _verify(
    source: open_model.Source, vae: tuple[VAEConfig, Params] | None, dtype: np.dtype | None, folder: epath.Path
) -> None:
    """Every tensor, then, where PyTorch's model can be run, what both models compute.

    Raises UserError for a difference; the folder, which still has its temporary name, is then removed.
    """
    written = open_model.open_folder(folder)
    print(f"verified: {open_model.compare(source, written, dtype)} tensors are equal bit for bit", flush=True)
    if vae is not None:
        count = compare_vaes(vae, load_vae(folder / open_model.VAE_FOLDER), VAE.value or open_model.VAE_FOLDER)
        print(f"verified: {count} tensors of the VAE are equal bit for bit", flush=True)
    reason = verify.why_not()
    theirs, ours = (folder, written) if written.layout == "hf" else (INPUT.value or "", source)
    if ours.layout != "hf":
        reason = "neither side is a Hugging Face folder"
    if reason or not isinstance(source.config, JanusConfig):
        print(f"the models were not run against each other: {reason}")
        return
    params = open_model.load_params(ours, jnp.float32)
    differences = verify.compare_with_torch(theirs, source.config, params, source.tokenizer)
    print(verify.format_differences(differences))
    bad = [difference.stage for difference in differences if not difference.passed]
    if bad:
        raise UserError(f"{OUTPUT.value} was not kept: PyTorch computes something else at: {', '.join(bad)}")


if __name__ == "__main__":
    errors.run(main)
