"""The audit of an image folder: what it accepts, rejects, ignores and warns of."""

import os
import random
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from boothlab.errors import UserError
from boothlab.files import sha256_file
from boothlab.images.audit import Audit, audit_folder


def picture(path: Path, colour: str = "red", size: tuple[int, int] = (12, 10), **options: Any) -> Path:
    Image.new("RGB", size, colour).save(path, **options)
    return path


def audit(folder: Path, **options: Any) -> Audit:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return audit_folder(folder, **options)


def names(pairs: list[tuple[Path, str]]) -> list[str]:
    return [path.name for path, _ in pairs]


def test_ordinary_phone_photos_give_no_warning(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "Maker"
    picture(tmp_path / "a.jpg", exif=exif)
    frames = [Image.new("RGB", (4, 4), "green")]
    picture(tmp_path / "b.JPG", "blue", format="MPO", save_all=True, append_images=frames, exif=exif)
    found = audit(tmp_path)
    assert found.warnings == [] and found.rejected == [] and found.ignored == []
    first, second = found.accepted
    assert (first.width, first.height, first.mode, first.format, first.notes) == (10, 12, "RGB", "JPEG", ())
    assert (second.width, second.height, second.format, second.notes) == (10, 12, "MPO", ())
    assert first.sha256 == sha256_file(tmp_path / "a.jpg") and first.caption is None


def test_order_does_not_depend_on_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, colour in [("10.png", "red"), ("2.png", "blue"), ("B.png", "green"), ("a.png", "black")]:
        picture(tmp_path / name, colour)
    for name in ("z.png", "y.png"):
        (tmp_path / name).write_text("no image")
    listing = list(tmp_path.iterdir())
    for seed in range(5):
        random.Random(seed).shuffle(listing)
        monkeypatch.setattr(Path, "iterdir", lambda _self, order=tuple(listing): iter(order))
        found = audit(tmp_path)
        assert [photo.path.name for photo in found.accepted] == ["10.png", "2.png", "B.png", "a.png"]
        assert names(found.rejected) == ["y.png", "z.png"]


def test_what_is_passed_over_is_listed(tmp_path: Path) -> None:
    picture(tmp_path / "dog.png")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._dog.png", "README.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "dog.txt").write_text("a dog")
    (tmp_path / "more").mkdir()
    picture(tmp_path / "more" / "cat.png")
    found = audit(tmp_path)
    assert [photo.path.name for photo in found.accepted] == ["dog.png"]
    assert found.rejected == [] and found.warnings == []
    assert {path.name: kind for path, kind in found.ignored} == {
        ".DS_Store": "system or hidden file",
        "._dog.png": "system or hidden file",
        "README.txt": "text that is no image's caption",
        "Thumbs.db": "system or hidden file",
        "desktop.ini": "system or hidden file",
        "dog.txt": "caption",
        "more": "subfolder (not searched)",
    }
    assert names(found.ignored) == sorted(names(found.ignored))


@pytest.mark.parametrize(
    ("content", "caption", "warned"),
    [
        ("a photo of é 写".encode(), "a photo of é 写", None),
        (b"\xef\xbb\xbfa dog", "a dog", None),
        (b"  two\r\n lines \n", "two lines", None),
        (b"caf\xe9", None, "not UTF-8"),
        ("a dog".encode("utf-16"), None, "not UTF-8"),
        ("a dog".encode("utf-16-le"), None, "not UTF-8"),
        (b" \n", None, "empty"),
    ],
)
def test_captions(tmp_path: Path, content: bytes, caption: str | None, warned: str | None) -> None:
    picture(tmp_path / "dog.png")
    (tmp_path / "dog.txt").write_bytes(content)
    found = audit(tmp_path)
    assert found.accepted[0].caption == caption
    assert len(found.warnings) == (warned is not None)
    if warned:
        assert warned in found.warnings[0] and "dog.txt" in found.warnings[0]


def test_caption_names_in_either_unicode_form_and_any_case(tmp_path: Path) -> None:
    picture(tmp_path / (unicodedata.normalize("NFD", "é") + " 写.png"))
    (tmp_path / (unicodedata.normalize("NFC", "é") + " 写.TXT")).write_text("found")
    assert audit(tmp_path).accepted[0].caption == "found"


def test_unreadable_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "dog.png")
    (tmp_path / "dog.txt").symlink_to(tmp_path / "gone")
    found = audit(tmp_path)
    assert found.accepted[0].caption is None
    assert len(found.warnings) == 1 and "dog.txt cannot be read" in found.warnings[0]


def test_bad_files_are_rejected_with_the_reason(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    whole = picture(tmp_path / "cut.jpg", size=(64, 64)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    picture(tmp_path / "pixel.png", size=(1, 1))
    picture(tmp_path / "small.png", size=(50, 7))
    picture(tmp_path / "strip.png", size=(201, 10))
    (tmp_path / "text.jpg").write_text("I am a text")
    reasons = {path.name: reason for path, reason in audit(tmp_path).rejected}
    assert reasons.keys() == {p.name for p in tmp_path.iterdir()} - {"good.png"}
    for name, words in {
        "cut.jpg": "cut short",
        "empty.jpg": "is empty",
        "gone.png": "no such file",
        "pixel.png": "1x1 pixels, below the smallest side of 8",
        "small.png": "50x7 pixels",
        "strip.png": "longer than 20 times",
        "text.jpg": "not an image",
    }.items():
        assert words in reasons[name] and ";" in reasons[name] and name not in reasons[name]


def test_limits_are_the_callers(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", size=(8, 8))
    picture(tmp_path / "b.png", size=(200, 10))
    assert len(audit(tmp_path).accepted) == 2
    assert names(audit(tmp_path, min_side=9).rejected) == ["a.png"]
    assert names(audit(tmp_path, max_aspect=19.9).rejected) == ["b.png"]
    assert names(audit(tmp_path, max_pixels=64).rejected) == ["b.png"]


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", format="PNG")
    picture(tmp_path / "b", "blue", format="JPEG")
    picture(tmp_path / "c.jpeg", "green")
    found = audit(tmp_path)
    assert [photo.format for photo in found.accepted] == ["PNG", "JPEG", "JPEG"]
    assert found.accepted[0].notes == ("read as PNG, though its name ends in .jpg",)
    assert found.accepted[1].notes == ("read as JPEG, though its name has no ending",)
    assert found.accepted[2].notes == () and found.warnings == []


def test_duplicates_are_a_warning(tmp_path: Path) -> None:
    data = picture(tmp_path / "a.png").read_bytes()
    picture(tmp_path / "b.png", "blue")
    (tmp_path / "c.png").write_bytes(data)
    found = audit(tmp_path)
    assert len(found.accepted) == 3 and len(found.warnings) == 1
    assert "c.png is the same file as a.png" in found.warnings[0]


def test_notes_are_no_warnings(tmp_path: Path) -> None:
    Image.new("RGBA", (9, 9), (1, 2, 3, 4)).save(tmp_path / "a.png")
    found = audit(tmp_path)
    assert found.accepted[0].notes == ("transparent parts put on white",)
    assert found.accepted[0].mode == "RGBA" and found.warnings == []


def test_file_without_read_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "good.png")
    locked = picture(tmp_path / "locked.png", "blue")
    if os.name != "nt" and os.geteuid() != 0:
        locked.chmod(0)
    else:  # permissions do not bind the superuser, so the refusal is made by hand
        read = Path.read_bytes

        def refuse(path: Path) -> bytes:
            if path == locked:
                raise PermissionError(13, "Permission denied")
            return read(path)

        monkeypatch.setattr(Path, "read_bytes", refuse)
    found = audit(tmp_path)
    assert names(found.rejected) == ["locked.png"] and "Permission denied" in found.rejected[0][1]
    assert len(found.accepted) == 1


def refused(folder: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        audit_folder(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unusable_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "does not exist; check the path" in refused(tmp_path / "none\nhere")
    file = picture(tmp_path / "a.png")
    assert "is a file, not a folder" in refused(file)
    assert "does not exist" in refused("a\0b")
    (tmp_path / "empty").mkdir()
    assert "is empty; put JPEG" in refused(tmp_path / "empty")
    (tmp_path / "empty" / ".DS_Store").touch()
    (tmp_path / "empty" / "sub").mkdir()
    message = refused(tmp_path / "empty")
    assert "holds no image (only: subfolder (not searched), system or hidden file)" in message

    def refuse(_path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert "cannot be read (Permission denied); check its permissions" in refused(tmp_path)


def test_no_usable_image_lists_the_first_reasons(tmp_path: Path) -> None:
    for index in range(5):
        (tmp_path / f"{index}.jpg").write_text("text")
    message = refused(tmp_path)
    assert message.startswith("none of the 5 file(s) in ")
    assert "0.jpg: it is not an image" in message and "2.jpg: " in message and "3.jpg" not in message
    assert "and 2 more" in message and message.endswith("photos")
