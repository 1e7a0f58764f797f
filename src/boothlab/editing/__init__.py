"""Editing runs: images × edits × methods, each edited image scored against what it was to keep and to change."""
