"""Converts a model folder from DeepSeek's, Hugging Face's or our layout, which its files tell, to any of the three.

    python -m launch.convert --input=Janus-Pro-1B --output=models/janus-pro-1b --to=orbax --verify
    python -m launch.convert --input=JanusFlow-1.3B --vae=sdxl-vae --output=models/janusflow --to=orbax --verify
    python -m launch.convert --input=runs/stage3 --output=export --to=hf --dtype=bfloat16
    python -m launch.convert --input=Janus-Pro-1B --adapter=mine --output=merged --to=hf
    python -m launch.convert --input=runs/lora --output=mine --to=peft
    python -m launch.convert --input=runs/vq16 --output=export --to=llamagen

The output gets its name only when it is complete and, with --verify, verified.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from absl import flags
from etils import epath

from janus_jax.errors import UserError
from janus_jax.phases import phase
from janus_jax.weights.locations import existing_path
from launch.cli import adapter_files, errors
from launch.cli.phase_display import show_phases
from launch.cli.progress import Progress

if TYPE_CHECKING:
    from janus_jax.weights.reader import ModelReader

INPUT = flags.DEFINE_string("input", None, "Model folder or training workdir to read.")
EMA = flags.DEFINE_bool("ema", False, "Read the average of the parameters over the steps of a training workdir.")
OUTPUT = flags.DEFINE_string("output", None, "Folder to write; it must be new or empty.")
TO = flags.DEFINE_enum(
    "to",
    None,
    ("orbax", "hf", "deepseek", "peft", "llamagen"),
    "Layout of the output: ours (orbax), transformers' (hf) or the original's (deepseek), with adapters merged, or the "
    "adapters alone (peft). An image tokenizer on its own, such as LlamaGen's file, has the layouts orbax and "
    "llamagen, which writes OUTPUT/vq.pt.",
)
VAE = flags.DEFINE_string(
    "vae",
    None,
    "JanusFlow only: folder of the VAE, diffusers' or ours, to write into the output with --to=orbax. "
    "The default is INPUT/vae if it exists.",
)
DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16", "float16"],
    "Dtype of the written parameters. The default keeps each as it is.",
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print every tensor of the output and where it comes from, and write nothing."
)
VERIFY = flags.DEFINE_bool(
    "verify",
    False,
    "Read the output again and compare every tensor, those of the VAE included. With torch and transformers 5 or newer "
    "installed, also run both models and compare what they compute. An output that differs is not kept.",
)
flags.adopt_module_key_flags(adapter_files)


def main() -> None:
    errors.require("input", "to", *([] if DRY_RUN.value else ["output"]))
    existing_path(INPUT.value)  # before JAX is imported

    show_phases()
    with phase("starting"):
        import jax.numpy as jnp

        from janus_jax.weights import llamagen
        from janus_jax.weights.open_model import open_model
        from janus_jax.weights.vae import load_vae, open_vae
        from janus_jax.weights.write_model import check_writable, describe, total_bytes, write_model

    layout, output = TO.value or "", OUTPUT.value or ""
    dtype = jnp.dtype(DTYPE.value) if DTYPE.value else None
    if llamagen.is_image_tokenizer(INPUT.value or ""):
        _convert_image_tokenizer(layout, output)
        return
    if layout == "llamagen":
        raise UserError(f"--to=llamagen: {INPUT.value} is no image tokenizer on its own")
    if layout == "peft":
        adapter_files.export(INPUT.value or "", output, EMA.value)
        return
    reader = adapter_files.merged(open_model(INPUT.value, EMA.value))
    vae_folder = _vae_folder(reader, layout)
    check_writable(reader, layout, open_vae(vae_folder)[0] if vae_folder else None, dtype)
    if DRY_RUN.value:
        print("\n".join(describe(reader, layout)))
        return
    vae = load_vae(vae_folder) if vae_folder else None
    size = total_bytes(reader, dtype)
    print(f"{INPUT.value} ({reader.layout}) -> {output} ({layout}), {size / 1e9:.2f} GB", flush=True)
    check: Callable[[epath.Path], None] = _accept
    if VERIFY.value:
        from launch.cli.converted import verify_output

        names = {"source": INPUT.value or "", "output": output, "layout": layout, "vae_name": VAE.value or ""}
        check = functools.partial(verify_output, reader, vae, dtype, **names)
    with Progress(size) as progress:
        write_model(reader, output, layout, dtype, progress.add, check, vae)
    print(f"wrote {progress.tensors} tensors")


def _convert_image_tokenizer(layout: str, output: str) -> None:
    """Converts an image tokenizer on its own and compares what was written with it."""
    unused = [flag.name for flag in (VAE, DTYPE, DRY_RUN, adapter_files.ADAPTER) if flags.FLAGS[flag.name].present]
    if unused or layout not in ("orbax", "llamagen"):
        wrong = f"--{unused[0]}" if unused else f"--to={layout}"
        raise UserError(f"{wrong} is not for {INPUT.value}, an image tokenizer on its own")
    from janus_jax.models.params import count
    from janus_jax.weights import llamagen

    tokenizer = llamagen.read_tokenizer(INPUT.value or "")
    if layout == "orbax":
        llamagen.write_folder(output, tokenizer, ema=EMA.value)
    else:
        llamagen.write_llamagen(output, tokenizer)
    found = "with" if tokenizer.discriminator and layout == "llamagen" else "without"
    print(f"wrote {output}: {count(tokenizer.params):,} parameters, {found} a discriminator")


def _vae_folder(reader: "ModelReader", layout: str) -> epath.Path | None:
    """The VAE to write with a model into a folder of ours: the one of --vae, or the one in the model's folder."""
    from janus_jax.weights.vae import find_vae

    folder = find_vae(reader, INPUT.value or "", VAE.value)
    if folder is not None and layout != "orbax" and not VAE.value:
        print(f"{folder} stays behind: the {layout} layout has no place for a VAE", flush=True)
        return None
    return folder


def _accept(folder: epath.Path) -> None:
    """Accepts any folder."""


if __name__ == "__main__":
    errors.run(main)
