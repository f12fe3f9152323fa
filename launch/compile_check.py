"""Compiles the training step of a config for TPUs that are not there: does it fit, how long will a step take?

With --decode the loop that draws images with the model of the config.

    python -m launch.compile_check --config=configs/janus_pro_7b.py:stage2 --topology=v5p-128
    python -m launch.compile_check --config=configs/janus_pro_7b.py:text_only --topology=v5e:16x16 \\
        --config.train.batch_size=256 --sweep='remat=full,projections;mesh=1x256x1,16x16x1'
    python -m launch.compile_check --decode --config=configs/janus_pro_7b.py --topology=v5e:2x2 --quantize=int8

It is the step that launch.train runs, compiled by the same compiler (pip install 'janus_jax[tpu]'); 1 to 5 minutes and
about 3 GB. The time is predicted from the compiled program (janus_jax/compile_check/timeline.py says how and what it
leaves out): compare programs with it; it has not been calibrated on hardware.
"""

import json

from absl import flags
from ml_collections import config_flags

from janus_jax.compile_check import decode
from janus_jax.compile_check.check import check
from janus_jax.compile_check.program import write_program
from janus_jax.compile_check.report import as_dict, format_report
from janus_jax.compile_check.sweep import fitting, format_line, format_sweep, parse_sweep, sweep
from janus_jax.errors import UserError
from janus_jax.training.setup import model_config
from launch.cli import errors, model_flags

CONFIG = config_flags.DEFINE_config_file("config", help_string="as of launch.train")
TOPOLOGY = flags.DEFINE_string("topology", None, "v5p-128, v5e-256, ..., or chips per axis: v5p:4x4x4, v5e:16x16")
SLICES = flags.DEFINE_integer("slices", 1, "slices of that topology; mesh.data must be a multiple", lower_bound=1)
HLO_OUTPUT = flags.DEFINE_string("hlo_output", None, "FILE.gz for the compiled program; FILE.json says for what")
SWEEP = flags.DEFINE_string("sweep", None, "what to try, e.g. 'remat=full,attention;batch=256,512;mesh=1x64x1,4x16x1'")
OPTIONS = flags.DEFINE_multi_string("compiler_option", [], "name=value for XLA, besides those of the step")
JSON = flags.DEFINE_bool("json", False, "print JSON; of a sweep a list: the best first, what is impossible last")
DECODE = flags.DEFINE_bool("decode", False, "the loop that draws images; --mesh: default 1,1,-1; --dtype: bfloat16")
IMAGES = flags.DEFINE_integer("images", 16, "with --decode: images of one prompt", lower_bound=1)
# Buckets mean nothing in either case: a program has the lengths that it is asked for.
TRAINING_FLAGS, DECODING_FLAGS = (SLICES, SWEEP, model_flags.BUCKETS), (IMAGES, *model_flags.ALL)


def main() -> None:
    errors.require("config", "topology")
    options = errors.pairs("compiler_option", OPTIONS.value)
    topology = TOPOLOGY.value or ""
    for flag in TRAINING_FLAGS if DECODE.value else DECODING_FLAGS:
        if flags.FLAGS[flag.name].present:
            raise UserError(f"--{flag.name} means nothing {'with' if DECODE.value else 'without'} --decode")
    if DECODE.value:
        _decode(topology, options)
        return
    if SWEEP.value:
        if HLO_OUTPUT.value:
            raise UserError(f"--hlo_output={HLO_OUTPUT.value} is for one program, but --sweep compiles several")
        checks, impossible = sweep(CONFIG.value, parse_sweep(SWEEP.value), topology, SLICES.value, options)
        if JSON.value:
            print(json.dumps([*map(as_dict, checks), *(variant._asdict() for variant in impossible)]))
        else:
            print(format_sweep(checks, impossible))
        return
    result = check(CONFIG.value, topology, SLICES.value, options)
    if HLO_OUTPUT.value and result.program is not None:
        write_program(result.program, HLO_OUTPUT.value)
    others = [] if result.fits else list(fitting(CONFIG.value, result, SLICES.value, options))
    if JSON.value:
        print(json.dumps(as_dict(result) | {"would_fit": [as_dict(other) for other in others]}))
        return
    print(format_report(result))
    if not result.fits:
        print("\nwould fit:", *map(format_line, others), *([] if others else ["nothing that was tried"]), sep="\n")


def _decode(topology: str, options: dict[str, str]) -> None:
    result = decode.check_decoding(
        CONFIG.value.model,
        model_config(CONFIG.value),
        topology,
        model_flags.mesh_sizes() or {"data": 1, "fsdp": 1, "tensor": -1},
        images=IMAGES.value,
        dtype=model_flags.DTYPE.value or "bfloat16",
        quantization=model_flags.QUANTIZE.value,
        options=options,
    )
    if HLO_OUTPUT.value and result.program is not None:
        write_program(result.program, HLO_OUTPUT.value)
    print(json.dumps(decode.as_dict(result)) if JSON.value else decode.format_report(result))


if __name__ == "__main__":
    errors.run(main)
