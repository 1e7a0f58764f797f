"""A small world that ships with the package: scenes, prompts and miniature pre-trained weights."""
