"""Writes a model folder with random weights, to rehearse conversion, fine-tuning or serving before a download.

    python -m launch.random_model --preset=janus_pro_mini --output=model
    python -m launch.random_model --preset=janus_pro_1b --output=janus-pro-1b --layout=deepseek --dtype=bfloat16

Weights are sampled and written one tensor at a time: a model of any size needs the memory of its largest tensor. What
such a model answers or generates is noise.
"""

from absl import flags

from janus_jax.models.config import FamilyConfig
from janus_jax.models.presets import PRESETS
from launch.cli import errors
from launch.cli.progress import Progress

PRESET = flags.DEFINE_enum(
    "preset",
    "janus_pro_mini",
    [name for name, config in PRESETS.items() if isinstance(config, FamilyConfig)],
    "Architecture. janus_pro_mini is small (5 MB) and fits the layout of Hugging Face, which the other small ones do "
    "not.",
)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write; it must be new or empty.")
LAYOUT = flags.DEFINE_enum(
    "layout",
    "hf",
    ["orbax", "hf", "deepseek"],
    "Layout of the folder: transformers' (hf), the original's (deepseek) or ours (orbax).",
)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "Dtype of the weights.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the weights.", lower_bound=0)


def main() -> None:
    errors.require("output")

    import jax.numpy as jnp

    from janus_jax.weights.random_model import random_model
    from janus_jax.weights.write_model import total_bytes, write_model

    config, dtype = PRESETS[PRESET.value], jnp.dtype(DTYPE.value)
    assert isinstance(config, FamilyConfig)
    reader = random_model(config, SEED.value)
    size = total_bytes(reader, dtype)
    print(f"{PRESET.value} with random weights -> {OUTPUT.value} ({LAYOUT.value}), {size / 1e9:.3f} GB", flush=True)
    with Progress(size) as progress:
        write_model(reader, OUTPUT.value or "", LAYOUT.value, dtype, progress.add)
    print(f"wrote {progress.tensors} tensors")


if __name__ == "__main__":
    errors.run(main)
