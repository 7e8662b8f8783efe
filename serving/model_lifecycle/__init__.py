"""Which model is served, and how another takes its place."""
