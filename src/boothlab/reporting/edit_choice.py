"""The setting of a method that suits each image and edit best by CLIP, and what that choice costs against the truth.

For every image and edit a method's settings are compared by `balanced`, the harmonic mean of preservation (CLIP image
similarity) and edit strength (CLIP directional similarity). Both are made comparable first: each is replaced by its
place, 0 to 1, among all images and settings of that method and edit, the share with a lower value (ties count half).
A setting that changes nothing, or that keeps nothing, is low in one of the two and so low in the mean.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from boothlab.evaluation.statistics import Interval, mean_interval
from boothlab.reporting.edit_cells import RESAMPLES, SEED, Means, by_image, means_of
from boothlab.reporting.edit_runs import Pair

FORMULA = (
    "balanced = 2·p·s / (p + s), where p is the place of CLIP image similarity (preservation) and s that of CLIP"
    " directional similarity (edit strength): the share, 0 to 1, of all images and settings of the same method and"
    " edit with a lower value, ties counting half"
)
OPTIMISM = (
    "The same scores choose and judge, on the same pictures, so a choice image by image looks better here than it would"
    " on new ones: take what one setting for all loses as an upper end. Settings that differ by accident alone would"
    " show a gain, too"
)
PRESERVATION, STRENGTH, TRUTH, HAPPENED = "clip_image", "clip_directional", "psnr_truth", "happened"


@dataclass(frozen=True)
class Choice:
    """The settings of a method for one image and edit: which CLIP chooses, and which is best by the truth.

    `regret` is what the choice lacks of the best PSNR to the target, in dB, never negative; None without a truth, like
    `best`. `happened` is the share of seeds in which the chosen setting brought the edit about; None if nobody knows.
    """

    image: str
    edit: str
    chosen: str
    balanced: float
    preservation: float
    strength: float
    best: str | None
    psnr: float | None
    best_psnr: float | None
    regret: float | None
    happened: float | None


@dataclass(frozen=True)
class MethodChoice:
    """A method's choices, and the mean regret of several ways to choose, each over images with its interval.

    `by_clip`: the setting that is best balanced, for each image and edit. `fixed_clip` and `fixed_truth`: one setting
    for all, the one with the best mean of `balanced`, or of the PSNR to the target. `by_chance`: any of them, equally
    likely. None without a truth. `hits` counts the choices that are the best by the truth.

    Without a truth: `balanced_chosen` and `balanced_fixed` are the mean of `balanced` with the choice image by image
    and with `fixed_clip_setting` for all; `lost` is the difference, what one setting for all loses. It is never
    negative, since the same scores choose and judge.
    """

    method: str
    settings: tuple[str, ...]
    choices: tuple[Choice, ...]
    skipped: int
    fixed_clip_setting: str
    fixed_truth_setting: str | None
    hits: int | None
    by_clip: Interval | None
    fixed_clip: Interval | None
    fixed_truth: Interval | None
    by_chance: Interval | None
    balanced_chosen: Interval
    balanced_fixed: Interval
    lost: Interval
    per_setting: tuple["SettingShare", ...]


@dataclass(frozen=True)
class SettingShare:
    """A setting among those of its method: for how many images and edits it is chosen, and how it does for all.

    `best` counts those for which it is the best by the truth, `psnr` is its mean PSNR to the target, in dB; both None
    without a truth. `balanced` is its mean over all images and edits.
    """

    setting: str
    chosen: int
    best: int | None
    balanced: float
    psnr: float | None


@dataclass(frozen=True)
class _Scored:
    """What is known of each setting, by (image, edit)."""

    preservation: dict[str, Means]
    strength: dict[str, Means]
    truth: dict[str, Means]
    happened: dict[str, Means]


def choice_of(method: str, pairs_by_setting: Mapping[str, Sequence[Pair]]) -> MethodChoice | None:
    """The choices among a method's settings, given in order; None for less than two of them, or if none has CLIP."""
    settings = list(pairs_by_setting)
    scored = _Scored(
        *(
            {setting: means_of(pairs, score) for setting, pairs in pairs_by_setting.items()}
            for score in (PRESERVATION, STRENGTH, TRUTH, HAPPENED)
        )
    )
    keys = sorted({key for means in scored.preservation.values() for key in means})
    places = _balanced(settings, scored)
    # With a setting missing for one image, the best of the others would look like a choice.
    whole = [key for key in keys if all(key in places[setting] for setting in settings)]
    if len(settings) < 2 or not whole:
        return None
    choices = tuple(_choose(key, settings, places, scored) for key in whole)
    known = [key for key in whole if all(key in scored.truth[setting] for setting in settings)]
    fixed_clip = max(settings, key=lambda setting: _mean([places[setting][key] for key in whole]))
    fixed_truth = max(settings, key=lambda one: _mean([scored.truth[one][key] for key in known])) if known else None
    picked = {(choice.image, choice.edit): choice.chosen for choice in choices}
    return MethodChoice(
        method=method,
        settings=tuple(settings),
        choices=choices,
        skipped=len(keys) - len(whole),
        fixed_clip_setting=fixed_clip,
        fixed_truth_setting=fixed_truth,
        hits=sum(choice.regret == 0 for choice in choices) if known else None,
        by_clip=_regret(known, scored, lambda key: [picked[key]]),
        fixed_clip=_regret(known, scored, lambda key: [fixed_clip]),
        fixed_truth=_regret(known, scored, lambda key: [fixed_truth or fixed_clip]),
        by_chance=_regret(known, scored, lambda key: settings),
        balanced_chosen=_over_images({(one.image, one.edit): one.balanced for one in choices}),
        balanced_fixed=_over_images({key: places[fixed_clip][key] for key in whole}),
        lost=_over_images(
            {(one.image, one.edit): one.balanced - places[fixed_clip][one.image, one.edit] for one in choices}
        ),
        per_setting=tuple(
            _share(setting, choices, places[setting], scored.truth[setting], whole, known) for setting in settings
        ),
    )


def _over_images(values: Means) -> Interval:
    return mean_interval(by_image(values), SEED, resamples=RESAMPLES)


def _share(
    setting: str,
    choices: Sequence[Choice],
    balanced: Means,
    truth: Means,
    whole: Sequence[tuple[str, str]],
    known: Sequence[tuple[str, str]],
) -> SettingShare:
    return SettingShare(
        setting=setting,
        chosen=sum(one.chosen == setting for one in choices),
        best=sum(one.best == setting for one in choices) if known else None,
        balanced=_mean([balanced[key] for key in whole]),
        psnr=_mean([truth[key] for key in known]) if known else None,
    )


def _balanced(settings: Sequence[str], scored: _Scored) -> dict[str, Means]:
    """`balanced` of each setting by image and edit, where both of its parts were measured."""
    preserved, edited = _ordered(scored.preservation), _ordered(scored.strength)
    found: dict[str, Means] = {}
    for setting in settings:
        both = scored.preservation[setting].keys() & scored.strength[setting].keys()
        found[setting] = {
            key: _harmonic(
                place(scored.preservation[setting][key], preserved[key[1]]),
                place(scored.strength[setting][key], edited[key[1]]),
            )
            for key in sorted(both)
        }
    return found


def _ordered(by_setting: Mapping[str, Means]) -> dict[str, list[float]]:
    """All values of each edit, sorted."""
    found: dict[str, list[float]] = {}
    for means in by_setting.values():
        for (_, edit), value in means.items():
            found.setdefault(edit, []).append(value)
    return {edit: sorted(values) for edit, values in found.items()}


def place(value: float, ordered: Sequence[float]) -> float:
    """The share of sorted values below `value`, those equal to it counting half; in (0, 1) for one of them."""
    return (bisect_left(ordered, value) + bisect_right(ordered, value)) / (2 * len(ordered))


def _harmonic(one: float, other: float) -> float:
    return 2 * one * other / (one + other) if one + other else 0.0


def _choose(key: tuple[str, str], settings: Sequence[str], places: Mapping[str, Means], scored: _Scored) -> Choice:
    chosen = max(settings, key=lambda setting: places[setting][key])
    truths = {setting: scored.truth[setting][key] for setting in settings if key in scored.truth[setting]}
    known = len(truths) == len(settings)
    best = max(settings, key=lambda setting: truths[setting]) if known else None
    return Choice(
        image=key[0],
        edit=key[1],
        chosen=chosen,
        balanced=places[chosen][key],
        preservation=scored.preservation[chosen][key],
        strength=scored.strength[chosen][key],
        best=best,
        psnr=truths.get(chosen),
        best_psnr=truths[best] if best else None,
        regret=truths[best] - truths[chosen] if best else None,
        happened=scored.happened[chosen].get(key),
    )


def _regret(
    keys: Sequence[tuple[str, str]], scored: _Scored, picked: Callable[[tuple[str, str]], Sequence[str]]
) -> Interval | None:
    """The mean regret in dB where each image and edit gets the mean of the settings that are picked for it."""
    if not keys:
        return None
    regrets = {}
    for key in keys:
        best = max(means[key] for means in scored.truth.values())
        regrets[key] = best - _mean([scored.truth[setting][key] for setting in picked(key)])
    return mean_interval(by_image(regrets), SEED, resamples=RESAMPLES)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
