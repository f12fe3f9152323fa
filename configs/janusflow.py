"""The fields of the loss that only JanusFlow has."""

from ml_collections import ConfigDict


def add_flow_fields(config: ConfigDict) -> None:
    config.loss.update(
        normalization="tasks",  # the mean over text tokens and the mean over images (paper: no coefficients)
        alignment_weight=1.0,  # of L_REPA (section 3.4: no coefficient); 0 leaves it and its projector out
        alignment_layer=6,  # section 3.4
        alignment_width=2048,  # of the projector's hidden layers (paper: not stated)
        # Time is drawn from a logit-normal (section 3.4); SD3's usual values, since the paper states none.
        time_location=0.0,
        time_scale=1.0,
    )
