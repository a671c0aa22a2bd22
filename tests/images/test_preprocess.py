"""Image files to RGB, and RGB to the input frame."""

import re
import struct
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from PIL import Image

from sam_jax.images.preprocess import prepare, prepare_on_device
from sam_jax.images.read import Reading, read_header, read_image, read_values, to_8_bits
from sam_jax.images.resize import input_size_for

FRAME = (64, 64)
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # `pixel_mean` and `pixel_std` in build_sam.py


def scene(height: int, width: int) -> np.ndarray:
    """Smooth colours with some noise."""
    rng = np.random.default_rng(height)
    y, x = np.mgrid[:height, :width]
    colors = np.stack([128 + 100 * np.sin(x / 9), 255 * y / height, 128 + 100 * np.cos((x + y) / 5)], -1)
    return np.clip(colors + rng.normal(scale=8, size=colors.shape), 0, 255).astype(np.uint8)


def write(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


RGB = scene(6, 8)


def test_rgb_is_read_as_it_is(tmp_path):
    image = read_image(write(tmp_path / "x.png", Image.fromarray(RGB)))
    assert (image.dtype, image.flags.writeable) == (np.uint8, True)
    np.testing.assert_array_equal(image, RGB)


def test_grey_becomes_three_equal_channels(tmp_path):
    image = read_image(write(tmp_path / "x.png", Image.fromarray(RGB[..., 0])))
    np.testing.assert_array_equal(image, np.repeat(RGB[..., :1], 3, -1))


def test_alpha_is_dropped_and_colours_are_kept(tmp_path):
    alpha = np.arange(48, dtype=np.uint8).reshape(6, 8, 1)
    image = read_image(write(tmp_path / "x.png", Image.fromarray(np.concatenate([RGB, alpha], -1))))
    np.testing.assert_array_equal(image, RGB)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    grey = np.array([[0, 128, 129, 257, 32896, 65406, 65407, 65535]], np.uint16)
    image = read_image(write(tmp_path / f"x.{suffix}", Image.fromarray(grey)))
    np.testing.assert_array_equal(image[0, :, 0], [0, 0, 1, 1, 128, 254, 255, 255])
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


@pytest.mark.parametrize("transparency", [None, 1, bytes([0, 255, 128])])
def test_a_palette_is_looked_up(tmp_path, transparency):
    palette = Image.new("P", (3, 1))
    palette.putdata([0, 1, 2])
    palette.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    options = {} if transparency is None else {"transparency": transparency}
    image = read_image(write(tmp_path / "x.png", palette, **options))
    np.testing.assert_array_equal(image, [[[255, 0, 0], [0, 255, 0], [10, 20, 30]]])


@pytest.mark.parametrize("mode", ["1", "LA", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode, tmp_path):
    image = Image.fromarray(RGB).convert(mode)
    suffix = {"CMYK": "tif", "YCbCr": "tif"}.get(mode, "png")
    read = read_image(write(tmp_path / f"x.{suffix}", image))
    np.testing.assert_array_equal(read, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [(1, RGB), (2, RGB[:, ::-1]), (3, RGB[::-1, ::-1]), (6, np.rot90(RGB, -1)), (8, np.rot90(RGB))],
)
def test_the_exif_orientation_is_obeyed(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_image(write(tmp_path / "x.png", Image.fromarray(RGB), exif=exif))
    np.testing.assert_array_equal(image, turned)


def test_of_several_frames_it_is_the_first(tmp_path):
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    path = write(tmp_path / "x.webp", frames[0], save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(read_image(path), RGB)


def refused(path: Path):
    return pytest.raises(ValueError, match=f"^{re.escape(str(path))} cannot be read as an image: ")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "gif", "bmp"])
def test_a_damaged_file_is_one_clear_error(tmp_path, suffix):
    path = write(tmp_path / f"x.{suffix}", Image.fromarray(scene(64, 64)))
    content = path.read_bytes()
    for damaged in (b"", b"text", content[:20], content[4:]):
        path.write_bytes(damaged)
        with refused(path):
            read_image(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_half_a_file_is_refused(tmp_path, suffix):
    path = write(tmp_path / f"x.{suffix}", Image.fromarray(scene(64, 64)))
    path.write_bytes(path.read_bytes()[:-200])
    with refused(path):
        read_image(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "nothing.png", tmp_path):
        with refused(path):
            read_image(path)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.uint32, np.float32, np.float64])
@pytest.mark.parametrize("scale", [1, 7])
def test_wide_pixels_are_stretched_from_the_smallest_to_the_largest(tmp_path, dtype, scale):
    """12 bits in 16 are not black, whatever their type; a constant changes nothing."""
    grey = np.array([[100, 164, 228, 4095]]) * scale + 7
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, grey.astype(dtype))
    np.testing.assert_array_equal(read_image(path)[0, :, 0], [0, 4, 8, 255])
    np.testing.assert_array_equal(read_image(path)[..., 2], read_image(path)[..., 0])


def test_a_constant_wide_image_is_black_and_nan_is_refused(tmp_path):
    for value in (0, 900):
        tifffile.imwrite(tmp_path / "x.tif", np.full((3, 4), value, np.uint16))
        assert not read_image(tmp_path / "x.tif").any()
    tifffile.imwrite(tmp_path / "x.tif", np.array([[0, np.nan]], np.float32))
    with refused(tmp_path / "x.tif"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", ["planar", "imagej"])
def test_channels_may_come_first(tmp_path, first, kind):
    wide = RGB.astype(np.uint16) * 16
    values = np.moveaxis(wide, -1, 0) if first else wide
    options = {"photometric": "rgb", "planarconfig": "separate" if first else "contig"}
    if kind == "imagej":
        options = {"imagej": True, "metadata": {"axes": "CYX" if first else "YXS"}}
        values = values if first else (values // 16).astype(np.uint8)  # ImageJ has no wide colours
    tifffile.imwrite(tmp_path / "x.tif", values, **options)
    want = RGB if values.dtype == np.uint8 else to_8_bits(wide)
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif"), want)
    assert read_header(tmp_path / "x.tif").size == RGB.shape[:2]


@pytest.mark.parametrize("pages", [2, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_stack_is_refused_with_its_number_of_pages(tmp_path, pages, dtype):
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((pages, 20, 30), dtype), photometric="minisblack")
    with pytest.raises(ValueError, match=rf"x\.tif cannot be read as an image: it has {pages} pages"):
        read_image(tmp_path / "x.tif")


def test_a_page_can_be_chosen(tmp_path):
    stack = np.arange(4, dtype=np.uint8)[:, None, None] * np.ones((20, 30), np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", stack, photometric="minisblack")
    assert (read_image(tmp_path / "x.tif", Reading(page=3)) == 2).all()
    with pytest.raises(ValueError, match="it has 4 pages, and no page 5"):
        read_image(tmp_path / "x.tif", Reading(page=5))
    path = write(tmp_path / "one.png", Image.fromarray(RGB))
    np.testing.assert_array_equal(read_image(path, Reading(page=3)), RGB)  # a file of one page has no choice


def test_pages_of_several_sizes_and_of_several_channels(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        for side in (4, 6):
            file.write(np.full((side, side), side, np.uint8), photometric="minisblack")
    assert read_image(tmp_path / "x.tif", Reading(page=2)).shape == (6, 6, 3)
    hyperstack = np.arange(6, dtype=np.uint16).reshape(3, 2, 1, 1) * np.ones((5, 7), np.uint16)
    tifffile.imwrite(tmp_path / "z.tif", hyperstack, imagej=True, metadata={"axes": "ZCYX"})
    values = read_values(tmp_path / "z.tif", Reading(page=2, channels=(2,)))
    np.testing.assert_array_equal(values, np.full((5, 7, 3), 3))


@pytest.mark.parametrize("axes", ["CYX", "QYX", "YXS"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_channels_can_be_chosen(tmp_path, axes, dtype):
    values = np.arange(2, dtype=dtype)[:, None, None] * np.ones((5, 7), dtype)
    options = {"metadata": {"axes": axes}}
    if axes == "YXS":
        values, options = np.moveaxis(values, 0, -1), {"planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="minisblack", **options)
    with pytest.raises(ValueError, match=r"it has 2 (channels|pages)\. Choose one"):
        read_image(tmp_path / "x.tif")
    for channel in (1, 2):
        assert (read_values(tmp_path / "x.tif", Reading(channels=(channel,))) == channel - 1).all()
    swapped = read_values(tmp_path / "x.tif", Reading(channels=(2, 1, 1)))
    assert swapped[0, 0].tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match="it has 2 channels, and no channel 3"):
        read_image(tmp_path / "x.tif", Reading(channels=(3,)))


def test_channels_of_a_picture_can_be_chosen(tmp_path):
    path = write(tmp_path / "x.png", Image.fromarray(RGB))
    np.testing.assert_array_equal(read_image(path, Reading(channels=(3, 2, 1))), RGB[..., ::-1])


def test_the_rules_for_ranges():
    values = np.array([[[0, 100, 1000], [4095, 200, 1000]]], np.uint16)
    assert to_8_bits(values, "file").tolist() == [[[0, 0, 4], [16, 1, 4]]]
    assert to_8_bits(values, "image").tolist() == [[[0, 6, 62], [255, 12, 62]]]
    assert to_8_bits(values, "channel").tolist() == [[[0, 0, 0], [255, 255, 0]]]
    small = np.array([[[10], [20]]], np.uint8)
    assert to_8_bits(small).tolist() == to_8_bits(small, "file").tolist() == small.tolist()
    assert to_8_bits(small, "image").ravel().tolist() == [0, 255]
    assert to_8_bits(np.array([-32768, 0, 32767], np.int16), "file").tolist() == [0, 128, 255]
    assert to_8_bits(np.array([0.0, 0.5, 1.0]), "file").tolist() == [0, 128, 255]
    with pytest.raises(ValueError, match="floats are from 0 to 2, not from 0 to 1"):
        to_8_bits(np.array([0.0, 2.0]), "file")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"range": "percentile"}, "range must be auto, file, image or channel, got percentile"),
        ({"channels": (1, 2)}, "one or three numbers from 1 on, got"),
        ({"channels": (0,)}, "one or three numbers from 1 on"),
        ({"page": 0}, "page must be 1 or more, got 0"),
    ],
)
def test_ways_to_read_that_there_are_not(wrong, message):
    with pytest.raises(ValueError, match=message):
        Reading(**wrong)


def test_colours_of_16_bits_in_png_are_not_black(tmp_path):
    """PIL keeps the upper byte of each; what is left of 12 bits are 16 levels."""
    values = np.linspace(0, 4095, 5 * 7 * 3).astype(">u2").reshape(5, 7 * 3)
    rows = b"".join(b"\0" + row.tobytes() for row in values)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    image = read_image(tmp_path / "x.png")
    np.testing.assert_allclose(image.ravel(), values.ravel() / 4095 * 255, atol=255 / 15)
    assert (image.min(), image.max()) == (0, 255)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "x.png", Image.fromarray(RGB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ValueError, match="decompression bomb"):
        read_image(path)


@pytest.mark.parametrize("size", [(40, 100), (100, 40), (64, 64), (3, 5), (300, 1), (64, 63)])
@pytest.mark.parametrize("frame_size", [(64, 64), (48, 80)])
def test_a_frame_is_the_resized_image_normalised_and_padded_with_zeros(size, frame_size):
    image = scene(*size)
    frame, (height, width) = prepare(image, frame_size)
    assert (height, width) == input_size_for(size, frame_size)
    assert (frame.shape, frame.dtype) == ((*frame_size, 3), np.float32)
    pixels = frame[:height, :width].astype(np.float64) * STD + MEAN
    np.testing.assert_allclose(pixels, np.round(pixels), atol=1e-4)
    np.testing.assert_array_equal(frame[height:], 0)
    np.testing.assert_array_equal(frame[:, width:], 0)


def test_an_image_that_fits_is_not_changed():
    image = scene(*FRAME)
    frame, size = prepare(image, FRAME)
    assert size == FRAME
    np.testing.assert_array_equal(frame, (image.astype(np.float32) - np.float32(MEAN)) / np.float32(STD))


def test_medsam_s_frame_is_filled_by_the_stretched_image():
    image = scene(40, 100)
    frame, size = prepare(image, FRAME, "medsam")
    assert size == FRAME
    assert (frame.min(), frame.max()) == (0, 1)
    np.testing.assert_array_equal(np.argmax(frame[:, ::8, 1], 0) > 56, True)  # green is brightest at the bottom
    np.testing.assert_allclose(frame[32, 32], (image[20, 50] - image.min()) / np.ptp(image), atol=0.2)


@pytest.mark.parametrize("size", [(50, 64), (90, 40), (64, 64)])
def test_micro_sam_s_channels_are_each_from_0_to_255(size):
    image = scene(*size) // np.array([1, 2, 5], np.uint8) + np.array([0, 9, 100], np.uint8)
    low, high = image.min((0, 1)).astype(float), image.max((0, 1)).astype(float)
    by_hand = ((image - low) / (high - low) * 255).astype(np.uint8)
    frame, input_size = prepare(image, FRAME, "micro_sam")
    want, size_of_want = prepare(by_hand, FRAME)
    assert input_size == size_of_want
    assert (np.abs(frame - want) * np.array(STD)).max() < 1.001  # a number that is nearly whole may be cut either way
    assert (frame == want).mean() > 0.99
    constant = np.full((20, 30, 3), 77, np.uint8)
    np.testing.assert_array_equal(prepare(constant, FRAME, "micro_sam")[0], prepare(constant * 0, FRAME)[0])


def test_lite_medsam_s_pixels_are_means_over_what_they_cover():
    image = scene(100, 160)
    frame, size = prepare(image, (40, 64), "lite_medsam")
    assert size == (40, 64)
    fine = image.repeat(2, 0).repeat(2, 1).reshape(40, 5, 64, 5, 3)  # each new pixel covers 2.5 x 2.5
    mean = np.floor(fine.mean((1, 3)) + 0.5)
    levels = np.abs(frame * np.ptp(mean) + mean.min() - mean)
    assert levels.max() < 1.01
    assert (levels < 0.01).mean() > 0.99  # the others were a half before they were rounded


def test_lite_medsam_pads_with_the_darkest_value():
    frame, (height, width) = prepare(scene(40, 100), FRAME, "lite_medsam")
    assert (height, width) == (26, 64)
    assert (frame[:26].min(), frame[:26].max()) == (0, 1)
    np.testing.assert_array_equal(frame[26:], 0)


@pytest.mark.parametrize("preprocessing", ["medsam", "lite_medsam"])
def test_an_image_of_one_value_has_no_brightest(preprocessing):
    np.testing.assert_array_equal(prepare(np.full((9, 9, 3), 77, np.uint8), FRAME, preprocessing)[0], 0)


@pytest.mark.parametrize(
    ("size", "share"), [((40, 100), 0.01), ((64, 64), 0), ((20, 7), 0.01), ((300, 211), 0.01), ((100, 40), 0.25)]
)
def test_the_device_s_frame_is_one_level_from_pil_s_at_most(size, share):
    """But for a share of the values it is the same. Of the last one, PIL resizes the height first."""
    image = scene(*size)
    expected, (height, width) = prepare(image, FRAME)
    frame = np.asarray(jax.jit(prepare_on_device, static_argnums=1)(jnp.asarray(image), FRAME))
    levels = np.abs(frame - expected)[:height, :width] * STD
    assert levels.max() < 1.001
    assert (levels > 0.5).mean() <= share
    np.testing.assert_array_equal(frame[height:], 0)
    np.testing.assert_array_equal(frame[:, width:], 0)


def test_images_of_floats_and_batches_on_the_device():
    images = np.stack([scene(40, 100), scene(40, 100)[::-1]])
    frames = jax.vmap(lambda image: prepare_on_device(image, FRAME))(jnp.asarray(images, jnp.float32))
    for image, frame in zip(images, frames, strict=True):
        np.testing.assert_allclose(frame, prepare_on_device(jnp.asarray(image), FRAME), atol=1e-6)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((2, 4, 4, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_image_are_refused(image):
    with pytest.raises(ValueError, match=r"must be RGB, uint8 \[height, width, 3\], got an array of shape"):
        prepare(image, FRAME)
    if image.dtype != np.float32:
        with pytest.raises(ValueError, match=r"must be RGB, uint8 or float \[height, width, 3\], got"):
            prepare_on_device(jnp.asarray(image), FRAME)
