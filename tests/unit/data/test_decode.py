"""Every mode and format to RGB bytes, and errors that name the file."""

import io
import os
import zlib

import numpy as np
import pytest
from PIL import Image

from voken_common.data.decode import decode_image, open_image
from voken_common.data.errors import ImageDecodeError

GREY = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)


def encode(image, **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, **options)
    return buffer.getvalue()


def grey_rgb(grey):
    return np.repeat(grey[:, :, None], 3, axis=2)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP", "PPM"])
def test_lossless_rgb_formats(form):
    data = encode(COLOUR, format=form, **({"lossless": True} if form == "WEBP" else {}))
    np.testing.assert_array_equal(decode_image(data), COLOUR)


def test_jpeg_decodes_as_pillow_does_and_is_writable(tmp_path):
    path = tmp_path / "photo.JPEG"
    path.write_bytes(encode(COLOUR, format="JPEG", quality=95))
    decoded = decode_image(path)
    np.testing.assert_array_equal(decoded, np.asarray(Image.open(path)))
    assert decoded.flags.writeable


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_grey(form):
    decoded = decode_image(encode(GREY, format=form))
    assert decoded.shape == (5, 7, 3)
    np.testing.assert_allclose(decoded, grey_rgb(GREY), atol=0 if form != "JPEG" else 12)


def test_alpha_is_dropped_not_composited():
    alpha = np.full_like(GREY, 3)
    rgba = encode(np.dstack([COLOUR, alpha]), format="PNG")
    np.testing.assert_array_equal(decode_image(rgba), COLOUR)
    la = encode(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)]), format="PNG")
    np.testing.assert_array_equal(decode_image(la), grey_rgb(GREY))


@pytest.mark.parametrize("transparency", [None, 0, b"\x00\x80\xff"])
def test_palette_with_and_without_transparency(transparency, recwarn):
    image = Image.fromarray((GREY % 4).astype(np.uint8)).convert("P")
    colours = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
    image.putpalette(colours.tobytes())
    data = encode(image, format="PNG", **({} if transparency is None else {"transparency": transparency}))
    np.testing.assert_array_equal(decode_image(data), colours[GREY % 4])
    assert not recwarn.list


def test_bilevel():
    bits = GREY > 100
    np.testing.assert_array_equal(decode_image(encode(bits, format="PNG")), grey_rgb(np.uint8(255) * bits))


def test_cmyk_jpeg_and_tiff():
    cmyk = Image.fromarray(COLOUR).convert("CMYK")
    np.testing.assert_array_equal(decode_image(encode(cmyk, format="TIFF")), COLOUR)
    decoded = decode_image(encode(cmyk, format="JPEG", quality=100, subsampling=0))
    np.testing.assert_allclose(decoded, COLOUR, atol=8)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_the_upper_byte(form):
    wide = GREY.astype(np.uint16) * 256 + 255
    np.testing.assert_array_equal(decode_image(encode(wide, format=form)), grey_rgb(GREY))


def png_16_bit_rgb(values):
    """A 16-bit RGB PNG, which Pillow reads but does not write."""

    def chunk(kind, body):
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    height, width = values.shape[:2]
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_rgb_keeps_the_upper_byte(form):
    wide = COLOUR.astype(np.uint16) * 256 + 17
    if form == "PNG":
        data = png_16_bit_rgb(wide)
    else:
        tifffile = pytest.importorskip("tifffile")
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, wide, photometric="rgb")
        data = buffer.getvalue()
    np.testing.assert_array_equal(decode_image(data), COLOUR)


def test_exif_orientation_is_obeyed_only_when_asked():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(COLOUR, format="PNG", exif=exif)
    np.testing.assert_array_equal(decode_image(data), COLOUR)
    np.testing.assert_array_equal(decode_image(data, exif_rotate=True), np.rot90(COLOUR, -1))
    np.testing.assert_array_equal(decode_image(encode(COLOUR, format="PNG"), exif_rotate=True), COLOUR)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation(form):
    frames = [Image.fromarray(np.full((6, 6, 3), value, np.uint8)) for value in (40, 200)]
    data = encode(frames[0], format=form, save_all=True, append_images=frames[1:])
    assert abs(int(decode_image(data)[0, 0, 0]) - 40) <= 2


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "TIFF", "WEBP"])
def test_truncated_files_are_errors_with_the_path(tmp_path, form):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"cut.{form.lower()}"
    data = encode(noise, format=form)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageDecodeError, match=r"cut\.\w+: .+") as caught:
        decode_image(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_messages_say_what_is_wrong(tmp_path):
    with pytest.raises(ImageDecodeError, match=r"^album/a\.jpg: the file is empty$"):
        decode_image(b"", name="album/a.jpg")
    with pytest.raises(ImageDecodeError, match=r"^album/a\.jpg: not an image in a known format$"):
        decode_image(b"<html>404</html>", name="album/a.jpg")
    with pytest.raises(ImageDecodeError, match=r"nothing\.png: no such file$"):
        decode_image(tmp_path / "nothing.png")
    with pytest.raises(ImageDecodeError, match=f"^{tmp_path}: is a directory, not a file$"):
        decode_image(os.fspath(tmp_path))
    with pytest.raises(ImageDecodeError, match=r"floating-point pixels have no agreed range; expected integers"):
        decode_image(encode(GREY.astype(np.float32), format="TIFF"))
    with pytest.raises(ImageDecodeError, match=r"integer pixels from 0 to 238000; expected 0 to 65535"):
        decode_image(encode(Image.fromarray(GREY.astype(np.int32) * 1000), format="TIFF"))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_bytes_raise_nothing_else():
    rng = np.random.default_rng(1)
    for form in ("JPEG", "PNG", "TIFF", "GIF", "WEBP"):
        data = bytearray(encode(COLOUR, format=form))
        for _ in range(60):
            mutated = bytearray(data)
            for position in rng.integers(0, len(data), 4):
                mutated[position] = rng.integers(256)
            try:
                decoded = decode_image(bytes(mutated))
            except ImageDecodeError:
                continue
            assert decoded.dtype == np.uint8
            assert decoded.shape[2] == 3


@pytest.mark.parametrize(
    "size, short_side, expected",
    [
        ((96, 64), 16, (24, 16)),
        ((96, 64), 17, (48, 32)),
        ((96, 64), 33, (96, 64)),
        ((72, 200), 8, (9, 25)),
        ((96, 64), None, (96, 64)),
    ],
)
def test_a_jpeg_decodes_at_reduced_scale_no_smaller_than_asked(size, short_side, expected):
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    data = encode(smooth, format="JPEG", quality=95)
    image = open_image(data, short_side=short_side)
    assert (image.size, image.mode) == (expected, "RGB")
    reference = Image.fromarray(decode_image(data)).resize(expected, Image.Resampling.BOX)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(reference)).mean() < 4


def test_only_jpegs_decode_at_reduced_scale_and_grey_ones_stay_grey():
    assert open_image(encode(COLOUR, format="PNG"), short_side=1).size == (7, 5)
    grey = encode(np.repeat(np.repeat(GREY, 4, 0), 4, 1), format="JPEG")
    reduced = np.asarray(open_image(grey, short_side=5))
    assert reduced.shape == (5, 7, 3)
    assert (reduced[..., 0] == reduced[..., 1]).all()
