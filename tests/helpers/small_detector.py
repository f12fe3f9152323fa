"""A small Mask2Former of transformers with random weights, and the folder that it saves."""

import torch
import transformers

from tests.helpers.torch_weights import refill


def make_detector(num_labels=80, seed=0):
    swin = transformers.SwinConfig(
        embed_dim=16,
        depths=[1, 2, 2, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=48,
        encoder_layers=2,
        decoder_layers=5,
        dim_feedforward=64,
        num_attention_heads=4,
        num_queries=7,
        num_labels=num_labels,
    )
    torch.manual_seed(seed)
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    refill(model, seed=seed)
    return model
