"""Adapter files of every tool, read into one form and written from it: diffusers, PEFT, kohya and cloneofsimo."""
