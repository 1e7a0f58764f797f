"""The only place where config becomes objects."""

from boothlab.building.sample import SampleRun, build_sample_run
from boothlab.building.training import build_training_run

__all__ = ["SampleRun", "build_sample_run", "build_training_run"]
