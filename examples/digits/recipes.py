"""The two quickstarts: what differs between Janus-Pro and JanusFlow."""

from types import ModuleType
from typing import NamedTuple

from configs import quickstart, quickstart_flow


class Recipe(NamedTuple):
    """How one family of models is trained, evaluated and presented."""

    family: str  # name for the page
    experiment: ModuleType  # config file with PHASES and get_config(phase)
    cfg_weight: float  # guidance weight of the generated images
    typical_seconds: dict[str, float]  # seconds of each part; their proportions tell how much of a run is left
    targets: dict[str, tuple[str, float]]  # key of report.json -> (">=" or "<=", bar)
    titles: dict[str, tuple[str, str]]  # phase -> (title, note)
    notes: tuple[str, ...]  # paragraphs at the end of the page


TARGETS = {
    "understanding_accuracy": (">=", 0.97),
    "generation_accuracy": (">=", 0.95),
    "generation_accuracy_permuted_prompts": ("<=", 0.20),
    "generation_diversity": (">=", 0.7),
}
DIGITS = (
    "The digits are scikit-learn's 1,797 real 8x8 scans, upsampled to 16x16; 360 of them are held out and never "
    "trained on. For reading, each training image is also shown slightly turned, moved and resized. The judge of the "
    "generated images is a support vector machine fitted to the real training images only."
)
AVERAGE = "Images and answers come from the average of the parameters over the steps, with JanusFlow's decay of 0.99."
ANSWERS = (
    "Only answers carry text loss, in all stages, because the conversations are short. The papers supervise all text "
    "before stage III."
)

RECIPES = {
    "janus": Recipe(
        family="Janus-Pro",
        experiment=quickstart,
        cfg_weight=1.25,
        typical_seconds={"data": 5, "tokenizer": 36, "stage1": 11, "stage2": 6, "stage3": 55, "evaluation": 12},
        targets=TARGETS,
        titles={
            "tokenizer": (
                "Image tokenizer",
                "VQ autoencoder: pixel, codebook and commitment losses on the training images",
            ),
            "stage1": ("Stage I: adaptors and image head", "understanding : text : generation = 1 : 0 : 3"),
            "stage2": ("Stage II: unified pre-training", "understanding : text : generation = 2 : 3 : 5"),
            "stage3": ("Stage III: supervised fine-tuning", "understanding : text : generation = 5 : 1 : 4"),
        },
        notes=(
            "Stage I of the papers trains only the adaptors and the image head, on top of a pretrained SigLIP and a "
            "pretrained LLM. Neither exists at this size, so here every stage trains everything except the image "
            "tokenizer. " + AVERAGE,
            DIGITS,
            ANSWERS,
        ),
    ),
    "flow": Recipe(
        family="JanusFlow",
        experiment=quickstart_flow,
        cfg_weight=1.5,
        typical_seconds={"data": 5, "stage1": 62, "stage2": 9, "stage3": 85, "evaluation": 18},
        targets=TARGETS,
        titles={
            "stage1": ("Stage 1: adaptation", "understanding : text : generation = 50 : 0 : 50"),
            "stage2": ("Stage 2: unified pre-training", "understanding : text : generation = 14 : 6 : 80"),
            "stage3": ("Stage 3: supervised fine-tuning", "understanding : text : generation = 21 : 9 : 70"),
        },
        notes=(
            "The latents are the pixels themselves: images of 16x16 pixels, in 4 x 4 tokens of 4 x 4 pixels. At this "
            "size a VAE would have nothing to save. SigLIP reads 2 x 2 patches, and the alignment loss compares each "
            "with the average of four latent tokens.",
            "Stage 1 of the paper trains on top of a pretrained SigLIP and a pretrained LLM. Neither exists at this "
            "size, so here every stage trains everything. " + AVERAGE,
            DIGITS,
            "Only answers carry text loss, as in the paper.",
        ),
    ),
}
