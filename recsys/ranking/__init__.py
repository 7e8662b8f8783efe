"""The second stage: reordering what retrieval returned."""
