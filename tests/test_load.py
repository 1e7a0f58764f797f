"""The loader on every kind of file people have, and on files that are not images; resizing and cropping."""

import io
import os
import random
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from boothlab.errors import UserError
from boothlab.images.load import Crop, Fitted, ImageError, Loaded, decode_image, fit, load_image, read_image, to_tensor

ORIENTATION = 0x0112


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def halves(width: int = 16, height: int = 8) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), "blue")
    image.paste("red", (0, 0, width // 2, height))
    return image


def decode(data: bytes) -> Loaded:
    """Decode with every warning turned into a failure, and check what holds of any result."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = decode_image(data, "x")
    assert loaded.image.mode == "RGB" and not loaded.image.info
    return loaded


def pixel(loaded: Loaded, x: int, y: int) -> tuple[int, ...]:
    value = loaded.image.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


def near(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= 40


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation(orientation: int, format: str) -> None:
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste("red", (0, 0, 16, 8))  # the upper left quarter of the photo as seen
    # EXIF says how the stored image must be turned; store the inverse of that turn.
    T = Image.Transpose
    stored_by = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE}
    stored_by |= {6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270}
    stored = upright.transpose(stored_by[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    loaded = decode(encoded(stored, format, exif=exif, **({"quality": 95} if format != "PNG" else {})))
    assert loaded.image.size == (32, 16) and loaded.notes == ()
    assert near(pixel(loaded, 4, 4), (255, 0, 0))
    for place in [(28, 4), (4, 12), (28, 12)]:
        assert near(pixel(loaded, *place), (255, 255, 255))


def test_mpo_gives_its_first_frame_without_a_note() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    second = Image.new("RGB", (4, 4), "green")
    data = encoded(halves(), "MPO", save_all=True, append_images=[second], exif=exif)
    assert len(list(ImageSequence.Iterator(Image.open(io.BytesIO(data))))) == 2
    loaded = decode(data)
    assert (loaded.format, loaded.image.size, loaded.notes) == ("MPO", (8, 16), ())
    assert near(pixel(loaded, 4, 2), (255, 0, 0)) and near(pixel(loaded, 4, 14), (0, 0, 255))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animation_gives_its_first_frame_with_a_note(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    loaded = decode(encoded(frames[0], format, save_all=True, append_images=frames[1:], **options))
    assert pixel(loaded, 4, 4) == (255, 0, 0)
    assert loaded.notes == ("several frames: only the first is used",)


def test_cmyk_with_and_without_the_adobe_marker() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    data = encoded(image, "JPEG", quality=95)
    loaded = decode(data)
    assert near(pixel(loaded, 8, 8), (255, 0, 0)) and "CMYK" in loaded.notes[0]
    at = data.index(b"\xff\xee")
    length = struct.unpack(">H", data[at + 2 : at + 4])[0]
    bare = data[:at] + data[at + 2 + length :]
    assert b"Adobe" in data and b"Adobe" not in bare
    assert near(pixel(decode(bare), 8, 8), (255, 0, 0))  # Pillow reads it by Adobe's convention too
    assert near(pixel(decode(encoded(image, "TIFF")), 8, 8), (255, 0, 0))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled(format: str) -> None:
    values = np.array([[0, 256, 257, 32768, 65535, 128, 129, 40000]] * 8, dtype=np.uint16)
    loaded = decode(encoded(Image.fromarray(values), format))
    found = to_tensor(loaded.image)[0, 0].tolist()
    assert found == [0, 1, 1, 128, 255, 0, 1, 156]
    assert loaded.notes == ("16-bit grey scaled to 8 bits",)


def test_16_bit_grey_big_endian() -> None:
    values = np.array([[0, 65535], [514, 257]], dtype=">u2")
    image = Image.frombytes("I;16B", (2, 2), values.tobytes())
    loaded = decode(encoded(image, "TIFF"))
    assert to_tensor(loaded.image)[1].tolist() == [[0, 255], [2, 1]]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bit_grey_transparent_value_becomes_white() -> None:
    data = png(2, 1, 16, 0, b"\0" + struct.pack(">HH", 1000, 25700), chunk(b"tRNS", struct.pack(">H", 1000)))
    loaded = decode(data)
    assert [pixel(loaded, 0, 0), pixel(loaded, 1, 0)] == [(255, 255, 255), (100, 100, 100)]


def test_16_bit_rgb() -> None:
    loaded = decode(png(1, 1, 16, 2, b"\0" + struct.pack(">HHH", 65535, 32896, 0)))
    assert near(pixel(loaded, 0, 0), (255, 128, 0))


@pytest.mark.parametrize("value", [0.5, 70000, -1, float("nan")])
def test_pixels_without_an_8_bit_meaning(value: float) -> None:
    with pytest.raises(ImageError, match="32-bit pixels; save it"):
        decode(encoded(Image.new("I" if isinstance(value, int) else "F", (2, 2), value), "TIFF"))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_alpha_on_white(format: str) -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 8))
    image.putpixel((7, 7), (0, 0, 0, 128))
    loaded = decode(encoded(image, format, **({"lossless": True} if format == "WEBP" else {})))
    assert [pixel(loaded, 1, 1), pixel(loaded, 5, 1), pixel(loaded, 7, 7)] == [(255,) * 3, (255, 0, 0), (127,) * 3]
    assert loaded.notes == ("transparent parts put on white",)


def test_opaque_alpha_changes_nothing() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    noise[..., 3] = 255
    loaded = decode(encoded(Image.fromarray(noise), "PNG"))
    assert np.array_equal(np.asarray(loaded.image), noise[..., :3]) and loaded.notes == ()


def test_grey_alpha_palette_and_one_bit() -> None:
    grey = Image.new("LA", (4, 4), (10, 0))
    assert pixel(decode(encoded(grey, "PNG")), 0, 0) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 255, 0, 255, 0, 0])
    palette.putpixel((3, 3), 0)
    for format in ("PNG", "GIF"):
        loaded = decode(encoded(palette, format, transparency=0))
        assert [pixel(loaded, 0, 0), pixel(loaded, 3, 3)] == [(255, 0, 0), (255, 255, 255)]
    loaded = decode(encoded(palette, "PNG", transparency=b"\x80\xff"))  # an alpha for each palette entry
    assert [pixel(loaded, 0, 0), pixel(loaded, 3, 3)] == [(255, 0, 0), (127, 255, 127)]
    assert pixel(decode(encoded(palette, "PNG")), 3, 3) == (0, 255, 0)
    one = Image.new("1", (4, 4), 1)
    one.putpixel((2, 2), 0)
    loaded = decode(encoded(one, "PNG"))
    assert [pixel(loaded, 0, 0), pixel(loaded, 2, 2)] == [(255, 255, 255), (0, 0, 0)]
    keyed = encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert pixel(decode(keyed), 0, 0) == (255, 255, 255)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"])
def test_every_format_and_its_truncation(format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, format)
    loaded = decode(data)
    assert (loaded.format, loaded.image.size) == (format, (64, 64))
    for length in (0, 10, len(data) // 2):
        with pytest.raises(UserError) as caught:
            decode(data[:length])
        assert "\n" not in str(caught.value) and str(caught.value).startswith("cannot use the image x: ")


def test_broken_exif_does_not_lose_the_photo() -> None:
    data = encoded(halves(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 20)
    assert decode(data).image.size == (16, 8)
    exif = Image.Exif()
    exif[ORIENTATION] = 99
    assert decode(encoded(halves(), "JPEG", exif=exif)).image.size == (16, 8)


def test_bombs_are_refused_before_decoding() -> None:
    bomb = png(20_000, 20_000, 1, 0, b"\0")
    with pytest.raises(ImageError, match="more than 100 megapixels"):
        decode(bomb)
    between = png(9_600, 9_600, 1, 0, b"\0")  # Pillow warns here; we say only that the data is cut short
    with pytest.raises(ImageError, match="cut short"):
        decode(between)
    with pytest.raises(ImageError, match="more than 100 megapixels"):
        decode(png(10_001, 10_000, 1, 0, b"\0"))
    small = encoded(halves(), "PNG")
    with pytest.raises(ImageError, match=r"0\.000127 megapixels"):
        decode_image(small, "x", max_pixels=127)
    assert decode_image(small, "x", max_pixels=128).image.size == (16, 8)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"not an image at all", "not an image in a known format"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 40, "HEIC.*export it as JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image in a known format"),
    ],
)
def test_other_content_is_named(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        decode(data)


def test_paths(tmp_path: Path) -> None:
    path = tmp_path / "写 é photo.jpg"
    path.write_bytes(encoded(halves(), "PNG"))
    assert load_image(path).size == load_image(str(path)).size == (16, 8)
    assert read_image(path).format == "PNG"
    cases = [(tmp_path, "is a folder"), (tmp_path / "gone.png", "no such file"), (Path("a\0b"), "no such file")]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        cases.append((tmp_path / "pipe.png", "not an ordinary file"))
    for bad, words in cases:
        with pytest.raises(UserError, match=words):
            load_image(bad)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")

    def refuse(_path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ImageError, match=r"a\.png: it cannot be read \(Permission denied\); check its permissions"):
        load_image(path)


SAMPLES = [
    encoded(halves(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
    encoded(halves(), "PNG"),
    encoded(halves(), "GIF", save_all=True, append_images=[Image.new("RGB", (16, 8))]),
    encoded(halves(), "WEBP"),
    encoded(halves(), "TIFF"),
    encoded(halves(), "BMP"),
    encoded(halves(), "PPM"),
]


def image_or_user_error(data: bytes) -> None:
    try:
        decode(data)
    except UserError as error:
        assert "\n" not in str(error)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([b"", *(sample[:12] for sample in SAMPLES)]), st.binary(max_size=300))
def test_random_bytes_give_an_image_or_a_user_error(head: bytes, tail: bytes) -> None:
    image_or_user_error(head + tail)


def test_damaged_files_give_an_image_or_a_user_error() -> None:
    chance = random.Random(0)
    for sample in SAMPLES:
        for _ in range(40):
            data = bytearray(sample)
            for _ in range(chance.randint(1, 6)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            image_or_user_error(bytes(data[: chance.randrange(8, len(data) + 1)] if chance.random() < 0.3 else data))


def test_to_tensor() -> None:
    pixels_CHW = to_tensor(halves(4, 2))
    assert pixels_CHW.shape == (3, 2, 4) and pixels_CHW.dtype == torch.uint8 and pixels_CHW.is_contiguous()
    assert pixels_CHW[:, 0, 0].tolist() == [255, 0, 0] and pixels_CHW[:, 1, 3].tolist() == [0, 0, 255]
    with pytest.raises(ValueError, match="mode L"):
        to_tensor(Image.new("L", (2, 2)))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_centre_fit() -> None:
    fitted = fit(halves(40, 20), 10)
    assert (fitted.original, fitted.resized, fitted.left, fitted.top) == ((40, 20), (20, 10), 5, 0)
    pixels = fitted.pixels_CHW
    assert not fitted.flipped and pixels.shape == (3, 10, 10) and pixels.dtype == torch.float32
    assert pixels[0, :, 0].eq(1.0).all() and pixels[0, :, -1].eq(-1.0).all()
    assert fit(halves(16, 16), 16).pixels_CHW.equal(to_tensor(halves(16, 16)).float() / 127.5 - 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 24), st.sampled_from(Crop), st.booleans())
def test_fit_always_fits(width: int, height: int, resolution: int, mode: Crop, flip: bool) -> None:
    fitted = fit(Image.new("RGB", (width, height), (0, 128, 255)), resolution, mode, seeded(), flip)
    assert fitted.pixels_CHW.shape == (3, resolution, resolution)
    assert fitted.pixels_CHW.min() == -1.0 and fitted.pixels_CHW.max() == 1.0
    assert min(fitted.resized) == resolution
    exact = max(width, height) * resolution / min(width, height)
    assert abs(max(fitted.resized) - exact) <= 0.5
    assert 0 <= fitted.left <= fitted.resized[0] - resolution and 0 <= fitted.top <= fitted.resized[1] - resolution


def test_random_fit_is_what_it_says() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 11, 3), dtype=np.uint8))
    seen = set()
    for seed in range(60):
        fitted = fit(image, 8, Crop.RANDOM, seeded(seed), flip=True)
        expected = to_tensor(image)[:, :, fitted.left : fitted.left + 8].float() / 127.5 - 1
        assert fitted.pixels_CHW.equal(expected.flip(2) if fitted.flipped else expected)
        seen.add((fitted.left, fitted.top, fitted.flipped))
    assert seen == {(left, 0, flipped) for left in range(4) for flipped in (False, True)}


def test_fit_draws_three_numbers_whatever_it_does() -> None:
    def after(size: tuple[int, int], mode: Crop, flip: bool) -> tuple[Fitted, float]:
        generator = seeded(3)
        return fit(Image.new("RGB", size), 8, mode, generator, flip), float(torch.rand(1, generator=generator))

    tall, reference = after((8, 30), Crop.RANDOM, False)
    flipped, same = after((8, 30), Crop.RANDOM, True)
    assert tall.top == flipped.top and same == reference
    assert after((30, 9), Crop.CENTER, True)[1] == after((8, 8), Crop.RANDOM, True)[1] == reference
    assert after((8, 30), Crop.CENTER, False)[1] == float(torch.rand(1, generator=seeded(3)))


def test_fit_refuses() -> None:
    with pytest.raises(ValueError, match="generator"):
        fit(halves(), 8, Crop.RANDOM)
    with pytest.raises(ValueError, match="generator"):
        fit(halves(), 8, flip=True)
    with pytest.raises(ValueError, match="at least 1"):
        fit(halves(), 0)
    with pytest.raises(UserError, match="1x4000 pixels is too long and thin for resolution 512; crop it"):
        fit(Image.new("RGB", (1, 4000)), 512)
