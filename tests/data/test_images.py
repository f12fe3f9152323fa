import contextlib
import io

import numpy as np
import PIL.Image
import pytest
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from janus_jax.data import images
from janus_jax.data.images import Crop, decode_image, generation_pixels, load_image, to_images, understanding_pixels
from janus_jax.errors import UserError
from tests.helpers import REPOSITORY
from tests.helpers.tiny_data import encoded, random_image

EXTREME = [(1, 1), (1, 700), (900, 1), (2, 1001), (1500, 3), (384, 384), (5, 5), (1000, 333), (1023, 767), (767, 1023)]


def many_sizes():
    rng = np.random.default_rng(0)
    return EXTREME + [tuple(int(side) for side in rng.integers(1, 600, 2)) for _ in range(60)]


def understanding_reference(image, size):
    """The reference's rule, computed independently: truncated sides, at least 14 pixels."""
    width, height = image.size
    longest = max(width, height)
    new_height = max(int(height / longest * size), 14)
    new_width = max(int(width / longest * size), 14)
    content = np.asarray(image.resize((new_width, new_height), PIL.Image.Resampling.BICUBIC))
    side = max(new_width, new_height)
    square = np.full((side, side, 3), int(255 * 0.5), np.uint8)
    top, left = int((side - new_height) / 2), int((side - new_width) / 2)
    square[top : top + new_height, left : left + new_width] = content
    return square


@pytest.mark.parametrize("size", [384, 48])
def test_understanding_pixels_equal_an_independent_computation_for_many_sizes(size):
    for width, height in many_sizes():
        image = random_image(width, height)
        out = understanding_pixels(image, size)
        assert out.shape == (size, size, 3) and out.dtype == np.uint8
        np.testing.assert_array_equal(out, understanding_reference(image, size), err_msg=f"{width}x{height}")


def test_understanding_pixels_equal_transformers_where_its_rounding_agrees():
    processor = JanusImageProcessorPil(
        image_mean=[0.5] * 3, image_std=[0.5] * 3, size={"height": 96, "width": 96}, min_size=14
    )
    compared = 0
    for width, height in many_sizes():
        longest = max(width, height)
        if [int(side / longest * 96) for side in (width, height)] != [
            round(side * (96 / longest)) for side in (width, height)
        ]:
            continue
        image = random_image(width, height)
        theirs = np.asarray(processor(image, return_tensors="np")["pixel_values"])[0].transpose(1, 2, 0)
        ours = understanding_pixels(image, 96) / 127.5 - 1
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6, err_msg=f"{width}x{height}")
        compared += 1
    assert compared > 30


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((384, 384), (64, 64)),
        ((640, 480), (85, 64)),
        ((480, 641), (64, 85)),
        ((30, 100), (64, 213)),
        ((65, 64), (65, 64)),
    ],
)
def test_generation_pixels_are_the_centre_of_the_image_with_its_short_side_resized(size, resized):
    image = random_image(*size)
    whole = np.asarray(image.resize(resized, PIL.Image.Resampling.BICUBIC))
    left, top = (resized[0] - 64) // 2, (resized[1] - 64) // 2
    difference = generation_pixels(image, 64).astype(int) - whole[top : top + 64, left : left + 64]
    assert np.abs(difference).max() <= 1 and np.count_nonzero(difference) <= 0.002 * difference.size


def test_generation_pixels_keep_all_of_a_square_and_only_the_middle_of_a_panorama():
    thirds = np.repeat(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8), 30, axis=1).repeat(30, axis=0)
    out = generation_pixels(PIL.Image.fromarray(thirds), 30)
    assert (out == [0, 255, 0]).all()


@pytest.mark.parametrize("size", [(1, 30000), (30000, 1), (20, 40000)])
@pytest.mark.parametrize("to_pixels", [understanding_pixels, generation_pixels])
def test_an_extreme_aspect_ratio_never_needs_much_memory(to_pixels, size, monkeypatch):
    """A PNG of 1x30000 has 138 bytes; with its short side resized to 384 it would have 13 GB."""
    resize = PIL.Image.Image.resize

    def bounded_resize(self, size, *args, **kwargs):
        assert size[0] * size[1] <= images.MAX_PIXELS
        return resize(self, size, *args, **kwargs)

    monkeypatch.setattr(PIL.Image.Image, "resize", bounded_resize)
    with contextlib.suppress(UserError):  # refusing it is fine as well
        assert to_pixels(PIL.Image.new("RGB", size, "white"), 384).max() == 255


@pytest.mark.parametrize("training", [True, False])
def test_exif_orientation_is_applied_in_training_only(training):
    image = PIL.Image.new("RGB", (60, 40), "red")
    image.paste("blue", (0, 0, 30, 40))  # left half; orientation 6 turns it clockwise: blue on top
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    decoded = decode_image(encoded(image, "JPEG", exif=exif, quality=95, subsampling=0), "x", training=training)
    assert decoded.size == ((40, 60) if training else (60, 40))
    blue_area = (0, 0, 40, 28) if training else (0, 0, 28, 40)
    mean = np.asarray(decoded.crop(blue_area)).mean((0, 1))
    np.testing.assert_allclose(mean, [0, 0, 255], atol=4)


def palette_with_transparency():
    image = PIL.Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (0, 0, 2, 4))
    return encoded(image, transparency=0)  # right half transparent over hidden red


def test_transparent_palette_goes_on_white_in_training_and_shows_its_hidden_colour_in_evaluation():
    on_white = np.asarray(decode_image(palette_with_transparency(), "x", training=True))
    plain = np.asarray(decode_image(palette_with_transparency(), "x"))
    assert (on_white[:, :2] == [0, 0, 255]).all() and (on_white[:, 2:] == 255).all()
    assert (plain[:, :2] == [0, 0, 255]).all() and (plain[:, 2:] == [255, 0, 0]).all()


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (200, 100, 0)), ("LA", (80,))])
@pytest.mark.parametrize("alpha", [0, 128, 255])
def test_alpha_is_composited_on_white_in_training_and_dropped_in_evaluation(mode, colour, alpha):
    data = encoded(PIL.Image.new(mode, (3, 3), (*colour, alpha)))
    rgb = np.array(colour * (3 // len(colour)), float)
    expected = 255 + (rgb - 255) * alpha / 255
    on_white = np.asarray(decode_image(data, "x", training=True), float)
    np.testing.assert_allclose(on_white[0, 0], expected, atol=1)
    assert (np.asarray(decode_image(data, "x")) == rgb).all()


@pytest.mark.parametrize("training", [True, False])
def test_16_bit_grey_is_rescaled_not_clipped(training):
    values = np.array([[0, 256, 257, 30000, 65534, 65535]], np.uint16)
    data = encoded(PIL.Image.fromarray(values))
    assert PIL.Image.open(io.BytesIO(data)).mode == "I;16"
    out = np.asarray(decode_image(data, "x", training=training))
    np.testing.assert_allclose(out[0, :, 0], values[0] / 257, atol=1)
    assert (out[..., 0] == out[..., 2]).all() and out[0, -1, 0] == 255


def test_16_bit_grey_with_a_transparent_value_is_rescaled_too():
    data = encoded(PIL.Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)), transparency=0)
    out = np.asarray(decode_image(data, "x", training=True))
    assert out[0, 1:, 0].tolist() == [100, 255]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("mode", "file_format"), [("CMYK", "JPEG"), ("L", "PNG"), ("1", "PNG"), ("P", "GIF")])
def test_other_modes_become_rgb_as_pillow_converts_them(mode, file_format, training):
    data = encoded(random_image(20, 30, mode=mode), file_format)
    image = PIL.Image.open(io.BytesIO(data))
    assert image.mode == mode
    decoded = decode_image(data, "x", training=training)
    assert decoded.mode == "RGB" and decoded.size == (20, 30)
    np.testing.assert_array_equal(decoded, image.convert("RGB"))


def test_float_images_are_rescaled_or_refused_in_training_but_not_clipped_to_black():
    """`convert` alone turns an image whose values are between 0 and 1 black."""
    data = encoded(PIL.Image.fromarray(np.linspace(0.1, 0.9, 16, dtype=np.float32).reshape(4, 4)), "TIFF")
    assert PIL.Image.open(io.BytesIO(data)).mode == "F"
    try:
        decoded = np.asarray(decode_image(data, "x", training=True))
    except UserError:
        return
    assert np.ptp(decoded) > 100


def test_the_first_frame_of_an_animation_is_taken():
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("lime", "red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (np.asarray(decode_image(data, "x", training=True)) == [0, 255, 0]).all()


JPEG = encoded(random_image(64, 64), "JPEG")


@pytest.mark.parametrize(
    "data",
    [b"", b"<html>404</html>", b"\xff\xd8\xff garbage", JPEG[: len(JPEG) // 2], encoded(random_image(9, 9))[:-30]],
)
@pytest.mark.parametrize("training", [True, False])
def test_damaged_images_are_errors_that_name_their_origin(data, training):
    with pytest.raises(UserError, match=r"^web/17: not a readable image") as first:
        decode_image(data, "web/17", training=training)
    with pytest.raises(UserError) as second:
        decode_image(bytes(bytearray(data)), "web/17", training=training)
    assert str(first.value) == str(second.value)


@pytest.mark.parametrize("file_format", ["ICO", "TGA", "PCX"])
def test_formats_outside_the_list_are_not_even_tried(file_format):
    data = encoded(random_image(16, 16), file_format)
    assert PIL.Image.open(io.BytesIO(data)).format == file_format
    with pytest.raises(UserError, match="^x: not a readable image"):
        decode_image(data, "x")


def test_an_image_over_the_pixel_limit_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 20 * 30)
    assert decode_image(encoded(random_image(20, 30)), "x").size == (20, 30)
    undecodable = encoded(random_image(21, 30))[:80]  # the header is whole, the pixels are missing
    with pytest.raises(UserError, match=r"^x: image of 21x30 is over the limit of 600 pixels"):
        decode_image(undecodable, "x")


def test_loading_a_file_names_it_when_it_is_missing_or_damaged(tmp_path):
    path = tmp_path / "cat.png"
    with pytest.raises(UserError, match=rf"image {path}: cannot be read \(No such file"):
        load_image(path)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=rf"image {path}: not a readable image"):
        load_image(path)
    random_image(7, 9).save(path)
    np.testing.assert_array_equal(load_image(path), random_image(7, 9))


def test_generated_pixels_are_clipped_and_truncated():
    values = np.array([-7.0, -1.0, -0.999, 0.0, 0.5, 0.9999, 1.0, 9.0], np.float32)
    expected = [0, 0, 0, 127, 191, 254, 255, 255]  # (x + 1) / 2 * 255 without rounding: 127.5 -> 127, 254.99 -> 254
    pixels = np.broadcast_to(values[None, None, :, None], (2, 3, 8, 3))
    out = to_images(pixels)
    assert [image.size for image in out] == [(8, 3)] * 2
    assert np.asarray(out[1])[2, :, 1].tolist() == expected


@pytest.mark.parametrize(
    ("count", "columns", "size"), [(5, 2, (14, 9)), (4, 4, (28, 3)), (2, 3, (21, 3)), (1, 1, (7, 3))]
)
def test_grid_shows_images_row_by_row_on_white(count, columns, size):
    pictures = [PIL.Image.new("RGB", (7, 3), (i, i, i)) for i in range(count)]
    out = images.grid(pictures, columns)
    assert out.size == size
    cells = np.asarray(out).reshape(size[1] // 3, 3, columns, 7, 3).swapaxes(1, 2).reshape(-1, 3 * 7 * 3)
    assert (cells == cells[:, :1]).all()
    assert cells[:, 0].tolist() == [*range(count), *[255] * (len(cells) - count)]


def test_pixels_survive_the_way_to_the_model_and_back():
    """uint8 -> [-1, 1] -> uint8 loses at most one step to truncation."""
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    back = np.asarray(to_images(pixels / 127.5 - 1)[0]).astype(int)
    assert np.abs(back - pixels[0]).max() <= 1


@pytest.mark.parametrize(("size", "zoom"), [(16, 1.0), (16, 1.25), (24, 2.0)])
def test_random_crops_are_parts_of_the_resized_image_anywhere(size, zoom):
    """Red rises from left to right, green from top to bottom: the first pixel tells where the crop was."""
    ramp = np.stack(np.broadcast_arrays(np.linspace(0, 255, 96)[None, :], np.linspace(0, 255, 64)[:, None], 0.0), -1)
    image = PIL.Image.fromarray(ramp.astype(np.uint8))
    crop = Crop(random=True, max_zoom=zoom)
    crops = [generation_pixels(image, size, crop, np.random.default_rng(seed)) for seed in range(80)]
    corners = np.array([crop[0, 0, :2] for crop in crops], float)
    spans = np.array([crop[-1, -1, :2].astype(float) - crop[0, 0, :2] for crop in crops])
    share = size / np.round(size * np.array([1.0, zoom]))  # of the short side that a crop shows
    assert spans[:, 1].max() <= 255 * share[0] + 1 and spans[:, 1].min() >= 255 * (size - 1) / (size * zoom) - 25
    assert np.ptp(corners[:, 0]) > 60  # the long side always leaves room
    assert (np.ptp(corners[:, 1]) > 20) == (zoom > 1)


def test_half_of_the_crops_are_mirrored():
    image = random_image(20, 20)
    plain = generation_pixels(image, 16)
    crops = [generation_pixels(image, 16, Crop(flip=True), np.random.default_rng(seed)) for seed in range(200)]
    mirrored = [np.array_equal(crop, plain[:, ::-1]) for crop in crops]
    assert all(flip or np.array_equal(crop, plain) for flip, crop in zip(mirrored, crops, strict=True))
    assert abs(np.mean(mirrored) - 0.5) < 5 * 0.5 / np.sqrt(200)


class Drawn:
    """A generator that returns given whole numbers in turn, and mirrors nothing."""

    def __init__(self, numbers):
        self.numbers = list(numbers)

    def integers(self, low, high, endpoint):
        assert endpoint and low <= self.numbers[0] <= high
        return self.numbers.pop(0)

    def random(self):
        return 1.0


@pytest.mark.parametrize("case", range(4))
def test_crops_with_halving_equal_those_of_llamagen(case):
    with np.load(REPOSITORY / "tests/data_files/tokenizers/crops.npz", allow_pickle=False) as arrays:
        image, size, centre, at_random, drawn = (
            arrays[f"{case}/{name}"] for name in ("image", "size", "center", "random", "drawn")
        )
    picture, size = PIL.Image.fromarray(image), int(size)
    np.testing.assert_array_equal(generation_pixels(picture, size, Crop(halving=True)), centre)
    crop, rng = Crop(random=True, max_zoom=1.25, flip=True, halving=True), Drawn(drawn)
    np.testing.assert_array_equal(generation_pixels(picture, size, crop, rng), at_random)
    assert not rng.numbers


def test_crops_with_halving_reach_both_ends_and_refuse_what_no_memory_holds():
    image = PIL.Image.fromarray(np.arange(10, dtype=np.uint8)[None, :, None].repeat(8, 0).repeat(3, 2))
    crop = Crop(random=True, halving=True)
    starts = {generation_pixels(image, 8, crop, np.random.default_rng(seed))[0, 0, 0] for seed in range(60)}
    assert starts == {0, 1, 2}
    with pytest.raises(UserError, match="image of 70000x4: 17920000x1024"):
        generation_pixels(PIL.Image.new("RGB", (70000, 4)), 1024, Crop(halving=True))
