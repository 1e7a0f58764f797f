"""Adaptive search: Optuna chooses the next settings from the scores of the runs so far.

Importing this package imports no Optuna: `boothlab.search.optuna_search.run_search` does, and says so if it is absent.
"""

from boothlab.search.jobs import FolderOf, JobResult, OnCheckpoint, Pruned, RunJob
from boothlab.search.space import SearchSpace, parse_space

__all__ = ["FolderOf", "JobResult", "OnCheckpoint", "Pruned", "RunJob", "SearchSpace", "parse_space"]
