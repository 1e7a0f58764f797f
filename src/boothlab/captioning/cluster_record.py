"""What is said of clusters, as plain data fit for JSON: how they were chosen, their labels, groups and pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from boothlab.captioning.clusters import Partition, TagTable, group_counts, modes

TOLD_APART, MOST_TELLING = 0.1, 8
"""How much more or less often than in all images a label is in a cluster that it tells apart; how many are named."""


def lead(table: TagTable) -> str:
    """The images and their labels in a line."""
    distinct = len(np.unique(table.presence_NL, axis=0))
    mean = table.presence_NL.sum() / len(table.files)
    return (
        f"{len(table.files):,} images, {len(table.labels):,} labels, {mean:.1f} labels an image on average; "
        f"{distinct:,} different sets of labels."
    )


def choice(tried: str, count: int, chosen: Partition, by_elbow: bool, bend: int | None) -> str:
    """How the number of clusters came about, in a sentence or two; `count` numbers were `tried`."""
    if count == 1:
        how = f"k = {chosen.k} was asked for."
    elif by_elbow and bend is not None:
        how = f"k = {chosen.k} is the bend of the cost curve, of {tried}."
    else:
        how = f"k = {chosen.k} has the highest silhouette, of {tried}."
        how += " The cost curve has no bend." if by_elbow else ""
    empty = chosen.k - chosen.used
    return how + (f" {empty} of them stayed empty." if empty else "")


def confusion(table: TagTable, chosen: Partition) -> dict[str, Any]:
    """Images by group and cluster; groups in the order of the cluster that most of their images are in."""
    counts = group_counts(chosen.labels_N, table.groups)
    names = sorted({group for group in table.groups if group})
    rows = {name: [one[name] for one in counts] for name in names}
    order = sorted(names, key=lambda name: (rows[name].index(max(rows[name])), name))
    return {
        "groups": order,
        "clusters": list(range(1, len(counts) + 1)),
        "counts": [rows[name] for name in order],
        "largest": max(max(row) for row in rows.values()),
    }


def described(table: TagTable, chosen: Partition, gallery: int) -> list[dict[str, Any]]:
    """Each cluster from 1 on: size, mode, what tells it apart, groups, and at most `gallery` pictures to show."""
    mode_CL, shares_CL = modes(table.presence_NL, chosen.labels_N)
    overall_L = table.presence_NL.mean(axis=0)
    groups = group_counts(chosen.labels_N, table.groups)
    found = []
    for number, (mode_L, shares_L) in enumerate(zip(mode_CL, shares_CL, strict=True)):
        members = np.flatnonzero(chosen.labels_N == number)
        lift_L = shares_L - overall_L
        telling = sorted(np.flatnonzero(np.abs(lift_L) > TOLD_APART), key=lambda one: (-abs(lift_L[one]), one))
        by_share = sorted(np.flatnonzero(mode_L), key=lambda one: (-shares_L[one], one))
        counted: list[tuple[str, int]] = sorted(groups[number].items(), key=lambda item: (-item[1], item[0]))
        found.append(
            {
                "number": number + 1,
                "size": len(members),
                "mode": [[table.labels[at], float(shares_L[at])] for at in by_share],
                "telling": [
                    [table.labels[at], float(shares_L[at]), float(overall_L[at])] for at in telling[:MOST_TELLING]
                ],
                "groups": [list(one) for one in counted],
                "pictures": _pictures(table, members.tolist(), mode_L, gallery),
            }
        )
    return found


def _pictures(table: TagTable, members: Sequence[int], mode_L: Any, most: int) -> list[dict[str, Any]]:
    """Images of a cluster from the nearest to its mode to the furthest, evenly."""
    distance = {one: int((table.presence_NL[one] != mode_L).sum()) for one in members}
    order = sorted(members, key=lambda one: (distance[one], table.files[one]))
    if len(order) > most:
        order = [order[round(at * (len(order) - 1) / max(most - 1, 1))] for at in range(most)]
    return [{"file": table.files[one], "group": table.groups[one], "distance": distance[one]} for one in order]
