"""A trained adapter made ready for others: its files, a model card, sample images, and the way to the hub."""
