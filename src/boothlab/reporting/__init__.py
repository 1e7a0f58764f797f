"""Tables, plots and pages over finished runs. Reads run folders, never changes them."""
