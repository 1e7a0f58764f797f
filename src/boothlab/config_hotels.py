"""The config of `boothlab hotels`: which hotels of Hotels-50K, and how their images are fetched."""

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from boothlab.config import Checked, need


class HotelSplit(StrEnum):
    """Which list of images: train_set.csv or test_set.csv."""

    train = "train"
    test = "test"


@dataclass
class FetchConfig(Checked):
    """How images are downloaded. Each host is asked politely, whatever the number of workers."""

    #: longer side in pixels of the files that are kept; smaller images are not enlarged
    long_side: int = 640
    #: JPEG quality of the files that are kept, 1 to 95
    quality: int = 90
    #: threads
    workers: int = 8
    #: requests at once to one host
    per_host: int = 2
    #: requests a second to one host
    rate: float = 4.0
    #: attempts at an image whose failure may pass
    attempts: int = 4
    #: seconds before the second attempt; doubled for each further one, and shortened by chance by up to a half
    backoff_s: float = 1.0
    #: seconds that a wait between attempts never exceeds, unless the server asks for longer
    backoff_max_s: float = 30.0
    #: seconds; a host that asks to wait longer is left alone until the command is run again
    longest_wait_s: float = 120.0
    #: seconds without an answer after which an attempt is given up
    timeout_s: float = 20.0
    #: seconds after which an attempt is given up in any case
    deadline_s: float = 60.0
    #: bytes; a larger file is refused
    max_bytes: int = 20971520
    #: redirects followed
    max_redirects: int = 3
    #: let addresses through that are not of the public internet, such as a mirror in your own network
    allow_private: bool = False
    #: try again what failed for good before, such as a 404
    retry_failed: bool = False

    def check(self) -> None:
        need(8 <= self.long_side <= 8192, "fetch.long_side", self.long_side, "must be from 8 to 8192 pixels")
        need(1 <= self.quality <= 95, "fetch.quality", self.quality, "must be from 1 to 95")
        need(1 <= self.workers <= 64, "fetch.workers", self.workers, "must be from 1 to 64")
        need(1 <= self.per_host <= 16, "fetch.per_host", self.per_host, "must be from 1 to 16")
        need(0 < self.rate <= 1000, "fetch.rate", self.rate, "must be above 0 and at most 1000")
        need(1 <= self.attempts <= 20, "fetch.attempts", self.attempts, "must be from 1 to 20")
        need(self.max_bytes >= 1, "fetch.max_bytes", self.max_bytes, "must be at least 1")
        need(0 <= self.max_redirects <= 20, "fetch.max_redirects", self.max_redirects, "must be from 0 to 20")
        for name in ("backoff_s", "backoff_max_s", "longest_wait_s"):
            need(0 <= getattr(self, name) <= 86400, f"fetch.{name}", getattr(self, name), "must be from 0 to 86400")
        for name in ("timeout_s", "deadline_s"):
            need(
                0 < getattr(self, name) <= 86400, f"fetch.{name}", getattr(self, name), "must be above 0, at most 86400"
            )


@dataclass
class HotelsConfig(Checked):
    """Hotels-50K: what is in it, a choice of hotels, and their images."""

    #: folder of chain_info.csv, hotel_info.csv, train_set.csv and test_set.csv, as Hotels-50K publishes them
    data: str = MISSING
    #: where everything goes
    out: str = "outputs/hotels"
    #: which list of images
    split: HotelSplit = HotelSplit.train
    #: how many hotels to choose; null takes all that pass
    hotels: int | None = 10
    #: at most so many images of each hotel; null takes all
    images_per_hotel: int | None = None
    #: only hotels with at least so many images
    min_images: int = 1
    #: only hotels of these chains, by id or name; null takes all
    chains: list[str] | None = None
    #: only images from these sources, such as traffickcam; null takes all
    sources: list[str] | None = None
    #: the seed of the choice; more hotels with the same seed keep the ones that were there
    seed: int = 0
    #: fetch the images of the choice
    download: bool = False
    fetch: FetchConfig = field(default_factory=FetchConfig)

    def check(self) -> None:
        need(self.data.strip() != "", "data", repr(self.data), "must name a folder")
        need(self.out.strip() != "", "out", repr(self.out), "must name a folder")
        need(self.hotels is None or self.hotels >= 1, "hotels", self.hotels, "must be at least 1, or null")
        least = self.images_per_hotel is None or self.images_per_hotel >= 1
        need(least, "images_per_hotel", self.images_per_hotel, "must be at least 1, or null")
        need(self.min_images >= 1, "min_images", self.min_images, "must be at least 1")
        need(0 <= self.seed < 2**63, "seed", self.seed, "must not be negative, nor above 2^63-1")
        for name in ("chains", "sources"):
            need(getattr(self, name) != [], name, "[]", "must name at least one, or be null")
        need(
            not self.download or self.hotels is not None,
            "hotels",
            "null",
            "would download every image there is; name a number of hotels",
        )
