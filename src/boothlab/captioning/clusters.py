"""Tagged images in groups: presence and absence of labels, k-modes over them, and the choice of how many groups."""

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boothlab.errors import UserError
from boothlab.files import shown
from boothlab.seeding import derive_seed

SEPARATOR = ";"
SILHOUETTE_IMAGES = 4000
"""Images on which the silhouette is measured when there are more: it takes all their distances."""
CAO, HUANG = "cao", "huang"

Presence = NDArray[np.bool_]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class TagTable:
    """Images with their tags. `groups` are known classes, empty texts where none is known.

    `presence_NL` says which image has which of `labels`, which are sorted; so the order of tags cannot matter.
    """

    files: tuple[str, ...]
    groups: tuple[str, ...]
    labels: tuple[str, ...]
    presence_NL: Presence


@dataclass(frozen=True)
class Settings:
    """How to cluster. `starts` is CAO, HUANG or both; `restarts` is of Huang's; all chance is of `seed`."""

    starts: tuple[str, ...] = (CAO, HUANG)
    restarts: int = 10
    max_iter: int = 100
    seed: int = 0


@dataclass(frozen=True)
class Partition:
    """A clustering into at most `k` groups, numbered from the largest down.

    `labels_N` are the clusters of the images, 0 … `used` - 1. `cost` is how many presences and absences differ from the
    mode of their image's cluster, over all images and labels. `start` is what it began from. `silhouette` is the mean
    over images, in [-1, 1], by Hamming distance; None with one cluster, or as many as images. `stability` is the mean
    adjusted Rand index of the other starts' partitions with this one; None with one start.
    """

    k: int
    labels_N: Labels
    used: int
    cost: int
    start: str
    costs: dict[str, int]
    silhouette: float | None
    stability: float | None


def read_tags(path: Path) -> TagTable:
    """A table of tags: a CSV file with the columns `file` and `tags` (joined by ;), and `group` if classes are known.

    Raises UserError, naming file and line, for missing columns, a file that is named twice or not at all, or text that
    is no CSV or UTF-8.
    """
    files: dict[str, int] = {}
    groups: list[str] = []
    tags: list[set[str]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle)
            columns = reader.fieldnames or []
            for column in ("file", "tags"):
                if column not in columns:
                    there = ", ".join(columns) or "none"
                    raise UserError(f"{shown(path)}: has no column {column}; its columns are: {shown(there)}")
            for row in reader:
                file = _plain(row["file"] or "")
                if not file or file in files:
                    what = f"{file} was in line {files[file]}" if file else "no file is named"
                    raise UserError(f"{shown(path)} line {reader.line_num}: {shown(what)}; each image has one line")
                files[file] = reader.line_num
                groups.append((row.get("group") or "").strip())
                tags.append({_plain(tag.strip()) for tag in (row["tags"] or "").split(SEPARATOR)} - {""})
    except OSError as error:
        raise UserError(f"tags={shown(path)}: cannot be read ({error.strerror or error}); check the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{shown(path)}: is no CSV file in UTF-8 ({shown(str(error))}); save it as one") from error
    if not files:
        raise UserError(f"{shown(path)}: has no images in it; tag some first, with boothlab caption method=clip_tags")
    return table_of(list(files), groups, tags)


def _plain(cell: str) -> str:
    """What `files.csv_cell` was given."""
    return cell[1:] if cell.startswith(("'=", "'+", "'-", "'@")) else cell


def table_of(files: Sequence[str], groups: Sequence[str], tags: Sequence[set[str]]) -> TagTable:
    """The table of images in this order, each with its group and its tags."""
    labels = sorted(set().union(*tags))
    place = {label: index for index, label in enumerate(labels)}
    presence_NL = np.zeros((len(files), len(labels)), dtype=np.bool_)
    for row, found in enumerate(tags):
        presence_NL[row, [place[tag] for tag in found]] = True
    return TagTable(tuple(files), tuple(groups), tuple(labels), presence_NL)


def check_counts(table: TagTable, counts: Sequence[int]) -> None:
    """Raise UserError if there are fewer different sets of tags than clusters asked for, or fewer than two."""
    distinct = len(np.unique(table.presence_NL, axis=0)) if table.labels else 1
    if distinct < 2:
        raise UserError("all images have the same tags, so there is nothing to tell them apart; use more labels")
    if max(counts) > distinct:
        reach = f"k=2..{distinct}" if distinct > 2 else "k=2"
        raise UserError(
            f"k={max(counts)}: there are only {distinct} different sets of tags; choose {reach}, or use more labels"
        )


def cluster(presence_NL: Presence, k: int, settings: Settings) -> Partition:
    """The k-modes partition of lowest cost over all starts; ties go to the first: Cao's, then Huang's in order.

    It depends on the rows alone, not on their order, and equal rows share a cluster. Raises UserError without kmodes,
    ValueError if there are fewer than `k` different rows.
    """
    rows_UL, owner_N, count_U = np.unique(presence_NL, axis=0, return_inverse=True, return_counts=True)
    if k > len(rows_UL):
        raise ValueError(f"{k} clusters of {len(rows_UL)} different rows")
    owner_N = owner_N.reshape(-1)
    # Sorted, since k-modes moves its modes from row to row: another order could be another partition.
    sorted_NL = np.repeat(rows_UL, count_U, axis=0)
    first_U = np.cumsum(count_U) - count_U
    found: dict[str, tuple[int, Labels]] = {}
    for start, seed in _starts(k, settings):
        raw_N = np.arange(k).repeat(count_U) if k == len(rows_UL) else _k_modes(sorted_NL, k, start, seed, settings)
        labels_N = _by_size(np.asarray(raw_N, dtype=np.int64))
        found[start] = _cost(sorted_NL, labels_N), labels_N
    best = min(found, key=lambda start: found[start][0])
    cost, labels_N = found[best]
    return Partition(
        k=k,
        labels_N=labels_N[first_U][owner_N],
        used=int(labels_N.max()) + 1,
        cost=cost,
        start=best,
        costs={start: one for start, (one, _) in found.items()},
        silhouette=silhouette(sorted_NL, labels_N, settings.seed),
        stability=_stability(labels_N, [other for start, (_, other) in found.items() if start != best]),
    )


def silhouette(rows_NL: Presence, labels_N: Labels, seed: int) -> float | None:
    """The mean silhouette by Hamming distance, of SILHOUETTE_IMAGES images by chance if there are more."""
    from sklearn.metrics import silhouette_score

    if not 2 <= len(np.unique(labels_N)) < len(labels_N):
        return None
    if len(labels_N) > SILHOUETTE_IMAGES:
        rng = np.random.default_rng(derive_seed(seed, "silhouette"))
        kept = np.sort(rng.permutation(len(labels_N))[:SILHOUETTE_IMAGES])
        rows_NL, labels_N = rows_NL[kept], labels_N[kept]
        if len(np.unique(labels_N)) < 2:
            return None
    return float(silhouette_score(rows_NL, labels_N, metric="hamming"))


def choose_by_silhouette(partitions: Sequence[Partition]) -> Partition:
    """The partition with the highest silhouette; the fewest clusters of those that are equal."""
    return max(partitions, key=lambda one: (-2.0 if one.silhouette is None else round(one.silhouette, 12), -one.k))


def elbow(partitions: Sequence[Partition]) -> int | None:
    """The k at which the cost curve is furthest below the line between its ends; None with fewer than three, or none.

    Both axes are scaled to 0 … 1 first, as in Satopää et al. (2011), "Finding a Kneedle in a Haystack".
    """
    points = sorted((one.k, one.cost) for one in partitions)
    (first, high), (last, low) = points[0], points[-1]
    if len(points) < 3 or high <= low:
        return None
    below = {k: (1 - (k - first) / (last - first)) - (cost - low) / (high - low) for k, cost in points}
    best = max(below, key=lambda k: (round(below[k], 12), -k))
    return best if below[best] > 0 else None


def modes(presence_NL: Presence, labels_N: Labels) -> tuple[Presence, NDArray[np.float64]]:
    """The mode of each cluster (labels that more than half of its images have), and the share that has each label."""
    shares_CL = np.stack([presence_NL[labels_N == one].mean(axis=0) for one in range(int(labels_N.max()) + 1)])
    return shares_CL > 0.5, shares_CL


def each_k(
    table: TagTable, counts: Sequence[int], settings: Settings, done: Callable[[int], None] = lambda k: None
) -> list[Partition]:
    """A partition for each number of clusters; `done` is told of each."""
    found = []
    for k in counts:
        found.append(cluster(table.presence_NL, k, settings))
        done(k)
    return found


def _starts(k: int, settings: Settings) -> list[tuple[str, int]]:
    """Name and seed of each start. Cao's has no chance in it, but k-modes may refill an empty cluster by chance."""
    found = [(CAO, 0)] if CAO in settings.starts else []
    if HUANG in settings.starts:
        found += [(f"{HUANG} {index + 1}", index) for index in range(settings.restarts)]
    return [(name, derive_seed(settings.seed, "k-modes", k, name) % 2**32) for name, _ in found]


def _k_modes(rows_NL: Presence, k: int, start: str, seed: int, settings: Settings) -> Any:
    try:
        from kmodes.kmodes import KModes
    except ImportError as error:
        raise UserError("clusters take kmodes, which is not installed; pip install 'boothlab[caption]'") from error
    init = "Cao" if start == CAO else "Huang"
    model = KModes(n_clusters=k, init=init, n_init=1, max_iter=settings.max_iter, random_state=seed)
    return model.fit(rows_NL.astype(np.uint8)).labels_


def _by_size(raw_N: Labels) -> Labels:
    """The clusters numbered by size, the largest first; of equal ones the one with the first row."""
    _, first, inverse_N, sizes = np.unique(raw_N, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -sizes))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    labels_N: Labels = rank[inverse_N]
    return labels_N


def _cost(rows_NL: Presence, labels_N: Labels) -> int:
    mode_CL, _ = modes(rows_NL, labels_N)
    return int((rows_NL != mode_CL[labels_N]).sum())


def _stability(labels_N: Labels, others: Sequence[Labels]) -> float | None:
    from sklearn.metrics import adjusted_rand_score

    return float(np.mean([adjusted_rand_score(labels_N, other) for other in others])) if others else None


def group_counts(labels_N: Labels, groups: Sequence[str]) -> list[Counter[str]]:
    """How many images of each group every cluster has, without those of no known group."""
    found: list[Counter[str]] = [Counter() for _ in range(int(labels_N.max()) + 1)]
    for label, group in zip(labels_N.tolist(), groups, strict=True):
        if group:
            found[label][group] += 1
    return found
