"""The config of `boothlab clusters`: which tags, how many clusters, and what they are held against."""

import re
from dataclasses import dataclass
from enum import StrEnum

from boothlab.config import Checked, need

MOST_CLUSTERS = 200


class ClusterStart(StrEnum):
    """Where k-modes begins."""

    #: Cao's, which has no chance in it
    cao = "cao"
    #: Huang's, several times
    huang = "huang"
    #: both, and the lowest cost counts
    both = "both"


class ClusterChoice(StrEnum):
    """How the number of clusters is chosen among those tried."""

    #: the highest silhouette
    silhouette = "silhouette"
    #: the bend of the cost curve
    elbow = "elbow"


@dataclass
class ClustersConfig(Checked):
    """Tagged images in groups by k-modes, held against known classes."""

    #: folder of a captioning run with tags.csv in it
    run: str | None = None
    #: CSV file with the columns file and tags (joined by ;), and group if classes are known; instead of run
    tags: str | None = None
    #: folder of the images, for the gallery; null takes the captioning run's
    images: str | None = None
    #: where everything goes; null means clusters/ beside tags.csv
    out: str | None = None
    #: numbers of clusters to try, as in 2..12, or 2,4,8, or 5
    k: str = "2..12"
    #: how the number of clusters is chosen
    choose: ClusterChoice = ClusterChoice.silhouette
    #: where k-modes begins
    start: ClusterStart = ClusterStart.both
    #: how often Huang's start is drawn
    restarts: int = 10
    #: rounds of k-modes at most
    max_iter: int = 100
    #: times the classes are dealt out anew for the null
    permutations: int = 999
    #: pictures of each cluster in the gallery
    gallery: int = 12
    #: the seed of the restarts and permutations
    seed: int = 0

    @property
    def counts(self) -> list[int]:
        """The numbers of clusters to try, in order. Raises UserError."""
        text = self.k.replace(" ", "").strip("[]")
        rule = f"must be numbers of clusters from 2 to {MOST_CLUSTERS}, as in 2..12, or 2,4,8, or 5"
        if match := re.fullmatch(r"(\d{1,4})\.\.(\d{1,4})", text):
            first, last = int(match[1]), int(match[2])
            found = list(range(first, min(last, MOST_CLUSTERS + 1) + 1))
        else:
            need(bool(re.fullmatch(r"\d{1,4}(,\d{1,4})*", text)), "k", self.k, rule)
            found = sorted({int(number) for number in text.split(",")})
        need(len(found) > 0 and found[0] >= 2 and found[-1] <= MOST_CLUSTERS, "k", self.k, rule)
        return found

    def check(self) -> None:
        one = (self.run is None) != (self.tags is None)
        need(one, "run", self.run, "give the folder of a captioning run as run=, or a table as tags=, and not both")
        for name in ("run", "tags", "images", "out"):
            need(getattr(self, name) is None or getattr(self, name).strip(), name, "''", "must be a path, or null")
        need(len(self.counts) > 0, "k", self.k, "must name a number")
        need(1 <= self.restarts <= 1000, "restarts", self.restarts, "must be from 1 to 1000")
        need(1 <= self.max_iter <= 10000, "max_iter", self.max_iter, "must be from 1 to 10000")
        need(1 <= self.permutations <= 100000, "permutations", self.permutations, "must be from 1 to 100000")
        need(0 <= self.gallery <= 60, "gallery", self.gallery, "must be from 0 to 60")
        need(0 <= self.seed < 2**63, "seed", self.seed, "must not be negative, nor above 2^63-1")
