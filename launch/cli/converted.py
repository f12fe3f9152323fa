"""Verifies what `launch.convert` wrote: every tensor, and what the models compute."""

import jax.numpy as jnp
import numpy as np
from etils import epath

from janus_jax.errors import UserError
from janus_jax.models.config import JanusConfig, VAEConfig
from janus_jax.models.params import Params
from janus_jax.weights import verify
from janus_jax.weights.load import load_params
from janus_jax.weights.open_model import open_model
from janus_jax.weights.original_tensors import check_loads
from janus_jax.weights.reader import ModelReader
from janus_jax.weights.vae import VAE_FOLDER, compare_vaes, load_vae
from janus_jax.weights.write_model import compare

ORIGINALS = {"hf": "transformers' JanusForConditionalGeneration", "deepseek": "DeepSeek's MultiModalityCausalLM"}


def verify_output(
    reader: ModelReader,
    vae: tuple[VAEConfig, Params] | None,
    dtype: np.dtype | None,
    folder: epath.Path,
    *,
    source: str,
    output: str,
    layout: str,
    vae_name: str,
) -> None:
    """Compares every tensor and then, where PyTorch's model can be run, what both models compute.

    Args:
        folder: the output, under its temporary name.
        source, output, layout, vae_name: values of --input, --output, --to and --vae.

    Raises UserError for a difference; the folder is then removed.
    """
    written = open_model(folder)
    print(f"verified: {compare(reader, written, dtype)} tensors are equal bit for bit", flush=True)
    if vae is not None:
        count = compare_vaes(vae, load_vae(folder / VAE_FOLDER), vae_name or VAE_FOLDER)
        print(f"verified: {count} tensors of the VAE are equal bit for bit", flush=True)
    if layout != "orbax":
        print(f"verified: loads in the original, {ORIGINALS[layout]}: {check_loads(folder)}", flush=True)
    reason = verify.why_not()
    theirs, ours = (folder, written) if written.layout == "hf" else (source, reader)
    if ours.layout != "hf":
        reason = "neither side is a Hugging Face folder"
    if reason or not isinstance(reader.config, JanusConfig):
        print(f"the models were not run against each other: {reason}")
        return
    params = load_params(ours, jnp.float32)
    differences = verify.compare_with_torch(theirs, reader.config, params, reader.tokenizer)
    print(verify.format_differences(differences))
    bad = [difference.stage for difference in differences if not difference.passed]
    if bad:
        raise UserError(f"{output} was not kept: PyTorch computes something else at: {', '.join(bad)}")
