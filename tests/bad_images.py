"""A folder with one image of every kind that an audit must tell of, and what it must say."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

#: file → (status, what its reason holds)
EXPECTED = {
    ".DS_Store": ("ignored", "system or hidden"),
    "=cmd.png": ("accepted", ""),
    "alpha.png": ("accepted", "RGBA"),
    "anim.gif": ("accepted", "several frames"),
    "bomb.png": ("rejected", "image bombs"),
    "broken.jpg": ("rejected", "no such file"),
    "cmyk.jpg": ("accepted", "CMYK"),
    "cut.jpg": ("rejected", "cut short"),
    "cut_end.jpg": ("rejected", "last pixels are missing"),
    "deep.png": ("accepted", "16-bit"),
    "here/": ("ignored", "linked folder"),
    "long.png": ("rejected", "odd aspect ratio: 600x40"),
    "loop.png": ("rejected", "no such file"),
    "named.png": ("accepted", "read as JPEG"),
    "new\nline.png": ("accepted", ""),
    "notes.csv": ("ignored", "no image by its ending .csv"),
    "ok.jpg": ("accepted", ""),
    "ok.txt": ("ignored", "caption"),
    "palette.png": ("accepted", "mode P"),
    "pipe.jpg": ("rejected", "ordinary file"),
    "readme.txt": ("ignored", "text that is no image's caption"),
    "same.jpg": ("accepted", ""),
    "sub/x.png": ("accepted", ""),
    "sub/x.webp": ("accepted", ""),
    "text.jpg": ("rejected", "not an image"),
    "tiny.png": ("rejected", "too small: 20x20"),
    "turned.jpg": ("accepted", "turned by 90° as its EXIF says"),
    "two.jpg": ("accepted", ""),
    "zero.png": ("rejected", "empty"),
    "zmłynek <b>&.png": ("accepted", ""),
}


def picture(seed: int, width: int = 96, height: int = 80, mode: str = "RGB") -> Image.Image:
    """Smooth waves, a pattern of its own for each seed."""
    y, x = np.mgrid[0:height, 0:width]
    f = np.random.default_rng(seed).uniform(3, 15, 6)
    waves = [127 + 120 * np.sin(f[i] * x / width + f[i + 3] * y / height) for i in range(3)]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8)).convert(mode)


def write_bad_images(folder: Path) -> None:
    """All of EXPECTED, and a name that is not UTF-8 where the file system takes one."""
    (folder / "sub").mkdir(parents=True)
    picture(0).save(folder / "ok.jpg")
    data = (folder / "ok.jpg").read_bytes()
    (folder / "same.jpg").write_bytes(data)
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "cut_end.jpg").write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    (folder / "ok.txt").write_text("waves", encoding="utf-8")
    turned = Image.Exif()
    turned[0x112] = 6
    picture(1).save(folder / "turned.jpg", exif=turned)
    for seed, (name, mode) in enumerate((("cmyk.jpg", "CMYK"), ("palette.png", "P"), ("alpha.png", "RGBA")), start=2):
        picture(seed, mode=mode).save(folder / name)
    deep = np.random.default_rng(0).integers(0, 65536, (64, 64)).astype(np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    picture(5).save(folder / "anim.gif", save_all=True, append_images=[picture(6)])
    picture(7).save(folder / "two.jpg", format="MPO", save_all=True, append_images=[picture(8)])
    picture(9, 20, 20).save(folder / "tiny.png")
    picture(10, 600, 40).save(folder / "long.png")
    picture(11).save(folder / "named.png", format="JPEG")
    for seed, name in enumerate(("=cmd.png", "new\nline.png", "zmłynek <b>&.png", "sub/x.png", "sub/x.webp"), start=12):
        picture(seed).save(folder / name)
    (folder / "zero.png").touch()
    for name in ("text.jpg", "notes.csv", "readme.txt", ".DS_Store"):
        (folder / name).write_text("hello", encoding="utf-8")
    (folder / "bomb.png").write_bytes(_bomb())
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "broken.jpg").symlink_to("gone.jpg")
    (folder / "here").symlink_to(".")
    os.mkfifo(folder / "pipe.jpg")


def _bomb() -> bytes:
    """A PNG that says it has 8.1 gigapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 90000, 90000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
