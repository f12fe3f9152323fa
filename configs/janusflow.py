"""The fields of the loss that only JanusFlow has."""

from ml_collections import ConfigDict


def add_flow_fields(config: ConfigDict) -> None:
    config.loss.update(
        normalization="tasks",  # mean over text tokens plus mean over images (the paper has no coefficients)
        alignment_weight=1.0,  # weight of L_REPA (section 3.4 has none); 0 leaves out the loss and its projector
        alignment_layer=6,  # blocks of the LLM after which its features are aligned (section 3.4)
        alignment_width=2048,  # width of the projector's hidden layers (not stated)
        # Time is sampled from a logit-normal distribution (section 3.4). Its location and scale are not stated; these
        # are the usual ones of Stable Diffusion 3.
        time_location=0.0,
        time_scale=1.0,
    )
