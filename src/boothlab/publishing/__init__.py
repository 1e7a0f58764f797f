"""What a run trained made ready for others: its files, a model card, sample images, and the way to the hub."""
