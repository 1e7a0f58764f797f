"""What the tags of a collection come to: how many, how sure, how different between groups."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from boothlab.captioning.tags import ImageTags


@dataclass
class _Group:
    images: int = 0
    tags: int = 0
    top1: float = 0.0
    gap: float = 0.0
    gaps: int = 0
    distinct: set[str] = field(default_factory=set)


@dataclass
class TagStatistics:
    """Means over images, gathered one image at a time; only labels and groups are kept."""

    groups: dict[str, _Group] = field(default_factory=dict)

    def add(self, group: str, found: ImageTags) -> None:
        """One more image."""
        one = self.groups.setdefault(group, _Group())
        one.images += 1
        one.tags += len(found.tags)
        one.top1 += found.top1_cosine
        if found.gap_10 is not None:
            one.gap += found.gap_10
            one.gaps += 1
        one.distinct.update(found.tags)

    def summary(self) -> dict[str, float]:
        """Tags an image, mean cosine of the best label, mean gap to the tenth, distinct tags a group, distinct tags.

        What cannot be said, such as the gap with fewer than ten labels, is left out.
        """
        groups = self.groups.values()
        images = sum(one.images for one in groups)
        if not images:
            return {}
        gaps = sum(one.gaps for one in groups)
        told = {
            "tags_per_image": sum(one.tags for one in groups) / images,
            "top1_cosine": sum(one.top1 for one in groups) / images,
        }
        if gaps:
            told["gap_10"] = sum(one.gap for one in groups) / gaps
        told["distinct_tags_per_group"] = sum(len(one.distinct) for one in groups) / len(groups)
        told["distinct_tags"] = float(len(set[str]().union(*(one.distinct for one in groups))))
        return told

    def rows(self) -> Iterator[tuple[str, int, float, float, float | None, int]]:
        """For each group: name, images, tags an image, means of best cosine and gap, distinct tags."""
        for name, one in sorted(self.groups.items()):
            gap = one.gap / one.gaps if one.gaps else None
            yield name, one.images, one.tags / one.images, one.top1 / one.images, gap, len(one.distinct)


GROUP_COLUMNS = ("group", "images", "tags_per_image", "top1_cosine", "gap_10", "distinct_tags")


def rounded(row: Iterable[object]) -> list[object]:
    """Figures as a table holds them: six decimals."""
    return [f"{cell:.6f}" if isinstance(cell, float) else cell for cell in row]
