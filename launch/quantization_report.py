"""Reports what 8-bit weights cost the model of the quickstart, compared with its full weights.

    python -m launch.quantization_report --checkpoint=quickstart/checkpoint --output=quantization.json

The figures: how far the predictions diverge, how many held-out digits each model reads correctly, and how many of its
generated digits the judge reads correctly. Needs the extra [quickstart].
"""

import json

from absl import flags
from etils import epath

from janus_jax.errors import UserError
from janus_jax.weights.locations import existing_path
from launch.cli import errors

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Model folder of the quickstart. Required.")
QUANTIZE = flags.DEFINE_enum("quantize", "int8", ["int8"], "Quantisation that is compared with the full weights.")
DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", ["bfloat16", "float32"], "Precision of the computation and of the full model's weights."
)
IMAGES_PER_CLASS = flags.DEFINE_integer("images_per_class", 20, "Number of images of each digit.", lower_bound=2)
OUTPUT = flags.DEFINE_string("output", None, "File for the figures as JSON. By default they are only printed.")


def main() -> None:
    errors.require("checkpoint")
    existing_path(CHECKPOINT.value)  # before JAX is imported

    from examples.digits.quantization import compare
    from janus_jax.inference.janus import JanusPipeline
    from janus_jax.inference.loading import from_pretrained

    full = from_pretrained(CHECKPOINT.value, DTYPE.value)
    if not isinstance(full, JanusPipeline):
        raise UserError(
            f"--checkpoint={CHECKPOINT.value}: holds a JanusFlow model, expected Janus-Pro, as `make quickstart` trains"
        )
    quantized = from_pretrained(CHECKPOINT.value, DTYPE.value, quantization=QUANTIZE.value)
    assert isinstance(quantized, JanusPipeline)
    report = compare(full, quantized, IMAGES_PER_CLASS.value)
    for name, value in report.items():
        print(f"{name:34} {value:.6g}")
    if OUTPUT.value:
        epath.Path(OUTPUT.value).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    errors.run(main)
