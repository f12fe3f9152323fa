"""Resizing against clean-fid, pytorch-fid, GigaGAN's evaluation code and transformers."""

import numpy as np
import PIL.Image
import pytest
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from janus_jax.evaluation.resize import MODES, centre_square, clip_pixels, inception_pixels, resize_bicubic
from janus_jax.evaluation.resize import resize_bilinear as bilinear
from tests.helpers.golden_evaluation import GOLDEN

EXPECTED = np.load(GOLDEN / "inception/resized.npz")
MATRICES = ("pil_bicubic_61_299", "pil_bicubic_612_299", "pil_bicubic_97_40", "pytorch_bilinear_612_299")


def image(number):
    return PIL.Image.open(GOLDEN / f"inception/{number}.png").convert("RGB")


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("mode", ["clean", "pytorch_fid"])
def test_pixels_for_inception_equal_the_tools(number, mode):
    kit, tolerance = {"clean": ("clean", 1e-3), "pytorch_fid": ("pytorch_bilinear", 2e-2)}[mode]
    pixels = inception_pixels(image(number), mode)
    assert pixels.shape == (299, 299, 3) and pixels.dtype == np.float32
    levels = pixels * MODES[mode].scale + MODES[mode].offset
    np.testing.assert_allclose(levels[::13, ::13], EXPECTED[f"{kit}_{number}"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", MATRICES)
def test_resizing_one_axis_is_the_matrix_of_the_tool(name):
    source, target = map(int, name.split("_")[2:])
    resize = resize_bicubic if "bicubic" in name else bilinear
    columns = resize(np.eye(source, dtype=np.float32)[:, :, None], target, source)[:, :, 0]
    np.testing.assert_allclose(columns, EXPECTED[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("number", [1, 3, 6])
def test_the_square_of_gigagan_differs_by_at_most_one_level(number):
    square = np.asarray(centre_square(image(number), 256, PIL.Image.Resampling.LANCZOS), int)
    assert np.abs(square[::11, ::11] - EXPECTED[f"crop_lanczos256_{number}"]).max() <= 1
    step = inception_pixels(PIL.Image.fromarray(square.astype(np.uint8)), "clean")
    np.testing.assert_array_equal(inception_pixels(image(number), "gigagan"), step)


@pytest.mark.parametrize("size", [(90, 53), (41, 97), (30, 30), (224, 224)])
def test_pixels_for_clip_equal_transformers(size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40}, do_normalize=False, do_rescale=False
    )
    expected = processor(PIL.Image.fromarray(pixels), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_array_equal(clip_pixels(PIL.Image.fromarray(pixels), 40), expected)
