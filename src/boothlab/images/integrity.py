"""Damage that Pillow passes over in silence: PNG data whose checksum is wrong, JPEG data that ends too early."""

import io
import struct
import zlib

from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT"})
_END_OF_IMAGE = b"\xff\xd9"
# Any data but zeros, and without a marker: where it is decoded, it does not come out as the grey of missing data.
_FILLER = bytes((0x5A, 0xC3, 0x17, 0x99, 0x2E, 0xB4)) * 64


def damaged_png_chunk(data: bytes) -> str | None:
    """The name of the first PNG chunk with pixels or colours in it whose checksum is wrong; None if all are right.

    Pillow leaves the checksums of the image data unread. A chunk that is cut short is its to find.
    """
    at = len(_SIGNATURE)
    while data.startswith(_SIGNATURE) and at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, end = data[at + 4 : at + 8], at + 8 + length
        if kind in _PIXELS and end + 4 <= len(data):
            (checksum,) = struct.unpack(">I", data[end : end + 4])
            if zlib.crc32(memoryview(data)[at + 4 : end]) != checksum:
                return kind.decode("ascii")
        at = end + 4
    return None


def ends_too_early(data: bytes, decoded: Image.Image, at_least: int | None = None) -> bool:
    """Whether a JPEG lacks its last pixels, although it has an end marker; `decoded` is what Pillow made of it.

    The decoder fills what is missing with plain grey and says nothing. So it is asked again with more data before the
    end marker: a picture that was whole does not change by that. `at_least` is what `decoded` was drafted with, if it
    was: the missing blocks are missing at any scale.
    """
    end = data.rfind(_END_OF_IMAGE)
    if end < 0:
        return False
    with Image.open(io.BytesIO(data[:end] + _FILLER + data[end:]), formats=("JPEG",)) as longer:
        if at_least is not None:
            longer.draft(None, (at_least, at_least))
        return longer.mode != decoded.mode or longer.tobytes() != decoded.tobytes()
