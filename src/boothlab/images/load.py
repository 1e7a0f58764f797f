"""The one image loader: any photo becomes upright 8-bit RGB here, and RGB becomes the tensors training uses."""

import io
import warnings
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from boothlab.errors import UserError
from boothlab.files import sha256_bytes, shown
from boothlab.images.integrity import damaged_png_chunk, ends_too_early

MAX_PIXELS = 100_000_000
MAX_FILE_BYTES = 1 << 30
# A list of our own: Pillow would otherwise try formats that run other programs (EPS) or that match by name alone.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
READABLE = "JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000 or AVIF"
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(UserError):
    """An image that cannot be used; `reason` is the message without the file's name."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"cannot use the image {name}: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class Loaded:
    """A decoded image: upright RGB `image`; `format` and `mode` as stored in the file; what was done, in `notes`.

    `size` is (width, height) in pixels of the whole picture, upright, also where `image` is a smaller copy of it.
    `orientation` is the EXIF value, 1 to 8; 1 is as stored.
    """

    image: Image.Image
    format: str
    mode: str
    sha256: str
    notes: tuple[str, ...]
    size: tuple[int, int]
    orientation: int


class Crop(StrEnum):
    """Which square of the resized image is kept."""

    CENTER = "center"
    RANDOM = "random"


@dataclass(frozen=True)
class Fitted:
    """What `fit` made, and every decision it took.

    `pixels_CHW` is float32 in [-1, 1]. Sizes are (width, height) in pixels; `left` and `top` are offsets in the resized
    image, before the flip.
    """

    pixels_CHW: Tensor
    original: tuple[int, int]
    resized: tuple[int, int]
    left: int
    top: int
    flipped: bool


def load_image(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The photo as upright 8-bit RGB; `decode_image` says what is done to each kind. Raises ImageError (UserError)."""
    return read_image(path, max_pixels=max_pixels).image


def read_image(path: Path | str, *, max_pixels: int = MAX_PIXELS, at_least: int | None = None) -> Loaded:
    """Like `load_image`, with the file's format, mode, hash and notes. Raises ImageError (UserError).

    With `at_least` a JPEG is decoded at a half, a quarter or an eighth of its size where its shorter side keeps so many
    pixels: for hashes and thumbnails, where it is several times as fast. What is refused stays the same.
    """
    name = shown(path)
    try:
        file = Path(path)
        if file.is_dir():
            raise ImageError(name, "it is a folder; give an image file")
        if not file.exists():
            raise ImageError(name, "there is no such file; check the path (it may be a broken link)")
        if not file.is_file():  # reading a pipe or a device would never end
            raise ImageError(name, "it is not an ordinary file; give an image file")
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ImageError(name, f"the file is larger than {MAX_FILE_BYTES >> 20} MiB; save it smaller")
        data = file.read_bytes()
    except OSError as error:
        raise ImageError(name, f"it cannot be read ({error.strerror or error}); check its permissions") from error
    return decode_image(data, name, max_pixels=max_pixels, at_least=at_least)


def decode_image(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS, at_least: int | None = None) -> Loaded:
    """Decode the bytes of an image file; the content decides the format, not the name (used in messages only).

    Turned upright by its EXIF orientation; the first frame of MPO and of animations; transparency put on white;
    16-bit grey scaled (65535 becomes 255), not clipped; CMYK (in JPEG: inverted, as Adobe's tools write it),
    palette, grey and 1-bit converted. Colour profiles are not applied. Pillow's warnings are kept quiet. `at_least` is
    that of `read_image`.

    Raises:
        ImageError: empty, not an image, damaged (as far as its format has checksums), cut short, more than
            `max_pixels`, or pixels with no 8-bit meaning.
    """
    if not data:
        raise ImageError(name, "the file is empty; delete it or copy it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(data, name, max_pixels, at_least)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(name, max_pixels) from error
    except UnidentifiedImageError as error:
        raise ImageError(name, _why_unknown(data)) from error
    except Exception as error:  # Pillow's plugins raise almost anything on damaged files
        detail = shown(" ".join(str(error).split())[:120]) or type(error).__name__
        raise ImageError(name, f"it is damaged or cut short ({detail}); copy or export it again") from error


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as a contiguous uint8 tensor (3, height, width) in 0..255. Raises ValueError if it is not RGB."""
    if image.mode != "RGB":
        raise ValueError(f"expected an RGB image, got mode {image.mode}; load it with load_image")
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def fit(
    image: Image.Image,
    resolution: int,
    mode: Crop = Crop.CENTER,
    generator: torch.Generator | None = None,
    flip: bool = False,
) -> Fitted:
    """Resize the shorter side to `resolution` pixels (Lanczos), crop a square, and perhaps mirror it.

    Boxes are whole pixels. With shorter side s and longer side l, the longer becomes (2·l·resolution + s) // (2·s),
    that is, rounded half up. CENTER takes left = (width - resolution) // 2, and top likewise. RANDOM takes each offset
    uniformly from 0 to (side - resolution), both included. `flip` mirrors left to right with probability 1/2.

    RANDOM and `flip` need a CPU `generator`. Each such call draws exactly three numbers, whatever the image's shape
    and whichever of the two is on, so that turning flips on does not move the crops and one photo's size does not
    change what happens to the next.

    Raises:
        ValueError: no generator where one is needed, a resolution below 1, or an image that is not RGB.
        UserError: the image is so long and thin that its resized form would have more than MAX_PIXELS.
    """
    if resolution < 1:
        raise ValueError(f"resolution must be at least 1 pixel, got {resolution}")
    width, height = _resized_size(image.size, resolution)
    left, top, flipped = (width - resolution) // 2, (height - resolution) // 2, False
    if mode == Crop.RANDOM or flip:
        if generator is None:
            raise ValueError("random crops and flips need a generator")
        draws = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        if mode == Crop.RANDOM:
            left, top = int(draws[0] * (width - resolution + 1)), int(draws[1] * (height - resolution + 1))
        flipped = flip and draws[2] < 0.5
    square = image.resize((width, height), Image.Resampling.LANCZOS)
    square = square.crop((left, top, left + resolution, top + resolution))
    if flipped:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels_CHW = to_tensor(square).to(torch.float32) / 127.5 - 1.0
    return Fitted(pixels_CHW, image.size, (width, height), left, top, flipped)


def _resized_size(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    shorter, longer = min(size), max(size)
    long_side = (2 * longer * resolution + shorter) // (2 * shorter)
    if long_side * resolution > MAX_PIXELS:
        raise UserError(
            f"an image of {size[0]}x{size[1]} pixels is too long and thin for resolution {resolution}; crop it first"
        )
    return (resolution, long_side) if size[0] <= size[1] else (long_side, resolution)


def _decode(data: bytes, name: str, max_pixels: int, at_least: int | None) -> Loaded:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        # Before load(): the header gives the size, and nothing that large is ever decoded.
        if image.width * image.height > max_pixels:
            raise _too_large(name, max_pixels)
        if image.format == "PNG" and (chunk := damaged_png_chunk(data)):
            raise ImageError(name, f"it is damaged (its {chunk} data has a wrong checksum); copy it again")
        notes: list[str] = []
        width, height = image.size
        if at_least is not None:
            image.draft(None, (at_least, at_least))  # does nothing to other formats
        image.load()
        if image.format == "JPEG" and ends_too_early(data, image, at_least):
            raise ImageError(name, "it is cut short (its last pixels are missing); copy or export it again")
        file_format, mode = image.format or "unknown", image.mode
        rgb = _to_rgb(image, name, notes)
        orientation = _orientation(image, notes)
        if orientation in _UPRIGHT:
            rgb = rgb.transpose(_UPRIGHT[orientation])
        size = (height, width) if orientation >= 5 else (width, height)
        rgb.info.clear()  # no orientation or profile may travel on and be applied a second time
        if _has_more_frames(image):
            notes.append("several frames: only the first is used")
        return Loaded(rgb, file_format, mode, sha256_bytes(data), tuple(notes), size, orientation)


def _to_rgb(image: Image.Image, name: str, notes: list[str]) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey_to_rgb(image, name, notes)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        lowest = rgba.getchannel("A").getextrema()[0]
        if isinstance(lowest, int | float) and lowest < 255:
            notes.append("transparent parts put on white")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if image.mode == "CMYK":
        notes.append("CMYK converted without its colour profile")
    return image.convert("RGB")


def _deep_grey_to_rgb(image: Image.Image, name: str, notes: list[str]) -> Image.Image:
    """Grey of 16 bits, scaled so that 65535 becomes 255 (rounded), never clipped as Pillow's own convert does."""
    values = np.asarray(image)
    # Pillow opens some 16-bit files (PGM, signed TIFF) as 32-bit "I"; what does not fit 16 bits has no known white.
    if image.mode == "F" or int(values.min()) < 0 or int(values.max()) > 65535:
        raise ImageError(name, "it has floating-point or 32-bit pixels; save it with 8 or 16 bits a channel")
    notes.append("16-bit grey scaled to 8 bits")
    grey = ((values.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        notes.append("transparent parts put on white")
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _orientation(image: Image.Image, notes: list[str]) -> int:
    """The EXIF orientation, 1 where there is none or none that means anything."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # broken EXIF is no reason to lose a photo whose pixels are fine
        notes.append("EXIF data unreadable: orientation taken as stored")
        return 1
    return orientation if isinstance(orientation, int) and orientation in _UPRIGHT else 1


def _has_more_frames(image: Image.Image) -> bool:
    if image.format == "MPO":  # the other frames of a phone's photo are previews and depth maps, not news
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a later frame is damaged; the first, which is all we use, is already decoded
        return True


def _too_large(name: str, max_pixels: int) -> ImageError:
    limit = f"{max_pixels / 1e6:g} megapixels"
    return ImageError(name, f"it has more than {limit}, the limit that guards against image bombs; save it smaller")


def _why_unknown(data: bytes) -> str:
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
        return "HEIC photos are not supported; export it as JPEG or PNG"
    return f"it is not an image in a known format, or its beginning is damaged; use {READABLE}"
