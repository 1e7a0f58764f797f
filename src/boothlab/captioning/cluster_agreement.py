"""Clusters held against known classes: adjusted Rand index, mutual information, and what chance would give."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boothlab.seeding import derive_seed

SCORES = ("ari", "ami", "nmi")
"""In the order of their worth: the first two are corrected for chance, the third rises with the number of clusters."""
_ROUNDING = 1e-12

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Agreement:
    """One score, beside its null: the same with the classes dealt out anew among the images, `permutations` times.

    `p_value` is (1 + permutations with at least this score) / (1 + permutations).
    """

    score: str
    value: float
    null_mean: float
    null_95: float
    p_value: float
    permutations: int


def scores_of(labels_N: Ints, classes: Sequence[str]) -> dict[str, float]:
    """ARI, AMI and NMI (both by the arithmetic mean of the entropies), 1 if clusters and classes are the same."""
    from sklearn import metrics

    return {
        "ari": float(metrics.adjusted_rand_score(classes, labels_N)),
        "ami": float(metrics.adjusted_mutual_info_score(classes, labels_N)),
        "nmi": float(metrics.normalized_mutual_info_score(classes, labels_N)),
    }


def agreement(
    labels_N: Ints,
    classes: Sequence[str],
    permutations: int,
    seed: int,
    done: Callable[[], None] = lambda: None,
) -> list[Agreement]:
    """Each score of SCORES with its null; the same permutations for all three. `done` is told of each permutation."""
    observed = scores_of(labels_N, classes)
    _, class_N = np.unique(np.asarray(classes), return_inverse=True)
    rng = np.random.default_rng(derive_seed(seed, "class_permutation"))
    score = _Scores(labels_N, class_N)
    null: dict[str, list[float]] = {name: [] for name in SCORES}
    for _ in range(permutations):
        for name, value in score.of(rng.permutation(class_N)).items():
            null[name].append(value)
        done()
    return [_beside(name, observed[name], np.array(null[name])) for name in SCORES]


class _Scores:
    """The three scores of one set of clusters with permuted classes, whose sizes, and so much else, stay the same.

    scikit-learn works all of that out again for each permutation, which takes a hundred times as long.
    """

    def __init__(self, labels_N: Ints, class_N: Ints) -> None:
        from sklearn.metrics.cluster import expected_mutual_information

        _, self._label_N = np.unique(labels_N, return_inverse=True)
        self._sizes = np.bincount(self._label_N), np.bincount(class_N)
        self._images = len(class_N)
        pairs_of_cluster, pairs_of_class = (float(_pairs(size)) for size in self._sizes)
        self._expected_pairs = pairs_of_cluster * pairs_of_class / float(_pairs(np.array([self._images])))
        self._most_pairs = (pairs_of_cluster + pairs_of_class) / 2
        self._entropy = float(np.mean([_entropy(size / self._images) for size in self._sizes]))
        self._expected_mi = float(expected_mutual_information(self._table(class_N), self._images))

    def of(self, class_N: Ints) -> dict[str, float]:
        """ARI as Hubert and Arabie (1985), AMI as Vinh et al. (2010) with the arithmetic mean."""
        table = self._table(class_N)
        shares, (clusters, classes) = table / self._images, (size / self._images for size in self._sizes)
        there = table > 0
        mi = float((shares[there] * np.log((shares / np.outer(clusters, classes))[there])).sum())
        return {
            "ari": (float(_pairs(table)) - self._expected_pairs) / (self._most_pairs - self._expected_pairs),
            "ami": (mi - self._expected_mi) / (self._entropy - self._expected_mi),
            "nmi": mi / self._entropy,
        }

    def _table(self, class_N: Ints) -> Ints:
        clusters, classes = (len(size) for size in self._sizes)
        counts = np.bincount(self._label_N * classes + class_N, minlength=clusters * classes)
        return counts.reshape(clusters, classes)


def _pairs(counts: Ints) -> Any:
    return (counts * (counts - 1) // 2).sum()


def _entropy(shares: NDArray[np.float64]) -> float:
    return float(-(shares * np.log(shares)).sum())


def _beside(score: str, value: float, null: NDArray[np.float64]) -> Agreement:
    as_good = int((null >= value - _ROUNDING).sum())
    return Agreement(
        score, value, float(null.mean()), float(np.quantile(null, 0.95)), (1 + as_good) / (1 + len(null)), len(null)
    )


def why_not(classes: Sequence[str]) -> str:
    """Why clusters cannot be held against these classes; empty if they can."""
    known = {name for name in classes if name}
    count = sum(map(bool, classes))
    if not known:
        return "no classes are known: the table has no group for any image"
    if len(known) < 2:
        return f"all images are of one group, {next(iter(known))}"
    if len(known) == count:
        return "every image is a group of its own"
    return ""
