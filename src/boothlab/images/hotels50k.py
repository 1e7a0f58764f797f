"""The CSV files of the Hotels-50K data set, checked line by line, and the seeded choice of hotels from them.

The schema is the one its repository (GWUvision/Hotels-50K) publishes; none of its data is here. The files are read as
a stream: the training set has a million lines.
"""

import csv
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from boothlab.errors import UserError
from boothlab.files import shown
from boothlab.seeding import derive_seed

UNKNOWN_CHAIN = "-1"
"""The chain of hotels whose chain is not known, as the data set has it."""
IMAGE_COLUMNS = ("image_id", "hotel_id", "image_url", "image_source", "upload_timestamp")
COLUMNS = {
    "chain_info.csv": ("chain_id", "chain_name"),
    "hotel_info.csv": ("hotel_id", "hotel_name", "chain_id", "latitude", "longitude"),
    "train_set.csv": IMAGE_COLUMNS,
    "test_set.csv": IMAGE_COLUMNS,
}
_ID = re.compile(r"-?[0-9]{1,18}")


class Split(NamedTuple):
    """A file of images."""

    name: str

    @property
    def file(self) -> str:
        """Its file name."""
        return f"{self.name}_set.csv"


@dataclass(frozen=True)
class Hotel:
    """A hotel; `chain_id` is UNKNOWN_CHAIN where none is known. Degrees, or None where the file has none."""

    id: str
    name: str
    chain_id: str
    latitude: float | None
    longitude: float | None


class HotelImage(NamedTuple):
    """A line of train_set.csv or test_set.csv. `source` is traffickcam or the name of a travel website."""

    id: str
    hotel_id: str
    url: str
    source: str
    timestamp: str


@dataclass
class Catalogue:
    """Chains by id, hotels by id, and how many images of each source every hotel has in a split.

    `orphans` are images of hotels that hotel_info.csv does not have, `doubles` lines whose image_id was there before:
    both are left out of `counts`. `misplaced` hotels have coordinates beyond ±90 and ±180 degrees.
    """

    folder: Path
    split: Split
    chains: dict[str, str]
    hotels: dict[str, Hotel]
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    orphans: int = 0
    doubles: int = 0
    misplaced: int = 0

    def chain_name(self, chain_id: str) -> str:
        """The name of a chain; `unknown`, or its number, if it has none."""
        default = "unknown" if chain_id == UNKNOWN_CHAIN else f"chain {chain_id}"
        return self.chains.get(chain_id) or default

    def images_of(self, hotel_id: str) -> int:
        """How many images of a hotel the split has."""
        return self.counts[hotel_id].total() if hotel_id in self.counts else 0


def read_catalogue(folder: Path, split: Split) -> Catalogue:
    """Read and check the chains, the hotels and a split's images.

    Raises UserError, naming file and line, for a missing file, other columns than the published ones, an id that is no
    whole number or is given twice, a hotel without a name, a coordinate that is no number, an image without an address
    or a source.
    """
    if not folder.is_dir():
        raise UserError(f"data={shown(folder)}: there is no such folder; give the one with chain_info.csv in it")
    chains = _unique(folder, "chain_info.csv")
    hotels = _unique(folder, "hotel_info.csv")
    catalogue = Catalogue(
        folder,
        split,
        {chain: row[1] for chain, (_, row) in chains.items()},
        {hotel: _hotel(folder / "hotel_info.csv", line, row) for hotel, (line, row) in hotels.items()},
    )
    catalogue.misplaced = sum(not _on_earth(hotel) for hotel in catalogue.hotels.values())
    seen: set[int] = set()
    for image in read_images(folder, split):
        number = int(image.id)
        if number in seen:
            catalogue.doubles += 1
        elif image.hotel_id not in catalogue.hotels:
            catalogue.orphans += 1
        else:
            catalogue.counts.setdefault(image.hotel_id, Counter())[image.source] += 1
        seen.add(number)
    return catalogue


def read_images(folder: Path, split: Split) -> Iterator[HotelImage]:
    """The images of a split in the order of the file, each line checked. Raises UserError, naming file and line."""
    path = folder / split.file
    for line, row in _rows(path):
        image = HotelImage(*row)
        _check_id(path, line, "image_id", image.id)
        _check_id(path, line, "hotel_id", image.hotel_id)
        for column, value in (("image_url", image.url), ("image_source", image.source)):
            if not value:
                raise _wrong(path, line, f"{column} is empty", "give it, or delete the line")
        yield image


def choose_hotels(
    catalogue: Catalogue,
    count: int | None,
    seed: int,
    *,
    chains: Collection[str] = (),
    sources: Collection[str] = (),
    min_images: int = 1,
) -> list[Hotel]:
    """`count` hotels by chance, or all with None, in the order of their ids; chance is of the seed and the id alone.

    So a larger count keeps the hotels of a smaller one, and hotels added to the files change little. `chains` are ids
    or names, in any case of letters; a hotel has at least `min_images` images, of `sources` if any are named.
    Raises UserError for a chain or source that is not there, or if fewer than `count` hotels pass.
    """
    wanted = _chain_ids(catalogue, chains)
    _check_sources(catalogue, sources)
    passing = []
    for hotel in catalogue.hotels.values():
        by_source = catalogue.counts.get(hotel.id, Counter())
        images = sum(by_source[source] for source in sources) if sources else by_source.total()
        if images >= max(min_images, 1) and (not wanted or hotel.chain_id in wanted):
            passing.append(hotel)
    if not passing:
        raise UserError(
            f"no hotel of {shown(catalogue.folder)} passes chains, sources and min_images={min_images}; ask for less"
        )
    if count is not None and count > len(passing):
        raise UserError(
            f"hotels={count}: only {len(passing)} pass chains, sources and min_images={min_images}; ask for fewer"
        )
    drawn = sorted(passing, key=lambda hotel: derive_seed(seed, "hotels", hotel.id))[:count]
    return sorted(drawn, key=lambda hotel: int(hotel.id))


def choose_images(
    catalogue: Catalogue, hotels: Collection[Hotel], per_hotel: int | None, seed: int, sources: Collection[str] = ()
) -> list[HotelImage]:
    """The images of the hotels, at most `per_hotel` of each by chance, ordered by hotel and image id."""
    found: dict[str, dict[str, HotelImage]] = {hotel.id: {} for hotel in hotels}
    seen: set[int] = set()
    for image in read_images(catalogue.folder, catalogue.split):
        number = int(image.id)
        if number not in seen and image.hotel_id in found and (not sources or image.source in sources):
            found[image.hotel_id][image.id] = image
        seen.add(number)
    kept: list[HotelImage] = []
    for hotel_id in sorted(found, key=int):
        drawn = sorted(found[hotel_id].values(), key=lambda image: derive_seed(seed, "images", image.id))[:per_hotel]
        kept += sorted(drawn, key=lambda image: int(image.id))
    return kept


def _chain_ids(catalogue: Catalogue, chains: Collection[str]) -> set[str]:
    names = {name.casefold(): chain for chain, name in catalogue.chains.items()}
    ids = set(catalogue.chains) | {hotel.chain_id for hotel in catalogue.hotels.values()}
    wanted = {chain if chain in ids else names.get(chain.casefold(), "") for chain in chains}
    if "" in wanted:
        strange = next(chain for chain in chains if chain not in ids and chain.casefold() not in names)
        some = ", ".join(sorted(catalogue.chains.values())[:5])
        raise UserError(f"chains: there is no chain {strange!r}; chain_info.csv has {len(names)}, such as {some}")
    return wanted


def _check_sources(catalogue: Catalogue, sources: Collection[str]) -> None:
    known = {source for counts in catalogue.counts.values() for source in counts}
    for source in sources:
        if source not in known:
            raise UserError(f"sources: no image is from {source!r}; there are {', '.join(sorted(known)[:8])}")


def _unique(folder: Path, name: str) -> dict[str, tuple[int, list[str]]]:
    """The rows of a file by their first column, with their lines. Raises UserError for an id that is there twice."""
    path = folder / name
    found: dict[str, tuple[int, list[str]]] = {}
    for line, row in _rows(path):
        _check_id(path, line, COLUMNS[name][0], row[0])
        if row[0] in found:
            raise _wrong(path, line, f"{COLUMNS[name][0]} {row[0]} was given in line {found[row[0]][0]}", "delete one")
        found[row[0]] = line, row
    return found


def _hotel(path: Path, line: int, row: list[str]) -> Hotel:
    hotel_id, name, chain_id, *degrees = row
    if not name:
        raise _wrong(path, line, "hotel_name is empty", "give one")
    _check_id(path, line, "chain_id", chain_id)
    places: list[float | None] = []
    for column, text in zip(("latitude", "longitude"), degrees, strict=True):
        try:
            value = float(text) if text else None
        except ValueError:
            value = math.nan
        if value is not None and not math.isfinite(value):
            raise _wrong(path, line, f"{column} is {text!r}", "give degrees as a number, or nothing")
        places.append(value)
    return Hotel(hotel_id, name, chain_id, places[0], places[1])


def _on_earth(hotel: Hotel) -> bool:
    return abs(hotel.latitude or 0) <= 90 and abs(hotel.longitude or 0) <= 180


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows after the header, stripped, with their line numbers.

    The published training set has had no header in some versions: a first line of which the first column is an id is
    a row like the others.
    """
    columns = COLUMNS[path.name]
    try:
        # Undecodable bytes become surrogates, so that the line they are in can be named.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file)
            for row in reader:
                if reader.line_num == 1 and not (row and _ID.fullmatch(row[0].strip())):
                    _check_header(path, [cell.strip() for cell in row], columns)
                elif row:
                    yield reader.line_num, _checked(path, reader.line_num, row, columns)
            if reader.line_num == 0:
                raise _wrong(path, 1, "the file is empty", f"its columns are {','.join(columns)}")
    except FileNotFoundError as error:
        raise UserError(f"{shown(path)}: there is no such file; unpack input/dataset.tar.gz of Hotels-50K") from error
    except OSError as error:
        raise UserError(f"cannot read {shown(path)}: {error.strerror or error}; check the path") from error
    except csv.Error as error:
        raise _wrong(path, reader.line_num, f"no valid CSV ({error})", "check its quotes") from error


def _checked(path: Path, line: int, row: list[str], columns: tuple[str, ...]) -> list[str]:
    if len(row) != len(columns):
        raise _wrong(path, line, f"{len(row)} columns instead of {len(columns)}", f"they are {','.join(columns)}")
    try:
        "".join(row).encode()
    except UnicodeEncodeError as error:
        raise _wrong(path, line, "not UTF-8 text", "save the file as UTF-8") from error
    return [cell.strip() for cell in row]


def _check_header(path: Path, found: list[str], columns: tuple[str, ...]) -> None:
    if tuple(cell.lower() for cell in found) != columns:
        raise _wrong(path, 1, f"the columns are {','.join(found)[:80]!r}", f"they must be {','.join(columns)}")


def _check_id(path: Path, line: int, column: str, text: str) -> None:
    if not _ID.fullmatch(text):
        raise _wrong(path, line, f"{column} is {text[:40]!r}", "it must be a whole number")


def _wrong(path: Path, line: int, what: str, remedy: str) -> UserError:
    return UserError(f"{shown(path)} line {line}: {shown(what)}; {remedy}")
