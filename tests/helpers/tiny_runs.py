"""Models so small that a test only waits for the compiler, real digits to train them on, and comparisons of runs.

The sizes differ wherever the model allows it (4 understanding but 16 generation tokens per image, 16 but 8 pixels,
2 of 4 key-value heads), so that a swapped or hard-coded size cannot go unnoticed.
"""

import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from configs.base import base_config
from configs.janusflow import add_flow_fields
from configs.vq16 import vq_config
from examples.digits import data as digits
from janus_jax.models.config import (
    AlignmentConfig,
    JanusConfig,
    JanusFlowConfig,
    LlamaConfig,
    SiglipConfig,
    UViTConfig,
    VAEConfig,
    VQConfig,
)
from janus_jax.models.params import init_params
from janus_jax.models.presets import PRESETS
from janus_jax.weights.native import save_params
from tests.helpers import REPOSITORY

NUM_DIGITS = 40
# Compilation takes most of the time of these tests, so compiled programs are kept in a folder and used again.
CACHE_SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}

MICRO_VQ = VQConfig(
    image_size=8,
    base_channels=4,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    z_channels=8,
    code_dim=4,
    num_codes=32,
    norm_groups=2,
    norm_eps=1e-6,
    commitment=0.25,
)
MICRO_JANUS = JanusConfig(
    llama=LlamaConfig(
        vocab_size=384,
        width=32,
        depth=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        mlp_dim=48,
        max_length=128,
        rope_theta=10000.0,
        norm_eps=1e-6,
        init_std=0.2,
    ),
    siglip=SiglipConfig(image_size=16, patch_size=8, width=16, depth=2, num_heads=2, mlp_dim=32, norm_eps=1e-6),
    vq=MICRO_VQ,
    aligner_depth=2,
    gen_aligner_depth=2,
    image_head_width=24,
    prompt_style="janus_pro_tiny",
)
MICRO_FLOW = JanusFlowConfig(
    llama=MICRO_JANUS.llama,
    siglip=MICRO_JANUS.siglip,
    uvit=UViTConfig(
        latent_size=4,
        latent_channels=3,
        patch_size=2,
        width=8,
        time_width=32,
        encoder_depth=1,
        decoder_depth=1,
        norm_eps=1e-6,
    ),
    prompt_style="janus_pro_tiny",
    alignment=AlignmentConfig(layer=1, width=24),
)
MICRO_VAE = VAEConfig(
    base_channels=4,
    channel_multipliers=(1, 2, 2),
    num_res_blocks=1,
    latent_channels=3,
    norm_groups=2,
    norm_eps=1e-6,
    scaling_factor=0.5,
)


def cache_folder(tmp_path_factory):
    """The folder of compiled programs of all tests of a session and of the commands that they start."""
    return tmp_path_factory.getbasetemp() / "compiled"


@contextlib.contextmanager
def micro_world(cache):
    """Makes the micro presets known and keeps compiled programs. Restores everything afterwards."""
    settings = CACHE_SETTINGS | {"jax_compilation_cache_dir": str(cache)}
    previous = {name: jax.config.values[name] for name in settings}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "micro_janus", MICRO_JANUS)
        patch.setitem(PRESETS, "micro_vq", MICRO_VQ)
        patch.setitem(PRESETS, "micro_flow", dataclasses.replace(MICRO_FLOW, alignment=None))
        _configure(settings)
        try:
            yield
        finally:
            _configure(previous)


def _configure(settings):
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def write_digit_files(folder):
    """ArrayRecord files and a tokenizer of the first real training digits; returns the folder."""
    training, _ = digits.load_digits()
    some = digits.Digits(training.intensities[:NUM_DIGITS], training.labels[:NUM_DIGITS])
    digits.write_files(folder, some, MICRO_JANUS.llama.vocab_size, MICRO_JANUS.prompt_style)
    save_params(folder / "vae", MICRO_VAE, init_params(MICRO_VAE, seed=0))
    return folder


def janus_experiment(data_folder, num_steps=4):
    """A locked config that trains everything but the image tokenizer on all three tasks."""
    config = base_config("micro_janus", "micro_janus")
    config.trainable = (("vq/.*", False), (".*", True))
    return _small(config, data_folder, num_steps)


def flow_experiment(data_folder, num_steps=4):
    """A locked config of JanusFlow that trains everything, keeps an average, and learns the latents of a VAE."""
    config = base_config("micro_flow", "micro_flow")
    add_flow_fields(config)
    config.loss.update(alignment_layer=MICRO_FLOW.alignment.layer, alignment_width=MICRO_FLOW.alignment.width)
    config.train.ema = 0.9
    config.init.vae = str(data_folder / "vae")
    return _small(config, data_folder, num_steps)


def vq_experiment(data_folder, num_steps=4):
    """A locked config of the image tokenizer."""
    return _small(vq_config("micro_vq"), data_folder, num_steps)


def adversarial_experiment(data_folder, num_steps=4):
    """A locked config of the image tokenizer and its discriminator, whose loss starts in step 3; keeps an average."""
    config = vq_config("micro_vq")
    config.train.ema = 0.9
    config.loss.update(adversarial_weight=0.5, discriminator_start=3, discriminator_layers=1, discriminator_channels=4)
    return _small(config, data_folder, num_steps)


def _small(config, data_folder, num_steps):
    config.dtype, config.remat = "float32", "none"
    # The learning rate depends on the step but not on `num_steps`, so that runs of different lengths share a program.
    config.train.update(batch_size=4, num_steps=num_steps, learning_rate=1e-2, schedule="constant", warmup_steps=3)
    config.data.update(
        tokenizer=str(data_folder / "tokenizer.json"),
        sources={task: (str(data_folder / f"{task}.array_record"),) for task in ("understand", "text", "generate")},
        row_length=96,
        und_slots=2,
        gen_slots=2,
        num_shards=2,
        packing_bins=4,
        workers=0,
    )
    config.mesh.fsdp = 1
    config.check_memory = False
    config.checkpoint.every_steps = 2
    config.log_every = 1
    config.lock()
    return config


def saved_state(workdir, step):
    """Path -> leaf of everything that a checkpoint holds: parameters, average, optimizer, discriminator, data."""
    folder = Path(workdir) / "checkpoints" / str(step)
    tree = {}
    with ocp.StandardCheckpointer() as checkpointer:
        for item in ("params", "opt_state", "ema", "adversary"):
            if (folder / item).exists():
                tree[item] = checkpointer.restore(folder / item)
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        tree["data"] = checkpointer.restore(folder / "data")
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def differing_leaves(left, right):
    """Paths at which two flat trees differ in any bit."""
    return sorted(path for path in left.keys() | right.keys() if _bits(left.get(path)) != _bits(right.get(path)))


def _bits(leaf):
    if leaf is None or isinstance(leaf, str):
        return leaf
    array = np.asarray(leaf)
    return array.dtype, array.shape, array.tobytes()


def cache_variables(cache):
    """Environment of a command that keeps its compiled programs in a folder, and compiles as the tests do."""
    settings = CACHE_SETTINGS | {"jax_compilation_cache_dir": cache, "jax_disable_most_optimizations": 1}
    return {name.upper(): str(value) for name, value in settings.items()}


def start_command(*arguments, cache, **environment):
    """Starts `python -m ARGUMENTS` in the repository. The caller must read its output with a time limit."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | cache_variables(cache) | {"PYTHONPATH": str(REPOSITORY)} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(process, processor_seconds=180, idle_seconds=300):
    """Output and errors of a process that ends, within limits that do not depend on what else runs on the machine.

    Args:
        processor_seconds: that it may use.
        idle_seconds: for which it may use hardly any processor time.
    """
    used, last = 0.0, time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=5)
        now = _processor_seconds(process)
        if now > used + 0.5:
            used, last = now, time.monotonic()
        if now > processor_seconds or time.monotonic() > last + idle_seconds:
            process.kill()
            raise AssertionError(f"killed after {now:.0f} processor seconds: {process.communicate()}")


def _processor_seconds(process):
    """What a process that has not been waited for has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def data_workers(process):
    """Process ids of the data workers of a process."""
    threads = Path(f"/proc/{process.pid}/task").glob("*/children")
    children = [child for thread in threads for child in thread.read_text().split()]
    return [int(child) for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]
