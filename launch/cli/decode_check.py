"""What `launch.compile_check --decode` does, and its flags: the loop that generates images, or a whole evaluation."""

import json
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from janus_jax.compiler_options import Options
from janus_jax.errors import UserError
from launch.cli import model_flags

IMAGES = flags.DEFINE_integer("images", 16, "With --decode, number of images of one prompt.", lower_bound=1)
WINDOW = flags.DEFINE_string(
    "window", "1", "With --decode, number of codes of an image that a pass reads, or auto; see launch.generate."
)
CODES_PER_PASS = flags.DEFINE_float(
    "codes_per_pass",
    1.0,
    "With --window, codes of each image that a pass makes on average: an assumption about the model, from which the "
    "time of an image follows.",
    lower_bound=1,
)
BENCHMARKS = flags.DEFINE_bool(
    "benchmarks", False, "With --decode, whether to predict how long launch.evaluate takes on the hosts of a slice."
)
FLAGS = (IMAGES, WINDOW, CODES_PER_PASS, BENCHMARKS)
OF_ONE_PROGRAM = ("images", "window", "codes_per_pass", "hlo_output")  # means nothing with --benchmarks


def check_decoding(
    config: ConfigDict, topology: str, options: Options, *, hlo_output: str | None, as_json: bool
) -> None:
    """Compiles and prints. Raises UserError for flags that do not go together."""
    from janus_jax.compile_check import benchmark_hours, decode
    from janus_jax.compile_check.batches import check_batches
    from janus_jax.compile_check.program import write_program
    from janus_jax.training.architecture import model_config

    mesh = model_flags.mesh_sizes() or {"data": 1, "fsdp": 1, "tensor": -1}
    model = config.model, model_config(config)
    how: dict[str, Any] = {
        "dtype": model_flags.DTYPE.value or "bfloat16",
        "quantization": model_flags.QUANTIZE.value,
        "options": options,
    }
    if BENCHMARKS.value:
        for name in OF_ONE_PROGRAM:
            if flags.FLAGS[name].present:
                raise UserError(f"--{name} is for one program, but --benchmarks compiles several")
        batches = check_batches(*model, topology, mesh, **how)
        print(json.dumps(benchmark_hours.as_dict(batches)) if as_json else benchmark_hours.format_report(batches))
        return
    how |= {"images": IMAGES.value, "window": _window(), "codes_per_pass": CODES_PER_PASS.value}
    result = decode.check_decoding(*model, topology, mesh, **how)
    if hlo_output and result.program is not None:
        write_program(result.program, hlo_output)
    print(json.dumps(decode.as_dict(result)) if as_json else decode.format_report(result))


def _window() -> int | str:
    """Raises UserError for anything but a number of codes or auto."""
    from janus_jax.inference.code_windows import AUTO, MAX_WINDOW

    given = WINDOW.value or ""
    if given == AUTO:
        return AUTO
    if not given.isdecimal() or not 1 <= int(given) <= MAX_WINDOW:
        raise UserError(f"--window={given}, expected {AUTO} or a whole number from 1 to {MAX_WINDOW}")
    return int(given)
