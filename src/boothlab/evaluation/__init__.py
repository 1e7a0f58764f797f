"""Metrics: frozen encoders, fidelity scores and the statistics that compare runs."""
