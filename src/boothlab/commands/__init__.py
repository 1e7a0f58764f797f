"""One short file a command: compose, check, build, run."""
