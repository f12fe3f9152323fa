"""What quantised weights cost the quickstart's model: divergence from the full model, accuracy of answers and images.

`janus_jax.evaluation.quantization` computes the divergence. This file chooses the questions and the prompts, and lets
the quickstart's benchmark score both models.
"""

from examples.digits import data as digits
from examples.digits.benchmark import Judge, evaluate_generation, evaluate_understanding
from janus_jax.evaluation.quantization import image_agreement, text_agreement, weight_bytes
from janus_jax.inference.janus import JanusPipeline

CFG_WEIGHT = 1.25  # guidance weight of the quickstart's Janus-Pro
QUESTIONS = 120  # Number of questions for the divergence; the accuracy is that of all held-out digits.


def compare(full: JanusPipeline, quantized: JanusPipeline, images_per_class: int) -> dict[str, float]:
    """All figures by name. Both models are the quickstart's; needs the extra [quickstart]."""
    training, held_out = digits.load_digits()
    images = [[digits.to_image(intensities)] for intensities in held_out.intensities[:QUESTIONS]]
    questions = [digits.QUESTIONS[i % len(digits.QUESTIONS)] for i in range(len(images))]
    captions = [digits.CAPTIONS[0].format(name) for name in digits.NAMES]
    report: dict[str, float] = {}
    for kind, agreement in (
        ("text", text_agreement(full, quantized, images, questions)),
        ("image", image_agreement(full, quantized, captions, cfg_weight=CFG_WEIGHT)),
    ):
        report |= {f"{kind}_{name}": value for name, value in agreement._asdict().items()}
    judge = Judge(training)
    for kind, model in (("full", full), ("quantized", quantized)):
        report[f"{kind}_megabytes"] = weight_bytes(model) / 1e6
        report[f"{kind}_reading_accuracy"] = evaluate_understanding(model, held_out).accuracy
        generation = evaluate_generation(
            model, judge, training, images_per_class=images_per_class, cfg_weight=CFG_WEIGHT, seed=0
        )
        report[f"{kind}_drawing_accuracy"] = generation.accuracy
        report[f"{kind}_diversity"] = generation.diversity
    return report
