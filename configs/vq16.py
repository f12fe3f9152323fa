"""The image tokenizer VQ-16. Numbers: LlamaGen (arXiv 2406.06525), section 2.1, and its released script.

Stages: `imagenet` trains it from scratch. `finetune` goes on from its weights, on images for text-to-image, with the
adversarial loss from the first step on; LlamaGen states neither steps nor batch of this stage.
"""

from ml_collections import ConfigDict

from configs.base import base_config, lock
from janus_jax.errors import UserError

STAGES = ("imagenet", "finetune")


def get_config(stage: str = "imagenet") -> ConfigDict:
    if stage not in STAGES:
        raise UserError(f"configs/vq16.py:{stage}: expected one of {', '.join(STAGES)}")
    config = vq_config("vq16")
    config.name = f"vq16_{stage}"
    config.data.image_size = 256  # the model is convolutional: it is trained at 256 and used at 384 pixels
    config.data.crop.update(random=True, max_zoom=1.25, flip=True)  # released script: min_crop_frac 0.8
    config.loss.update(perceptual_weight=1.0, adversarial_weight=0.5)
    if stage == "finetune":
        config.loss.discriminator_start = 0
    return lock(config)


def vq_config(model: str) -> ConfigDict:
    """An unlocked config of an image tokenizer, for VQ-16 and for the tiny tokenizer of the quickstart."""
    config = base_config(model, model)
    config.data.image_size = 0  # side of the training images in pixels; 0: that of the model
    # Whether images are resized by halves first and cropped at whole pixels, exactly as in LlamaGen's script. The
    # difference is not visible.
    config.data.crop.halving = False
    # Size of the codebook, and numbers of a code; 0: those of the model.
    config.codebook = {"num_codes": 0, "code_dim": 0}
    config.train.update(
        batch_size=128,
        num_steps=400_360,  # 40 epochs of the 1,281,167 images of ImageNet, without the last partial batch of each
        learning_rate=1e-4,  # constant, for both networks
        weight_decay=0.0,  # released script: plain Adam; the paper's text says AdamW with 0.05
        clip_norm=1.0,  # of each network
        ema=0.0,  # released script: an option, which is off; with it 0.9999
    )
    config.loss = {
        "pixel_loss": "l2",  # or "l1"
        "pixel_weight": 1.0,
        "perceptual_weight": 0.0,  # weight of LPIPS; LlamaGen: 1.0
        "lpips_trunk": "",  # file or folder of VGG-16: torchvision's vgg16-397923af.pth or timm/vgg16.tv_in1k
        "lpips_heads": "",  # lpips/weights/v0.1/vgg.pth of the package lpips
        "entropy_weight": 0.0,  # weight of the entropy of the codes (LlamaGen: 0, its ratio)
        "entropy_temperature": 0.01,
        "adversarial_weight": 0.0,  # weight of the adversarial loss in both networks; LlamaGen: 0.5
        "discriminator_start": 20_000,  # first step, counted from 1, with an adversarial loss
        "discriminator_loss": "hinge",  # or "vanilla"
        "discriminator_channels": 64,  # channels after the first convolution
        "discriminator_layers": 3,  # convolutions with stride 2; the least side of an image is 3 * 2^layers
        # Whether to scale the generator's adversarial term to the gradient of the pixel and perceptual terms in the
        # last layer. LlamaGen's script cannot switch it on.
        "adaptive_weight": False,
        # Whose images the discriminator normalises with: "global", those of all devices, so that a run does not depend
        # on the mesh; or "device", as the original does. A micro-batch counts as a batch of its own.
        "batch_statistics": "global",
        "min_code_usage": 0.05,  # share of the codes in use below which a line of the log warns; 0: never
    }
    config.remat = "none"
    return config
