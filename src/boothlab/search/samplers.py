"""Optuna's samplers and pruners, made so that a choice depends on the trials before it and on nothing else."""

import hashlib
from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from boothlab.config import SearchPruner, SearchSampler
from boothlab.search.space import Choice, Dimension, IntRange, Value

POPULATION = 10
"""Of nsga2. Optuna's 50 would leave a search of a few dozen trials at random draws."""


def derive_seed(*parts: object) -> int:
    """A seed of 32 bits from the text of the parts."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


class NumberedSampler(BaseSampler):
    """Draws each value of each trial from a generator of its own, seeded by (seed, trial number, parameter).

    Optuna's samplers carry one generator through all trials, so a search that goes on in another process would choose
    otherwise than one that was never interrupted. Theirs is the method; only the generator is new for each draw.
    """

    def __init__(self, kind: SearchSampler, seed: int):
        self._kind = kind
        self._seed = seed

    def _fresh(self, trial: FrozenTrial, what: str) -> BaseSampler:
        seed = derive_seed(self._seed, trial.number, what)
        if self._kind is SearchSampler.random:
            return RandomSampler(seed=seed)
        if self._kind is SearchSampler.nsga2:
            return NSGAIISampler(seed=seed, population_size=POPULATION)
        return TPESampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that are drawn together."""
        return self._fresh(trial, "together").infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Their values."""
        return self._fresh(trial, "together").sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """One value of its own."""
        sampler = self._fresh(trial, f"alone/{param_name}")
        return sampler.sample_independent(study, trial, param_name, param_distribution)


def suggest(trial: Trial, dimensions: Sequence[Dimension]) -> dict[str, Value]:
    """The values of a trial by key; those it has already stay."""
    return {dimension.key: _suggest(trial, dimension) for dimension in dimensions}


def _suggest(trial: Trial, dimension: Dimension) -> Value:
    if isinstance(dimension, Choice):
        return str(trial.suggest_categorical(dimension.key, dimension.texts))
    low, high, key, log = dimension.low, dimension.high, dimension.key, dimension.log
    if isinstance(dimension, IntRange):
        return trial.suggest_int(key, int(low), int(high), step=dimension.step, log=log)
    return trial.suggest_float(key, low, high, step=dimension.step, log=log)


def make_pruner(kind: SearchPruner, trials: Sequence[FrozenTrial]) -> BasePruner:
    """The pruner for the next trial after `trials`. Steps are optimizer steps.

    Hyperband takes its smallest and largest budget from the curve of the first completed trial, and ends nothing
    before there is one. Optuna's own `auto` looks at whatever was complete when the process first pruned.
    """
    if kind is SearchPruner.median:
        return MedianPruner()
    if kind is SearchPruner.none:
        return NopPruner()
    curves = (sorted(trial.intermediate_values) for trial in trials if trial.state is TrialState.COMPLETE)
    steps = next((curve for curve in curves if curve), None)
    if steps is None:
        return NopPruner()
    return HyperbandPruner(min_resource=steps[0], max_resource=max(steps[-1], steps[0] + 1))
