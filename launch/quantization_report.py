"""What 8-bit weights cost a model of the quickstart: divergence from the full model, reading and drawing of digits.

    python -m launch.quantization_report --checkpoint=quickstart/checkpoint --output=quantization.json

Needs the extra [quickstart].
"""

import json

from absl import flags
from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.quantization import compare
from janus_jax.inference.loading import from_pretrained
from janus_jax.inference.pipeline import JanusPipeline
from janus_jax.weights.quantization import QUANTIZATIONS
from launch.cli import errors

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "model folder of the quickstart")
QUANTIZE = flags.DEFINE_enum("quantize", "int8", QUANTIZATIONS, "what is compared with the full model")
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "of compute, and of the full model's weights")
IMAGES_PER_CLASS = flags.DEFINE_integer("images_per_class", 20, "drawings of each digit", lower_bound=2)
OUTPUT = flags.DEFINE_string("output", None, "file for the figures as JSON")


def main() -> None:
    errors.require("checkpoint")
    full = from_pretrained(CHECKPOINT.value, DTYPE.value)
    if not isinstance(full, JanusPipeline):
        raise UserError(f"--checkpoint={CHECKPOINT.value}: holds a JanusFlow model, expected one that draws codes")
    quantized = from_pretrained(CHECKPOINT.value, DTYPE.value, quantization=QUANTIZE.value)
    assert isinstance(quantized, JanusPipeline)
    report = compare(full, quantized, IMAGES_PER_CLASS.value)
    for name, value in report.items():
        print(f"{name:34} {value:.6g}")
    if OUTPUT.value:
        epath.Path(OUTPUT.value).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    errors.run(main)
