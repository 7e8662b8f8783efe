"""Measurements beside the pipeline: what each part is worth, other protocols, searches. No stage depends on them."""
