"""What was served, held against what should have been: the prediction log, its recomputation, drift."""
