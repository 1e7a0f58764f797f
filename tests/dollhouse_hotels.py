"""A small hotel data set of the schema of Hotels-50K, made here: each hotel has its own carpet, curtains and bed."""

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from boothlab.dollhouse.scenes import Lamp, RoomScene, Time, render

HOTELS = (
    ("red", "blue", "white"),
    ("green", "yellow", "pink"),
    ("purple", "orange", "white"),
    ("blue", "red", "yellow"),
)
"""Carpet, curtains and bed."""
CHAINS = ("Alpha Inns", "Beta & Sons <Hotels>")


@dataclass
class HotelSet:
    """`pages` are the images by the path of their address."""

    folder: Path
    pages: dict[str, bytes] = field(default_factory=dict)


def make_hotels(folder: Path, url: str, photos: int = 6, side: int = 64) -> HotelSet:
    """The four CSV files, and the images for a server at `url`: `photos` of each of four hotels in two chains."""
    found = HotelSet(folder)
    chains = ["chain_id,chain_name", *(f"{index},{name}" for index, name in enumerate(CHAINS)), "-1,unknown"]
    hotels = ["hotel_id,hotel_name,chain_id,latitude,longitude"]
    images = ["image_id,hotel_id,image_url,image_source,upload_timestamp"]
    for index, colors in enumerate(HOTELS):
        hotels.append(f"{10 + index},House {index},{index // 2},{50 + index}.5,-{index}.25")
        for photo in range(photos):
            image_id = 100 * (index + 1) + photo
            found.pages[f"/{image_id}.jpg"] = _photo(colors, photo, side)
            source = "traffickcam" if photo % 3 == 2 else "travel_website"
            images.append(f"{image_id},{10 + index},{url}/{image_id}.jpg,{source},2017-0{photo % 9 + 1}-01")
    hotels.append("20,Empty House,-1,,")
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (
        ("chain_info", chains),
        ("hotel_info", hotels),
        ("train_set", images),
        ("test_set", images[:2]),
    ):
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return found


def room(colors: tuple[str, str, str], photo: int, side: int) -> Image.Image:
    """One photo of a hotel's room: hour, lamp, pictures and side change from photo to photo."""
    carpet, curtains, bed = colors
    scene = RoomScene(
        bed=bed,
        curtains=curtains,
        carpet=carpet,
        pictures=photo % 3,
        time=(Time.DAY, Time.DUSK)[photo % 2],
        lamp=(Lamp.OFF, Lamp.ON)[photo // 2 % 2],
        flip=photo % 4 == 3,
    )
    return Image.fromarray(np.asarray(render(scene, side)))


def _photo(colors: tuple[str, str, str], photo: int, side: int) -> bytes:
    buffer = io.BytesIO()
    room(colors, photo, side).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
