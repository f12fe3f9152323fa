"""What 8-bit weights cost a model of the quickstart: divergence from the full model, reading and drawing of digits.

    python -m launch.quantization_report --checkpoint=quickstart/checkpoint --output=quantization.json

Needs the extra [quickstart].
"""

import json
from typing import Any

from absl import flags
from etils import epath

from janus_jax.data import digits
from janus_jax.errors import UserError
from janus_jax.evaluation.digits import Judge, evaluate_generation, evaluate_understanding
from janus_jax.evaluation.quantization import image_agreement, text_agreement
from janus_jax.inference.loading import from_pretrained
from janus_jax.inference.pipeline import JanusPipeline
from janus_jax.inference.quantization import QUANTIZATIONS
from janus_jax.models.parameters import flatten
from launch import command_line

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "model folder of the quickstart")
QUANTIZE = flags.DEFINE_enum("quantize", "int8", QUANTIZATIONS, "what is compared with the full model")
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "of compute, and of the full model's weights")
IMAGES_PER_CLASS = flags.DEFINE_integer("images_per_class", 20, "drawings of each digit", lower_bound=2)
OUTPUT = flags.DEFINE_string("output", None, "file for the figures as JSON")
CFG_WEIGHT = 2.5  # of the quickstart
QUESTIONS = 120  # of the agreement; reading is measured on all held-out digits


def main() -> None:
    command_line.require("checkpoint")
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


def compare(full: JanusPipeline, quantized: JanusPipeline, images_per_class: int) -> dict[str, float]:
    """All figures by name."""
    training, held_out = digits.load_digits()
    pictures = [[digits.to_image(intensities)] for intensities in held_out.intensities[:QUESTIONS]]
    questions = [digits.QUESTIONS[i % len(digits.QUESTIONS)] for i in range(len(pictures))]
    captions = [digits.CAPTIONS[0].format(name) for name in digits.NAMES]
    report: dict[str, Any] = {}
    for kind, agreement in (
        ("text", text_agreement(full, quantized, pictures, questions)),
        ("image", image_agreement(full, quantized, captions, cfg_weight=CFG_WEIGHT)),
    ):
        report |= {f"{kind}_{name}": value for name, value in agreement._asdict().items()}
    judge = Judge(training)
    for kind, model in (("full", full), ("quantized", quantized)):
        report[f"{kind}_megabytes"] = sum(leaf.nbytes for leaf in flatten(model.params).values()) / 1e6
        report[f"{kind}_reading_accuracy"] = evaluate_understanding(model, held_out).accuracy
        drawn = evaluate_generation(
            model, judge, training, images_per_class=images_per_class, cfg_weight=CFG_WEIGHT, seed=0
        )
        report[f"{kind}_drawing_accuracy"] = drawn.accuracy
        report[f"{kind}_diversity"] = drawn.diversity
    return report


if __name__ == "__main__":
    command_line.run(main)
