"""Candidate retrievers behind one contract, and how their answers are merged."""
