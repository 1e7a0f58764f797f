"""From a command line to a checked, typed config and a run folder; every mistake in one clear line."""
