"""The image tokenizer VQ-16. Numbers: LlamaGen (arXiv 2406.06525), section 2.1, and its released script."""

from ml_collections import ConfigDict

from configs.base import base_config, lock


def get_config() -> ConfigDict:
    config = vq_config("vq16")
    config.data.image_size = 256  # the model is convolutional: it is trained at 256 and used at 384 pixels
    config.data.crop = {"random": True, "max_zoom": 1.25, "flip": True}  # released script: min_crop_frac 0.8
    return lock(config)


def vq_config(model: str) -> ConfigDict:
    """An unlocked config of an image tokenizer, for VQ-16 and for the tiny tokenizer of the quickstart."""
    config = base_config(model, model)
    config.data.image_size = 0  # side of the training images in pixels; 0: that of the model
    config.train.update(
        batch_size=128,
        num_steps=400_000,  # 40 epochs of ImageNet at batch 128 (derived)
        learning_rate=1e-4,  # constant
        weight_decay=0.0,  # released script: plain Adam; the paper's text says AdamW with 0.05
        clip_norm=1.0,
    )
    config.loss = {
        "pixel_weight": 1.0,  # L2
        "perceptual_weight": 0.0,  # LPIPS, 1.0 in LlamaGen: not implemented yet
        "adversarial_weight": 0.0,  # hinge PatchGAN, 0.5 from step 20,000 in LlamaGen: not implemented yet
    }
    config.remat = "none"
    return config
