"""Parity with transformers' Janus on random weights, float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from janus_jax.batches import Modality
from janus_jax.models.params import build, count
from tests.helpers import torch_weights

IMAGE_TOKEN, PAD = 5, 3
PLAIN = {  # a small model in the shape of the released ones
    "text": dict(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    ),
    "vision": dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        mlp_ratio=4.0,
        projection_dim=64,
        depth=2,
        num_image_tokens=16,
    ),
    "vq": dict(
        embed_dim=8,
        num_embeddings=64,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 1, 2, 2],
        num_res_blocks=2,
        projection_dim=64,
        num_hidden_layers=2,
        image_token_embed_dim=64,
    ),
}
ODD = {  # sizes that are all different, so that nothing agrees by chance, and grouped queries
    "text": dict(
        vocab_size=96,
        hidden_size=48,
        intermediate_size=112,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=20,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        rms_norm_eps=1e-3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    ),
    "vision": dict(
        hidden_size=36,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=24,
        patch_size=4,
        mlp_ratio=3.0,
        layer_norm_eps=1e-3,
        projection_dim=48,
        depth=3,
        num_image_tokens=36,
    ),
    "vq": dict(
        embed_dim=6,
        num_embeddings=50,
        latent_channels=24,
        base_channels=32,
        channel_multiplier=[1, 2, 3],
        num_res_blocks=1,
        projection_dim=48,
        num_hidden_layers=1,
        image_token_embed_dim=48,
    ),
}
TOLERANCES = {  # of the largest value of the reference
    "siglip": 1e-5,
    "aligner": 1e-5,
    "text_logits": 1e-4,
    "code_embeddings": 1e-5,
    "image_logits": 1e-4,
    "latents": 1e-5,
    "pixels": 1e-4,
}


def make_inputs(config, images_per_row):
    """Two rows with text and images. The second is three tokens shorter and padded on the left."""
    rng = np.random.default_rng(0)
    size, tokens = config.siglip.image_size, config.siglip.num_tokens
    images = [7, *[IMAGE_TOKEN] * tokens, 8] * images_per_row
    text = rng.integers(10, config.llama.vocab_size, (2, 8)).tolist()
    return {
        "ids": np.array(
            [[1, *text[0][:4], *images, *text[0][4:]], [PAD, PAD, PAD, 1, text[1][0], *images, *text[1][4:]]]
        ),
        "pixels": rng.standard_normal((2, images_per_row, size, size, 3)).clip(-1, 1).astype(np.float32),
        "codes": rng.integers(0, config.vq.num_codes, (2, config.vq.num_tokens)),
    }


def torch_outputs(model, inputs):
    """The outputs of transformers that are compared, in our NHWC layout."""
    ids, codes = torch.tensor(inputs["ids"]), torch.tensor(inputs["codes"])
    pixels = torch.tensor(inputs["pixels"]).flatten(0, 1).permute(0, 3, 1, 2)  # [images, 3, H, W]
    janus = model.model
    with torch.no_grad():
        features = janus.get_image_features(pixels)
        code_embeddings = model.prepare_embeddings_for_image_generation(codes)
        hidden = janus.language_model(inputs_embeds=code_embeddings).last_hidden_state
        codebook = janus.vqmodel.quantize.embedding.weight
        raw = codebook.clone()
        codebook.copy_(torch.nn.functional.normalize(raw, dim=-1))  # transformers' encode does not normalise
        encoded = janus.vqmodel.encode(pixels).image_tokens.reshape(len(pixels), -1)
        codebook.copy_(raw)
        outputs = {
            "siglip": features.last_hidden_state,
            "aligner": features.pooler_output,
            "text_logits": model(input_ids=ids, pixel_values=pixels, attention_mask=(ids != PAD).long()).logits,
            "code_embeddings": code_embeddings,
            "image_logits": janus.generation_head(hidden),
            "latents": janus.vqmodel.quant_conv(janus.vqmodel.encoder(pixels)).permute(0, 2, 3, 1),
            "encoded": encoded,
            "pixels": janus.vqmodel.decode(codes).permute(0, 2, 3, 1),
        }
    return {name: value.numpy() for name, value in outputs.items()}


def our_outputs(config, params, inputs):
    model = build(config)

    @jax.jit
    def run(params, inputs):
        def apply(*args, method="__call__"):
            return model.apply({"params": params}, *args, method=method)

        ids, codes, pixels = inputs["ids"], inputs["codes"], inputs["pixels"]
        images = pixels.reshape(-1, *pixels.shape[2:])
        features = apply(images, method=lambda model, x: model.siglip(x))

        is_image, segment_ids = ids == IMAGE_TOKEN, (ids != PAD).astype(int)
        modality = jnp.where(is_image, Modality.UNDERSTANDING_IMAGE, Modality.TEXT) * segment_ids
        x = apply(jnp.where(is_image, 0, ids), modality, pixels, method="embed")
        hidden, _ = apply(x, jnp.cumsum(segment_ids, axis=1) - segment_ids, segment_ids)

        everywhere = jnp.ones_like(codes)
        code_embeddings = apply(codes, everywhere * Modality.GENERATION_IMAGE, method="embed")
        image_hidden, _ = apply(code_embeddings, jnp.cumsum(everywhere, axis=1) - 1, everywhere)
        return {
            "siglip": features,
            "aligner": apply(features, method=lambda model, x: model.aligner(x)),
            "text_logits": apply(hidden, method="text_logits"),
            "code_embeddings": code_embeddings,
            "image_logits": apply(image_hidden, method="image_logits"),
            "latents": apply(images, method=lambda model, x: model.vq.latents(x)),
            "encoded": apply(images, method="encode_codes"),
            "pixels": apply(codes, method="decode_codes"),
        }

    return {name: np.asarray(value) for name, value in run(params, inputs).items()}


def drop_pads(outputs, ids):
    """Removes the logits at padding, which have no meaning."""
    return outputs | {"text_logits": outputs["text_logits"][ids != PAD]}


# The odd model contains all that the plain one has, but for several residual blocks and one query per key-value head.
@pytest.fixture(
    scope="module",
    params=[pytest.param((PLAIN, 1), id="plain", marks=pytest.mark.slow), pytest.param((ODD, 2), id="odd")],
)
def outputs(request):
    sections, images_per_row = request.param
    model, config, params = torch_weights.make_pair(**sections, seed=0)
    assert count(params) == sum(parameter.numel() for parameter in model.parameters())
    inputs = make_inputs(config, images_per_row)
    both = our_outputs(config, params, inputs), torch_outputs(model, inputs)
    return [drop_pads(side, inputs["ids"]) for side in both]


@pytest.mark.parametrize("name", TOLERANCES)
def test_equals_transformers(outputs, name):
    ours, theirs = (side[name] for side in outputs)
    assert ours.shape == theirs.shape
    scale = np.abs(theirs).max()
    assert scale > 0.3 and theirs.std() > 0.1  # not a comparison of zeros
    print(f"{name}: largest difference {np.abs(ours - theirs).max():.1e} of {scale:.1f}")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCES[name] * max(scale, 1))


def test_encoded_ids_equal_transformers(outputs):
    ours, theirs = (side["encoded"] for side in outputs)
    np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(theirs)) > 5
