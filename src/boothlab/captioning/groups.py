"""Groups of images, such as hotels: by subfolder, or by a column of a CSV file."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from boothlab.errors import UserError
from boothlab.files import shown

ALL = "."
"""The group of images that lie in the folder itself."""


@dataclass(frozen=True)
class Groups:
    """The group of each image: its first `depth` subfolders, or what a table says of its path or its name."""

    depth: int = 1
    table: Mapping[str, str] | None = field(default=None, repr=False)

    def of(self, file: str) -> str:
        """The group of a file (its path in the folder); "" where a table does not know it."""
        path = PurePosixPath(file)
        if self.table is not None:
            return self.table.get(file, self.table.get(path.name, ""))
        return "/".join(path.parent.parts[: self.depth]) or ALL


def read_groups(path: Path, column: str) -> dict[str, str]:
    """File (path in the images folder, or name) to group, from a CSV file with the columns `file` and `column`.

    Raises UserError if it cannot be read, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            lacking = [name for name in ("file", column) if name not in (rows.fieldnames or ())]
            if lacking:
                there = ", ".join(map(shown, rows.fieldnames or ())) or "none"
                raise UserError(f"groups={shown(path)}: has no column {shown(lacking[0])}; its columns are: {there}")
            return {
                row["file"].replace("\\", "/"): " ".join((row[column] or "").split()) for row in rows if row["file"]
            }
    except OSError as error:
        raise UserError(f"groups={shown(path)}: cannot be read ({error.strerror or error}); check the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"groups={shown(path)}: is not a UTF-8 CSV file ({shown(str(error))}); save it as one"
        ) from error
