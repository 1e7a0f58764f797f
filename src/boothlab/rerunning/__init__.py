"""Making a run again from its manifest alone, and showing that it came out the same."""
