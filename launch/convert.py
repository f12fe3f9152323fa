"""Converts a model folder: DeepSeek's, Hugging Face's or ours, told apart by its files, to any of the three.

    python -m launch.convert --input=deepseek-ai/Janus-Pro-1B --output=models/janus-pro-1b --to=orbax --verify
    python -m launch.convert --input=runs/stage3 --output=export --to=hf --dtype=bfloat16

The output appears under its name only when it is complete.
"""

import sys

import jax.numpy as jnp
import numpy as np
import tqdm
from absl import flags

from janus_jax.convert import folders, verify
from janus_jax.errors import UserError
from launch import command_line

INPUT = flags.DEFINE_string("input", None, "model folder or training workdir")
OUTPUT = flags.DEFINE_string("output", None, "folder to write; new or empty")
TO = flags.DEFINE_enum("to", None, folders.LAYOUTS, "layout of the output")
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16", "float16"], "of the parameters; default: as they are")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "print every tensor of the output and where it comes from; write nothing")
VERIFY = flags.DEFINE_bool(
    "verify", False, "read the output again and compare every tensor; with torch and transformers, also run both models"
)


def main() -> None:
    command_line.require("input", "to", *([] if DRY_RUN.value else ["output"]))
    layout, output = TO.value or "", OUTPUT.value or ""
    dtype = jnp.dtype(DTYPE.value) if DTYPE.value else None
    source = folders.open_folder(INPUT.value)
    if DRY_RUN.value:
        print("\n".join(folders.describe(source, layout)))
        return
    size = folders.total_bytes(source, dtype)
    print(f"{INPUT.value} ({source.layout}) -> {output} ({layout}), {size / 1e9:.2f} GB")
    with tqdm.tqdm(total=size, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        tensors = 0

        def report(nbytes: int) -> None:
            nonlocal tensors
            tensors += 1
            bar.set_postfix_str(f"{tensors} tensors", refresh=False)
            bar.update(nbytes)

        folders.write_folder(source, output, layout, dtype, report)
    print(f"wrote {tensors} tensors")
    if VERIFY.value:
        _verify(source, output, dtype)


def _verify(source: folders.Source, output: str, dtype: np.dtype | None) -> None:
    """Every tensor, then, where PyTorch's model can be run, what both models compute."""
    written = folders.open_folder(output)
    print(f"verified: {folders.compare(source, written, dtype)} tensors are equal bit for bit")
    folder, ours = (output, written) if written.layout == "hf" else (INPUT.value or "", source)
    if ours.layout != "hf":
        print("the models were not run against each other: neither side is a Hugging Face folder")
    elif not verify.torch_available():
        print("the models were not run against each other: torch and transformers are not installed")
    else:
        params = folders.load_params(ours, jnp.float32)
        differences = verify.compare_with_torch(folder, source.config, params, source.tokenizer)
        print(verify.format_differences(differences))
        bad = [difference.stage for difference in differences if not difference.passed]
        if bad:
            raise UserError(f"{output}: does not compute what PyTorch does at: {', '.join(bad)}")


if __name__ == "__main__":
    command_line.run(main)
