"""Side-cars: where an image's caption lies, beside it (dog.txt for dog.jpg) or below another folder; writing them."""

import os
import unicodedata
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from boothlab.errors import UserError
from boothlab.files import cannot_write, shown, write_text
from boothlab.images.audit import read_caption

_WRITERS = 8  # they wait for the disk, not for the processor


class Sidecars:
    """The captions of the images of a folder, beside them or below `elsewhere` in the same subfolders."""

    def __init__(self, images: Path, elsewhere: Path | None):
        """Raises UserError for a place where captions cannot be written."""
        self.images = images
        self.root = images if elsewhere is None else elsewhere
        if elsewhere is None:
            if not os.access(images, os.W_OK | os.X_OK):
                raise UserError(
                    f"the images folder {shown(images)} is read-only, so captions cannot lie beside the images; "
                    "name another folder for them, as in captions_dir=captions"
                )
            return
        if elsewhere.exists() and not elsewhere.is_dir():
            raise UserError(f"captions_dir={shown(elsewhere)}: is a file; name a folder for the captions")
        try:
            elsewhere.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(elsewhere, error) from error
        if not os.access(elsewhere, os.W_OK | os.X_OK):
            raise UserError(f"captions_dir={shown(elsewhere)}: is read-only; name a folder you may write to")

    def path_of(self, file: str) -> Path:
        """Where the caption of an image lies: one that is there, however its accents and its ending are written."""
        path = (self.root / file).with_suffix(".txt")
        if path.exists():
            return path
        for name in (path.stem + ".TXT", *(unicodedata.normalize(form, path.name) for form in ("NFC", "NFD"))):
            other = path.with_name(name)  # macOS may store one name composed and the other decomposed
            if other.exists():
                return other
        return path

    def existing(self, file: str, warnings: list[str]) -> str | None:
        """The caption that is there already, or None; what is there and no caption is told in `warnings`."""
        path = self.path_of(file)
        return read_caption(path, warnings) if path.is_file() else None

    def occupied(self, file: str) -> bool:
        """Whether something is there that only `overwrite` may replace: any file that holds something."""
        path = self.path_of(file)
        return os.path.lexists(path) and not (path.is_file() and path.stat().st_size == 0)

    def write(self, captions: Iterable[tuple[str, str]]) -> None:
        """Write the captions of some images, each whole or not at all. Raises UserError if the disk refuses."""
        with ThreadPoolExecutor(_WRITERS, thread_name_prefix="captions") as pool:
            for done in [pool.submit(self._write_one, file, caption) for file, caption in captions]:
                done.result()

    def _write_one(self, file: str, caption: str) -> None:
        path = self.path_of(file)
        if path.is_dir():
            raise UserError(f"cannot write {shown(path)}: a folder of that name is in the way; move it away")
        write_text(path, caption + "\n")


def sidecar_key(file: str) -> str:
    """What two images share when their captions would be one file: dog.jpg and dog.png."""
    return unicodedata.normalize("NFC", str(PurePosixPath(file).with_suffix("")))
