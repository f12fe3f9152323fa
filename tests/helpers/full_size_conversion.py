"""Converts a full-size model of random bfloat16 weights there and back; prints time, speed and peak memory.

    python -m tests.helpers.full_size_conversion FOLDER janus_pro_7b hf
    python -m tests.helpers.full_size_conversion FOLDER janus_pro_1b deepseek
    python -m tests.helpers.full_size_conversion FOLDER janusflow_1p3b deepseek    # with the SDXL VAE

Needs three times the size of the model on disk (7B: 45 GB). It is no test of pytest's, since it takes minutes.
"""

import filecmp
import json
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import tqdm

from examples.digits import data as digits
from janus_jax.models.config import JanusFlowConfig
from janus_jax.models.presets import PRESETS, SDXL_VAE
from janus_jax.weights import deepseek_config, hf_config, janusflow_config, tokenizer_files
from janus_jax.weights.name_map import table_of, their_shapes
from janus_jax.weights.reader import TensorInfo
from janus_jax.weights.safetensors_io import SafetensorsWriter
from tests.helpers import REPOSITORY

BLOCK = 1 << 24  # random values that all tensors are cut from, each from another place


def write_random(folder, config, layout):
    """A complete checkpoint folder."""
    folder.mkdir(parents=True)
    tokenizer = digits.build_tokenizer(digits.text_records(), 512, config.prompt_style)
    if layout == "hf":
        tokenizer_files.write_hf_files(folder, config, tokenizer)
        content = hf_config.hf_config(config, "bfloat16", tokenizer_files.tokenizer_ids(tokenizer))
    else:
        tokenizer_files.write_deepseek_files(folder, config, tokenizer)
        write_config = janusflow_config.flow_config if is_flow(config) else deepseek_config.deepseek_config
        content = write_config(config, "bfloat16")
    write_tensors(folder, content, their_shapes(config, table_of(config, layout)))


def is_flow(config):
    return isinstance(config, JanusFlowConfig)


def write_random_vae(folder):
    """As diffusers would, but for the name of the file with the weights."""
    folder.mkdir()
    channels = [SDXL_VAE.base_channels * multiplier for multiplier in SDXL_VAE.channel_multipliers]
    content = {
        "_class_name": "AutoencoderKL",
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "latent_channels": SDXL_VAE.latent_channels,
        "layers_per_block": SDXL_VAE.num_res_blocks,
        "norm_num_groups": SDXL_VAE.norm_groups,
        "scaling_factor": SDXL_VAE.scaling_factor,
    }
    write_tensors(folder, content, their_shapes(SDXL_VAE, "vae"))
    (folder / "model.safetensors").rename(folder / "diffusion_pytorch_model.safetensors")


def write_tensors(folder, content, shapes):
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    block = (np.random.default_rng(0).standard_normal(BLOCK, np.float32) * 0.02).astype(ml_dtypes.bfloat16)
    infos = {name: TensorInfo(shape, block.dtype) for name, shape in shapes.items()}
    with SafetensorsWriter(folder, infos) as writer:
        for name, shape in tqdm.tqdm(shapes.items(), unit="tensor"):
            start = zlib.crc32(name.encode()) % BLOCK
            writer.write(name, np.resize(np.roll(block, start), shape))


def convert(source, target, layout, *flags):
    """Runs the command; returns (seconds, peak resident memory in GB)."""
    code = (
        "import resource, runpy, sys\n"
        "try: runpy.run_module('launch.convert', run_name='__main__')\n"
        "finally: print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    flags = [f"--input={source}", f"--output={target}", f"--to={layout}", *flags]
    start = time.monotonic()
    run = subprocess.run([sys.executable, "-c", code, *flags], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    assert run.returncode == 0, run.stderr
    return time.monotonic() - start, int(run.stderr.split()[-1]) * 1024 / 1e9


def main(folder, preset, layout):
    folder, config = Path(folder), PRESETS[preset]
    start, ours, back = folder / layout, folder / "ours", folder / "back"
    write_random(start, config, layout)
    check = ["--verify"] if layout == "deepseek" else []  # a Hugging Face folder would also be run, in float32
    vae = []
    if is_flow(config):
        write_random_vae(folder / "vae")
        vae = [f"--vae={folder / 'vae'}"]
    size = sum(path.stat().st_size for path in start.glob("*.safetensors"))
    for source, target, kind, flags in ((start, ours, "orbax", check + vae), (ours, back, layout, check)):
        seconds, peak = convert(source, target, kind, *flags)
        print(
            f"{preset} to {kind}: {seconds:.0f} s, {size / seconds / 1e6:.0f} MB/s, peak RSS {peak:.2f} GB", flush=True
        )
    names = [path.name for path in start.iterdir()]
    equal, different, missing = filecmp.cmpfiles(start, back, names, shallow=False)
    print(f"{len(equal)} files equal byte for byte, {len(different)} different, {len(missing)} missing: {different}")
    shutil.rmtree(back)


if __name__ == "__main__":
    main(*sys.argv[1:])
