"""boothlab: an experiment-tracking research harness for subject-driven diffusion."""

__version__ = "0.1.0"
