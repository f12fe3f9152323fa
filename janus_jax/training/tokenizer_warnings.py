"""What a run of an image tokenizer warns of: codes that fall out of use, and a discriminator that always wins."""

from collections.abc import Mapping

from ml_collections import ConfigDict

WINS = 0.99  # share of right answers from which on a discriminator leaves nothing to learn from


def tokenizer_warnings(loss: ConfigDict, step: int, means: Mapping[str, float]) -> list[str]:
    """Sentences for the log; none for the metrics of other models.

    Args:
        loss: `config.loss` of the run.
        step: number of the last step.
        means: metrics since the last line of the log.
    """
    warnings = []
    usage = means.get("codes/usage")
    if usage is not None and usage < loss.get("min_code_usage", 0.0):
        warnings.append(
            f"step {step}: only {usage:.2%} of the codes are in use (config.loss.min_code_usage="
            f"{loss.min_code_usage}); a larger config.loss.entropy_weight spreads the images over more codes"
        )
    accuracy = means.get("accuracy/discriminator")
    if accuracy is not None and accuracy >= WINS and step >= loss.discriminator_start:
        warnings.append(
            f"step {step}: the discriminator judges {accuracy:.2%} of the patches right, so that the reconstructions "
            "cannot learn from it; a larger config.loss.discriminator_start or a smaller "
            "config.loss.adversarial_weight gives the tokenizer an advantage"
        )
    return warnings
