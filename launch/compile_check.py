"""Compiles the training step of a config for TPUs that you do not have: does it fit, and how long will a step take?

With --decode it compiles the loop that generates images with the model of the config instead, and with --benchmarks
too all programs of an evaluation, and says how many hours the benchmarks take.

    python -m launch.compile_check --config=configs/janus_pro_7b.py:stage2 --topology=v5p-128
    python -m launch.compile_check --config=configs/janus_pro_7b.py:text_only --topology=v5e:16x16 \\
        --config.train.batch_size=256 --sweep='remat=full,projections;mesh=1x256x1,16x16x1'
    python -m launch.compile_check --decode --config=configs/janus_pro_7b.py --topology=v5e:2x2 --quantize=int8
    python -m launch.compile_check --decode --benchmarks --config=configs/janus_pro_7b.py --topology=v5e:2x2

It needs the TPU compiler (pip install -c constraints.txt -e '.[tpu]'), but no TPU. The step is the one that
launch.train runs. A compilation takes 1 to 5 minutes for most configs, more for many rows at a time, and about 3 GB of
memory. For a config that does not fit, others are compiled, to find out how many rows at a time would. Times are
predicted from the compiled program (janus_jax/compile_check/timeline.py says how) and not calibrated on hardware: use
them to compare programs.
"""

import json

from absl import flags
from ml_collections import config_flags

from janus_jax.compiler_options import LEAST_EFFORT, Options
from janus_jax.errors import UserError
from launch.cli import decode_check, errors, model_flags

CONFIG = config_flags.DEFINE_config_file("config", help_string="Path of a config file, as for launch.train.")
TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "TPUs to compile for: v5p-128, v5e-16 (or v5litepod-16), v6e-64, ... or chips per axis, v5p:4x4x4, v5e:4x4.",
)
SLICES = flags.DEFINE_integer(
    "slices", 1, "Number of slices of that topology; config.mesh.data must be a multiple of it.", lower_bound=1
)
HLO_OUTPUT = flags.DEFINE_string(
    "hlo_output", None, "FILE.gz to write the compiled program to; FILE.json then says what it was compiled for."
)
SWEEP = flags.DEFINE_string(
    "sweep", None, "Values to try in every combination, such as 'remat=full,context;batch=256,512;mesh=1x64x1,4x16x1'."
)
OPTIONS = flags.DEFINE_multi_string(
    "compiler_option", [], "An option of XLA as name=value, besides those of the step. May be repeated."
)
WHOLE = flags.DEFINE_bool(
    "whole", False, "Whether a step that encodes images is compiled as one program, which takes long, not as two."
)
QUICK = flags.DEFINE_bool(
    "quick",
    False,
    "Whether the compiler tries less, which takes it less long. Predicted times are then upper estimates.",
)
JSON = flags.DEFINE_bool(
    "json", False, "Whether to print JSON, not a table; with --sweep a list, best first, impossible ones last."
)
DECODE = flags.DEFINE_bool(
    "decode", False, "Whether to compile the loop that generates images; default --mesh=1,1,-1 and --dtype=bfloat16."
)
for flag in (model_flags.DTYPE, model_flags.QUANTIZE, model_flags.MESH):
    flags.declare_key_flag(flag.name)  # shows the flag in --help
flags.adopt_module_key_flags(decode_check)
# A compiled program has the lengths that it is asked for, so that --buckets means nothing here.
TRAINING_FLAGS = (SLICES, SWEEP, WHOLE, model_flags.BUCKETS)
DECODING_FLAGS = (*decode_check.FLAGS, *model_flags.ALL)


def main() -> None:
    errors.require("config", "topology")
    options: Options = errors.pairs("compiler_option", OPTIONS.value)
    if QUICK.value:
        options = {**options, **LEAST_EFFORT}
    for flag in TRAINING_FLAGS if DECODE.value else DECODING_FLAGS:
        if flags.FLAGS[flag.name].present:
            raise UserError(f"--{flag.name} means nothing {'with' if DECODE.value else 'without'} --decode")
    topology = TOPOLOGY.value or ""
    if DECODE.value:
        output = HLO_OUTPUT.value
        decode_check.check_decoding(CONFIG.value, topology, options, hlo_output=output, as_json=JSON.value)
    elif SWEEP.value:
        _sweep(topology, options)
    else:
        _check_training(topology, options)


def _check_training(topology: str, options: Options) -> None:
    from janus_jax.compile_check.program import write_program
    from janus_jax.compile_check.report import as_dict, format_report
    from janus_jax.compile_check.search import Search

    search = Search(CONFIG.value, topology, SLICES.value, options, whole=WHOLE.value)
    result = search.given()
    if HLO_OUTPUT.value and result.program is not None:
        write_program(result.program, HLO_OUTPUT.value)
    if not JSON.value:
        print(format_report(result), flush=True)  # before the search, which takes longer
    others = []
    for other in () if result.fits else search.fitting():
        others.append(other)
        if not JSON.value:
            print("\nwould fit:\n", format_report(other), sep="\n", flush=True)
    if JSON.value:
        print(json.dumps(as_dict(result) | {"would_fit": [as_dict(other) for other in others]}))
    elif not result.fits and not others:
        print("\nnothing that was tried would fit")


def _sweep(topology: str, options: Options) -> None:
    if HLO_OUTPUT.value:
        raise UserError(f"--hlo_output={HLO_OUTPUT.value} is for one program, but --sweep compiles several")
    from janus_jax.compile_check.report import as_dict
    from janus_jax.compile_check.sweep import format_sweep, parse_sweep, sweep

    checks, impossible = sweep(CONFIG.value, parse_sweep(SWEEP.value or ""), topology, SLICES.value, options)
    if JSON.value:
        print(json.dumps([*map(as_dict, checks), *(variant._asdict() for variant in impossible)]))
    else:
        print(format_sweep(checks, impossible))


if __name__ == "__main__":
    errors.run(main, hidden=[model_flags.BUCKETS.name])
