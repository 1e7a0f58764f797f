"""Photographs in: one loader, one audit."""
