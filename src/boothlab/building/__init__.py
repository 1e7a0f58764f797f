"""The only place where config becomes objects."""

from boothlab.building.sample import SampleRun, build_sample_run
from boothlab.building.score import ScoreRun, build_score_run
from boothlab.building.training import build_training_run

__all__ = ["SampleRun", "ScoreRun", "build_sample_run", "build_score_run", "build_training_run"]
