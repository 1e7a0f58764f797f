"""What a run leaves behind: history, manifest, summary and their mirrors."""
