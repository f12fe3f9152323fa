"""The fields of the loss that only JanusFlow has; sections are those of its paper."""

from ml_collections import ConfigDict


def add_flow_fields(config: ConfigDict) -> None:
    config.loss.update(
        normalization="tasks",  # mean over text tokens plus mean over images (paper: no coefficients)
        alignment_weight=1.0,  # weight of L_REPA (section 3.4: no coefficient); 0: without L_REPA and its projector
        alignment_layer=6,  # number of blocks before the aligned features (section 3.4)
        alignment_width=2048,  # width of the hidden layers of the projector (paper: not stated)
        # Times are sampled from a logit-normal distribution (section 3.4). The paper does not state its parameters;
        # these are the usual ones of SD3.
        time_location=0.0,
        time_scale=1.0,
    )
